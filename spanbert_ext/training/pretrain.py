"""Pre-training: masked language model, span boundary objective and next sentence prediction on the
packed rows of a corpus."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from spanbert_ext.data import open_corpus
from spanbert_ext.data.corpus import vocabulary_hash
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.loop import Step, evaluate
from spanbert_ext.training.models import build_model, load_checkpoint
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.pretrain_batches import MicroBatch, PretrainBatches
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.resume import content_sample
from spanbert_ext.training.run import Run, RunResult, train_run
from spanbert_ext.training.run_step import build_step, choose_compile, describe_step
from spanbert_ext.training.starting import continue_model
from spanbert_ext.training.state import RunState, differing_settings


def pretrain(config: PretrainConfig) -> RunResult:
    """Pre-train, or continue a run, until its last step.

    With `nproc` above 1 the processes are started here. Under torchrun every process calls this.

    Raises:
        ConfigError: also for settings that are impossible; otherwise as `run.train_run`.
    """
    config.validate()
    if config.corpus is None:
        raise ConfigError("corpus: a directory written by `spanbert prepare` is required")
    return train_run(PretrainObjective(config))


class PretrainObjective(Objective):
    """Masked language model, span boundary objective and next sentence prediction, as far as the
    settings have them; arguments and attributes as in `Objective`.

    `loss_kind` says how the losses are divided.
    """

    command = ("pretrain",)
    data: PretrainBatches

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.steps, self.loss_kind = config.steps, config.loss.kind
        used = {
            "mlm_loss": True,
            "sbo_loss": config.loss.sbo_weight > 0,
            "nsp_loss": config.batch.pairs,
        }
        self.loss_names = tuple(name for name, wanted in used.items() if wanted)

    def is_finished(self, state: RunState, start: Path) -> bool:
        """With other settings it is not this run: going on will refuse, and name them."""
        done = state.step >= self.steps
        wanted = as_flat_dict(self.config)
        return done and not differing_settings(state, wanted, PretrainConfig, start)

    def read(self) -> None:
        """Open the corpus."""
        self.corpus = open_corpus(self.config.corpus)

    def memory_advice(self, processes: int) -> str:
        """To compute fewer rows at a time."""
        batch, rows = self.config.batch, self.config.micro_rows(processes)
        now = f"{rows} rows of {batch.max_length} tokens are computed at a time"
        if rows > 1:
            fewer = max(n for n in range(1, rows // 2 + 1) if rows % n == 0)
            return (
                f"{now}: `--batch.micro_rows {fewer}` takes less, with the same update, also in a "
                "run that has begun. Weights, gradients and moments alone take 16 bytes a parameter"
            )
        return (
            f"{now.replace('rows', 'row', 1).replace('are', 'is')}: only another run, with a "
            "smaller --preset or --batch.max_length, takes less"
        )

    def prepare(
        self, start: Path | None, device: torch.device, ranks: Ranks, held: contextlib.ExitStack
    ) -> None:
        """Also the corpus's tokenizer."""
        super().prepare(start, device, ranks, held)
        self.tokenizer_dir = Path(self.corpus.tokenizer_dir)
        self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_dir)

    def identity(self) -> dict[str, Any]:
        """Settings and the corpus."""
        corpus = self.corpus
        return {
            "settings": as_flat_dict(self.config),
            "corpus": corpus.fingerprint,
            "corpus_sample": content_sample(corpus),
            "vocabulary": vocabulary_hash(corpus.vocabulary.pieces),
            "corpus_facts": corpus.facts,
        }

    def build_model(self) -> nn.Module:
        """Random weights, or those of `init`."""
        if self.config.init is not None:
            model, self.load_report = continue_model(self.config, self.corpus)
            return model
        return build_model(self.config, self.corpus.vocab_size, self._tokenizer)

    def load_model(self, path: Path) -> nn.Module:
        """The model of a checkpoint."""
        return load_checkpoint(path)

    def build_batches(self, model: nn.Module) -> PretrainBatches:
        """Packed rows with their masks."""
        return PretrainBatches(self.corpus, self._tokenizer, self.config, self.device, self.ranks)

    def loop_settings(self) -> LoopSettings:
        """As the settings have them."""
        optimizer = self.config.optimizer
        return LoopSettings(
            steps=self.steps,
            peak_lr=optimizer.peak_lr,
            warmup_steps=optimizer.warmup_steps,
            clip_norm=optimizer.clip_norm,
            precision=self.precision,
            log_every=self.config.log_every,
            numerics=self.config.numerics,
        )

    def build_step(self, run: Run) -> Step:
        """Captured, on the device or by the host, as settings and machine have it."""
        runtime = self.config.runtime
        step = build_step(
            run.model,
            run.optimizer,
            self,
            self.loop_settings(),
            runtime,
            self.ranks,
            self.config.parallel.strategy,
        )
        run.log.say(f"the step: {describe_step(step, choose_compile(runtime.compile))}")
        return step

    def counts(self, micro_batch: MicroBatch) -> torch.Tensor:
        """[C] int64, what each of `loss_names` is divided by: its targets, or with loss.kind paper
        those of the masked language model for both heads."""
        masked, counts = micro_batch.masked, {}
        counts["mlm_loss"] = (masked.target_ids != -100).sum()
        counts["sbo_loss"] = counts["mlm_loss"]
        if self.loss_kind == "code":
            counts["sbo_loss"] = (masked.sbo_ids != -100).sum()
        if micro_batch.nsp_labels is not None:
            counts["nsp_loss"] = (micro_batch.nsp_labels != -100).sum()
        return torch.stack([counts[name] for name in self.loss_names])

    def loss(
        self, model: nn.Module, micro_batch: MicroBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Total loss and its detached parts [C], divided by the step's counts."""
        masked = micro_batch.masked
        divisors = dict(zip(self.loss_names, totals, strict=True))
        output = model(
            masked.input_ids,
            cu_seqlens=micro_batch.cu_seqlens,
            batch=masked,
            token_type_ids=micro_batch.token_type_ids,
            max_seqlen=micro_batch.max_length,
            row_length=micro_batch.row_length,
            num_mlm_targets=divisors["mlm_loss"],
            num_sbo_targets=divisors.get("sbo_loss"),
            nsp_labels=micro_batch.nsp_labels,
            num_nsp_targets=divisors.get("nsp_loss"),
        )
        parts = torch.stack([output[name].float() for name in self.loss_names])
        return output.loss, parts.detach()

    def introduction(self, model: nn.Module) -> list[str]:
        """Sizes, and where it runs."""
        parameters, batch = sum(p.numel() for p in model.parameters()), self.config.batch
        lines = [
            f"{parameters / 1e6:.1f} M parameters, {batch.rows} x {batch.max_length} tokens a "
            f"step, {self.where_it_runs()}"
        ]
        if not self.data.num_held_out_rows:
            lines.append("the corpus has no held-out part: no validation")
        return lines

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Held-out losses, with the same masks each time."""
        if not self.data.num_held_out_rows:
            return {}
        return evaluate(model, self, self.data.held_out_batches(), self.precision, self.ranks)

    def validates_after(self, step: int) -> bool:
        """Every `validation.every` steps."""
        every = self.config.validation.every
        return bool(every) and step % every == 0

    def samples(self, step: int) -> int:
        """Rows."""
        return step * self.config.batch.rows
