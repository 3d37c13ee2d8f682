"""One process's part of a pre-training run: model, task and step of `run.Run`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from spanbert_ext.data import Corpus
from spanbert_ext.data.corpus import vocabulary_hash
from spanbert_ext.ops import backend
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.loop import LoopSettings, Step, evaluate
from spanbert_ext.training.models import build_model, describe_hardware, load_checkpoint
from spanbert_ext.training.pretrain_task import PretrainTask
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.resume import content_sample
from spanbert_ext.training.run import Run
from spanbert_ext.training.run_step import build_step, choose_compile, describe_step
from spanbert_ext.training.starting import continue_model
from spanbert_ext.training.state import RunState, current_versions


class PretrainRun(Run):
    """Pre-training on a prepared corpus; arguments as in `Run`."""

    def __init__(
        self,
        config: PretrainConfig,
        corpus: Corpus,
        run: Path,
        start: Path | None,
        device: torch.device,
        ranks: Ranks,
    ):
        self.corpus, self.steps = corpus, config.steps
        self.tokenizer_dir = Path(corpus.tokenizer_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_dir)
        super().__init__(config, run, start, device, ranks)

    def _identity(self) -> RunState:
        corpus = self.corpus
        return RunState(
            settings=as_flat_dict(self.config) | {"precision": self.precision},
            corpus=corpus.fingerprint,
            corpus_sample=content_sample(corpus),
            vocabulary=vocabulary_hash(corpus.vocabulary.pieces),
            corpus_facts=corpus.facts,
            hardware=describe_hardware(self.device, self.ranks.world),
            versions=current_versions(),
            world_size=self.ranks.world,
        )

    def _build_model(self) -> torch.nn.Module:
        if self.config.init is not None:
            model, self.load_report = continue_model(self.config, self.corpus)
            return model
        return build_model(self.config, self.corpus.vocab_size, self.tokenizer)

    def _load_model(self, path: Path) -> torch.nn.Module:
        return load_checkpoint(path)

    def _build_task(self) -> PretrainTask:
        return PretrainTask(self.corpus, self.tokenizer, self.config, self.device, self.ranks)

    def _build_step(self) -> Step:
        config = self.config
        step = build_step(
            self.model,
            self.optimizer,
            self.task,
            self._loop_settings(),
            config.runtime,
            self.ranks,
            config.parallel.strategy,
        )
        compiled = choose_compile(config.runtime.compile)
        self.log.say(f"the step: {describe_step(step, compiled)}")
        return step

    def _introduction(self) -> list[str]:
        parameters = sum(p.numel() for p in self.model.parameters())
        batch, world = self.config.batch, self.ranks.world
        processes = f"{world} processes ({self.config.parallel.strategy}), " if world > 1 else ""
        lines = [
            f"{parameters / 1e6:.1f} M parameters, {batch.rows} x {batch.max_length} tokens a "
            f"step, {processes}{self.device}, "
            f"{self.precision}, {backend.name(self.device)}, {torch.get_num_threads()} threads"
        ]
        if not self.task.num_held_out_rows:
            lines.append("the corpus has no held-out part: no validation")
        return lines

    def _loop_settings(self) -> LoopSettings:
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

    def _validate(self) -> dict[str, float]:
        if not self.task.num_held_out_rows:
            return {}
        losses = evaluate(
            self.model, self.task, self.task.held_out_batches(), self.precision, self.ranks
        )
        self.log.validation(self.progress.step, losses)
        self.state.latest_losses = losses
        return losses

    def _validates_after(self, step: int) -> bool:
        every = self.config.validation.every
        return bool(every) and step % every == 0

    def _samples(self, step: int) -> int:
        return step * self.config.batch.rows
