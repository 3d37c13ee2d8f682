"""`spanbert finetune TASK`: from a model and files to the best model on the development data."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spanbert_ext.errors import NumericsError
from spanbert_ext.files import json_text, new_digest, write_text
from spanbert_ext.ops import backend
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.batching import TrainingOrder
from spanbert_ext.tasks.best_model import best_scores, keep_best
from spanbert_ext.tasks.config import FinetuneConfig, steps_of
from spanbert_ext.tasks.finetune_data import FinetuneData, draw_sample, read_data
from spanbert_ext.tasks.finetune_warnings import few_updates, no_better_than_chance
from spanbert_ext.tasks.finite import broken_examples, fault_of
from spanbert_ext.tasks.models import (
    load_checkpoint,
    open_model,
    read_tokenizer,
    start_model,
)
from spanbert_ext.tasks.task import DownstreamTask
from spanbert_ext.tasks.task_file import BEST, read_task_file, write_task
from spanbert_ext.training.entry import BuildRun, Kind, run_all
from spanbert_ext.training.guard import check_finite
from spanbert_ext.training.loop import LoopSettings
from spanbert_ext.training.models import describe_hardware
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.run import Run, RunResult
from spanbert_ext.training.state import (
    RunState,
    current_versions,
    differing_settings,
    whole_weights,
)
from spanbert_ext.weights.sources import StartingPoint

logger = logging.getLogger("spanbert_ext")

METRICS, REJECTS = "metrics.json", "rejects.jsonl"
_LOG_EVERY, _LOG_LINES = 20, 10
_EVALS_PER_EPOCH, _EVALS = 2, 2


def finetune(config: FinetuneConfig) -> RunResult:
    """Fine-tune, or continue a run, until its last step; the best model is in its `best/`.

    Args:
        config: of `registry.settings_class(FinetuneConfig, TASK)`.

    Raises:
        ConfigError: also for settings that are impossible; otherwise as `entry.run_all`.
    """
    config.validate()
    entry = registry.entry_of(config.task_name)
    task, run = entry.make(config.task_options), entry.run_class()

    def is_finished(state: RunState, start: Path) -> bool:
        # With other settings it is not this run: going on will refuse, and name them.
        steps = state.settings.get("steps", 0)  # which the data decided
        wanted = settings_of(config) | {"steps": steps}
        done = state.step >= steps and (Path(config.output) / METRICS).is_file()
        return done and not differing_settings(state, wanted, type(config), start)

    def read(_ranks: Ranks) -> BuildRun:
        data = read_data(config, task)
        return lambda *where: run(config, task, data, *where)

    return run_all(config, Kind(["finetune", task.name], is_finished, read, run.memory_advice))


def settings_of(config: FinetuneConfig) -> dict[str, Any]:
    """The settings as a run stores them: with the name of the task, which is not one of them, and
    what null means where it decides which model is the best."""
    stored = as_flat_dict(config) | {"task": config.task_name}
    if config.evals_per_epoch is None:
        stored["evals_per_epoch"] = _EVALS_PER_EPOCH
    return stored


class FinetuneRun(Run):
    """Fine-tuning of one task: data, evaluation, the best model, the files of a run.

    How features become batches and outputs is a subclass's matter; arguments as in `Run`.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        task: DownstreamTask,
        data: FinetuneData,
        run: Path,
        start: Path | None,
        device: torch.device,
        ranks: Ranks,
    ):
        self.downstream, self.data = task, data
        self.tokenizer_dir = None
        with contextlib.ExitStack() as held:

            def read() -> StartingPoint | None:
                source = held.enter_context(open_model(config.model)) if start is None else None
                folder = start if source is None else Path(source.folder)
                self._make_features(folder, config, start)
                return source

            self.source = ranks.main_first(read)
            lengths = np.array([self.tokens_of(feature) for feature in self.features])
            self.order = TrainingOrder(lengths, config.batch.examples, config.seed)
            entry = registry.entry_of(task.name)
            self.epochs = entry.epochs if config.epochs is None else config.epochs
            self.steps = steps_of(config, self.epochs, self.order.batches_per_epoch)
            super().__init__(config, run, start, device, ranks)

    def _make_features(self, folder: Path, config: FinetuneConfig, start: Path | None) -> None:
        """Tokenizer, facts and features.

        Args:
            folder: with the tokenizer.
            start: the checkpoint that is continued.
        """
        task = self.downstream
        self.tokenizer = read_tokenizer(folder)
        task.learn(self.data.train, self.tokenizer)  # from all: a sample may lack a label
        self.data = draw_sample(self.data, config)
        if start is not None:
            # What was tuned on dev; without what the release that began the run did not know.
            task.facts = (read_task_file(start) or {}).get("facts") or task.facts
        self.features = task.features(self.data.train, self.tokenizer)
        self.dev_features = task.features(self.data.dev, self.tokenizer)
        self._check_gold(config)

    @staticmethod
    @abstractmethod
    def memory_advice(config: FinetuneConfig, processes: int) -> str:
        """What to do where memory runs out."""

    @staticmethod
    @abstractmethod
    def tokens_of(feature: Any) -> int:
        """Tokens of a feature."""

    def _check_gold(self, config: FinetuneConfig) -> None:
        """Raises DataError where a feature has no gold answer and needs one."""
        return

    @abstractmethod
    def _check_lengths(self) -> None:
        """Raises DataError where a sequence is longer than the model can read."""

    @abstractmethod
    def _outputs(self, features: Sequence[Any]) -> Sequence[Any]:
        """What `DownstreamTask.decode` takes, of features that do not train."""

    def _identity(self) -> RunState:
        config = self.config
        return RunState(
            settings=settings_of(config) | {"precision": self.precision, "steps": self.steps},
            corpus=self.data.digest,
            vocabulary=_digest_of(sorted(self.tokenizer.get_vocab().items())),
            corpus_facts={"train": len(self.data.train), "dev": len(self.data.dev)},
            hardware=describe_hardware(self.device, self.ranks.world),
            versions=current_versions(),
            world_size=self.ranks.world,
        )

    def _build_model(self) -> torch.nn.Module:
        task = self.downstream
        model, self.load_report = start_model(
            self.source,
            task.head,
            task.labels(),
            len(self.tokenizer),
            self.config.dropout,
            task.model_fields(),
        )
        return model

    def _load_model(self, path: Path) -> torch.nn.Module:
        return load_checkpoint(path, self.downstream.head)

    def _introduction(self) -> list[str]:
        parameters = sum(p.numel() for p in self.model.parameters())
        world = self.ranks.world
        processes = f"{world} processes ({self.config.parallel.strategy}), " if world > 1 else ""
        lengths = [self.tokens_of(feature) for feature in self.features]
        return [
            f"{self.downstream.name}: {len(self.data.train)} training examples in "
            f"{len(self.features)} sequences of {np.mean(lengths):.0f} tokens (longest "
            f"{max(lengths)}), {len(self.data.dev)} development examples; {self.steps} steps of "
            f"{self.config.batch.examples}",
            f"{parameters / 1e6:.1f} M parameters, {processes}{self.device}, {self.precision}, "
            f"{backend.name(self.device)}, {torch.get_num_threads()} threads",
        ]

    def _loop_settings(self) -> LoopSettings:
        optimizer = self.config.optimizer
        return LoopSettings(
            steps=self.steps,
            peak_lr=optimizer.peak_lr,
            warmup_steps=int(optimizer.warmup * self.steps),
            clip_norm=optimizer.clip_norm,
            precision=self.precision,
            log_every=self.config.log_every or min(_LOG_EVERY, max(1, self.steps // _LOG_LINES)),
            numerics=self.config.numerics,
        )

    def _samples(self, step: int) -> int:
        return step * self.config.batch.examples

    def _validates_after(self, step: int) -> bool:
        times, batches = self.config.evals_per_epoch, self.order.batches_per_epoch
        if times is None:
            every = max(1, min(batches // _EVALS_PER_EPOCH, -(-self.steps // _EVALS)))
        else:
            every = max(1, batches // times) if times else self.steps
        return step % every == 0

    def _validate(self) -> dict[str, float]:
        """Evaluate on the development data; keep the model if it is the best so far."""
        if not self.data.dev:
            if self.progress.step == self.steps:
                self._keep_best({})
            return {}
        began = time.monotonic()
        numbers = self._evaluate()
        self.log.validation(self.progress.step, numbers)
        self.log.say(f"evaluated in {time.monotonic() - began:.1f} s")
        best = self.state.best.get(self.downstream.best_metric, -float("inf"))
        if self.progress.step and numbers[self.downstream.best_metric] > best:
            self._keep_best(numbers)
        return numbers

    def _evaluate(self) -> dict[str, float]:
        # Every rank computes all of it: the numbers, and so the choice, are the same everywhere.
        task = self.downstream
        outputs = self._outputs(self.dev_features)
        broken = broken_examples(self.dev_features, outputs)
        if broken:
            check_finite(self.model, self.ranks, self.progress.step)  # which says more
            fault = fault_of(self.data.dev[min(broken)].id, self.precision)
            raise NumericsError(
                f"the evaluation after step {self.progress.step} met {fault}, or lower "
                "optimizer.peak_lr; the newest checkpoint is good"
            )
        predictions = task.decode(self.data.dev, self.dev_features, outputs)
        task.tune(self.data.dev, predictions)
        self.state.latest_losses = numbers = task.score(self.data.dev, predictions)
        return numbers

    def _keep_best(self, numbers: dict[str, float]) -> None:
        check_finite(self.model, self.ranks, self.progress.step)
        self.state.best = {"step": self.progress.step, **numbers}
        weights = whole_weights(self.model)

        def write(directory: Path) -> None:
            self.model.save_pretrained(directory, state_dict=weights)
            self._write_model(directory)

        self.ranks.decide(lambda: keep_best(self.run, self.state.best, write))

    def _write_model(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        write_task(directory, self.downstream)

    def _adopt(self, stored: RunState) -> None:
        super()._adopt(stored)
        self.state.best = self.ranks.decide(lambda: best_scores(self.run))

    def _prepare_files(self) -> None:
        super()._prepare_files()
        (self.run / METRICS).unlink(missing_ok=True)  # it says that the run is finished
        if self.data.rejects:
            write_text(self.run / REJECTS, self.data.rejects)

    def finish(self) -> RunResult:
        """Train to the last step, then write metrics.json; warn of what cannot have worked."""
        if self.start is None:
            self._warn(few_updates(self.config, self.steps, self.epochs))
        result = super().finish()
        state = result.state
        if not state.best:  # nothing was left to train: it went on from another run's last step
            self._keep_best(self._evaluate() if self.data.dev else {})
        if not self.ranks.is_main:
            return result
        summary = {
            "task": self.downstream.name,
            "model": self.config.model,
            "train": {"files": list(self.config.train), "examples": len(self.data.train)},
            "dev": {"files": list(self.config.dev), "examples": len(self.data.dev)},
            "steps": self.steps,
            "seconds": round(state.seconds, 1),
            "untrained": state.starting_losses,
            "best": state.best,
            "last": state.latest_losses,
            "facts": read_task_file(self.run / BEST)["facts"],
        }
        text = json_text(summary, indent=1)
        write_text(self.run / METRICS, text + "\n")
        self._warn(
            no_better_than_chance(
                self.downstream,
                self.config,
                self.data.dev,
                state.best,
                state.starting_losses,
                self.epochs,
            )
        )
        return result

    def _warn(self, line: str | None) -> None:
        if line is not None:
            logger.warning("%s", line)


def _digest_of(values: Sequence[Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()
