"""`spanbert finetune TASK`: from a model and files to the best model on the development data."""

from __future__ import annotations

import contextlib
import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spanbert_ext.errors import NumericsError
from spanbert_ext.files import json_text, new_digest, write_text
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.batching import TrainingOrder
from spanbert_ext.tasks.best_model import best_scores, keep_best
from spanbert_ext.tasks.config import FinetuneConfig, steps_of
from spanbert_ext.tasks.examples import draw_sample, read_data
from spanbert_ext.tasks.finetune_warnings import few_updates, no_better_than_chance
from spanbert_ext.tasks.finite import broken_examples, fault_of
from spanbert_ext.tasks.models import load_checkpoint, open_model, read_tokenizer, start_model
from spanbert_ext.tasks.task_file import BEST, read_task_file, write_task
from spanbert_ext.training.guard import check_finite
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.run import Run, RunResult, train_run
from spanbert_ext.training.state import RunState, differing_settings, whole_weights
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
        ConfigError: also for settings that are impossible; otherwise as `run.train_run`.
    """
    config.validate()
    return train_run(registry.entry_of(config.task_name).objective_class()(config))


def settings_of(config: FinetuneConfig) -> dict[str, Any]:
    """The settings as a run stores them: with the name of the task, which is not one of them, and
    what null means where it decides which model is the best."""
    stored = as_flat_dict(config) | {"task": config.task_name}
    if config.evals_per_epoch is None:
        stored["evals_per_epoch"] = _EVALS_PER_EPOCH
    return stored


class FinetuneObjective(Objective):
    """Fine-tuning of one task: data, evaluation, the best model, the files of a run.

    How features become batches and outputs is a subclass's matter; arguments and attributes as in
    `Objective`.
    """

    def __init__(self, config: FinetuneConfig):
        super().__init__(config)
        entry = registry.entry_of(config.task_name)
        self.task = entry.make(config.task_options)
        self.command = ("finetune", self.task.name)
        self.epochs = entry.epochs if config.epochs is None else config.epochs

    def is_finished(self, state: RunState, start: Path) -> bool:
        """With other settings it is not this run: going on will refuse, and name them."""
        steps = state.settings.get("steps", 0)  # which the data decided
        wanted = settings_of(self.config) | {"steps": steps}
        done = state.step >= steps and (Path(self.config.output) / METRICS).is_file()
        return done and not differing_settings(state, wanted, type(self.config), start)

    def read(self) -> None:
        """Read the files; the task learns its labels."""
        self.examples = read_data(self.config, self.task)

    def prepare(
        self, start: Path | None, device: torch.device, ranks: Ranks, held: contextlib.ExitStack
    ) -> None:
        """Also tokenizer, facts, features and their order."""
        super().prepare(start, device, ranks, held)
        config = self.config

        def make_features() -> StartingPoint | None:
            source = held.enter_context(open_model(config.model)) if start is None else None
            self._make_features(start if source is None else Path(source.folder), start)
            return source

        self.source = ranks.main_first(make_features)
        lengths = np.array([self.tokens_of(feature) for feature in self.features])
        self.order = TrainingOrder(lengths, config.batch.examples, config.seed)
        self.steps = steps_of(config, self.epochs, self.order.batches_per_epoch)
        if start is None:
            _warn(few_updates(config, self.steps, self.epochs))

    def _make_features(self, folder: Path, start: Path | None) -> None:
        task = self.task
        self.tokenizer = read_tokenizer(folder)
        task.learn(self.examples.train, self.tokenizer)  # from all: a sample may lack a label
        self.examples = draw_sample(self.examples, self.config)
        if start is not None:
            # What was tuned on dev; without what the release that began the run did not know.
            task.facts = (read_task_file(start) or {}).get("facts") or task.facts
        self.features = task.features(self.examples.train, self.tokenizer)
        self.dev_features = task.features(self.examples.dev, self.tokenizer)
        self.check_gold()

    @staticmethod
    @abstractmethod
    def tokens_of(feature: Any) -> int:
        """Tokens of a feature."""

    def check_gold(self) -> None:
        """Raises DataError where a feature has no gold answer and needs one."""
        return

    @abstractmethod
    def outputs(self, model: torch.nn.Module, features: Sequence[Any]) -> Sequence[Any]:
        """What `DownstreamTask.decode` takes, of features that do not train."""

    def identity(self) -> dict[str, Any]:
        """Settings, the files and the tokenizer."""
        examples = self.examples
        return {
            "settings": settings_of(self.config) | {"steps": self.steps},
            "corpus": examples.digest,
            "vocabulary": _digest_of(sorted(self.tokenizer.get_vocab().items())),
            "corpus_facts": {"train": len(examples.train), "dev": len(examples.dev)},
        }

    def build_model(self) -> torch.nn.Module:
        """The encoder of `model` with a new head, or a model of the same task."""
        task = self.task
        model, self.load_report = start_model(
            self.source,
            task.head,
            task.labels(),
            len(self.tokenizer),
            self.config.dropout,
            task.model_fields(),
        )
        return model

    def load_model(self, path: Path) -> torch.nn.Module:
        """The model of a checkpoint."""
        return load_checkpoint(path, self.task.head)

    def introduction(self, model: torch.nn.Module) -> list[str]:
        """Sizes, and where it runs."""
        parameters = sum(p.numel() for p in model.parameters())
        lengths = [self.tokens_of(feature) for feature in self.features]
        return [
            f"{self.task.name}: {len(self.examples.train)} training examples in "
            f"{len(self.features)} sequences of {np.mean(lengths):.0f} tokens (longest "
            f"{max(lengths)}), {len(self.examples.dev)} development examples; {self.steps} steps "
            f"of {self.config.batch.examples}",
            f"{parameters / 1e6:.1f} M parameters, {self.where_it_runs()}",
        ]

    def loop_settings(self) -> LoopSettings:
        """As the settings have them; a log line for every tenth of a short run."""
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

    def samples(self, step: int) -> int:
        """Sequences."""
        return step * self.config.batch.examples

    def validates_after(self, step: int) -> bool:
        """`evals_per_epoch` times an epoch, of a short run twice in all."""
        times, batches = self.config.evals_per_epoch, self.order.batches_per_epoch
        if times is None:
            every = max(1, min(batches // _EVALS_PER_EPOCH, -(-self.steps // _EVALS)))
        else:
            every = max(1, batches // times) if times else self.steps
        return step % every == 0

    def evaluate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """The task's numbers on the development data.

        Raises:
            NumericsError: the model gives numbers that are not finite.
        """
        # Every rank computes all of it: the numbers, and so the choice, are the same everywhere.
        task, dev = self.task, self.examples.dev
        if not dev:
            return {}
        outputs = self.outputs(model, self.dev_features)
        broken = broken_examples(self.dev_features, outputs)
        if broken:
            check_finite(model, self.ranks, step)  # which says more
            fault = fault_of(dev[min(broken)].id, self.precision)
            raise NumericsError(
                f"the evaluation after step {step} met {fault}, or lower optimizer.peak_lr; the "
                "newest checkpoint is good"
            )
        predictions = task.decode(dev, self.dev_features, outputs)
        task.tune(dev, predictions)
        return task.score(dev, predictions)

    def evaluated(self, run: Run, numbers: dict[str, float], seconds: float) -> None:
        """Keep the model if it is the best so far; without development data the last one."""
        step = run.progress.step
        if not numbers:
            if step == self.steps:
                self._keep_best(run, {})
            return
        run.log.say(f"evaluated in {seconds:.1f} s")
        best = run.state.best.get(self.task.best_metric, -float("inf"))
        if step and numbers[self.task.best_metric] > best:
            self._keep_best(run, numbers)

    def _keep_best(self, run: Run, numbers: dict[str, float]) -> None:
        check_finite(run.model, self.ranks, run.progress.step)
        run.state.best = {"step": run.progress.step, **numbers}
        weights = whole_weights(run.model)

        def write(directory: Path) -> None:
            run.model.save_pretrained(directory, state_dict=weights)
            self.write_model(directory)

        self.ranks.decide(lambda: keep_best(run.run, run.state.best, write))

    def write_model(self, directory: Path) -> None:
        """Tokenizer and task."""
        self.tokenizer.save_pretrained(directory)
        write_task(directory, self.task)

    def resumed(self, run: Run) -> None:
        """The best model is what lies in the directory, whatever the checkpoint remembers."""
        run.state.best = self.ranks.decide(lambda: best_scores(run.run))

    def write_files(self, run: Path) -> None:
        """The records that were left out."""
        (run / METRICS).unlink(missing_ok=True)  # it says that the run is finished
        if self.examples.rejects:
            write_text(run / REJECTS, self.examples.rejects)

    def finished(self, run: Run, result: RunResult) -> None:
        """Write metrics.json; warn of what cannot have worked."""
        config, examples, state = self.config, self.examples, result.state
        if not state.best:  # nothing was left to train: it went on from another run's last step
            numbers = self.evaluate(run.model, run.progress.step)
            state.latest_losses = numbers or state.latest_losses
            self._keep_best(run, numbers)
        if not self.ranks.is_main:
            return
        summary = {
            "task": self.task.name,
            "model": config.model,
            "train": {"files": list(config.train), "examples": len(examples.train)},
            "dev": {"files": list(config.dev), "examples": len(examples.dev)},
            "steps": self.steps,
            "seconds": round(state.seconds, 1),
            "untrained": state.starting_losses,
            "best": state.best,
            "last": state.latest_losses,
            "facts": read_task_file(run.run / BEST)["facts"],
        }
        write_text(run.run / METRICS, json_text(summary, indent=1) + "\n")
        _warn(
            no_better_than_chance(
                self.task, config, examples.dev, state.best, state.starting_losses, self.epochs
            )
        )


def _warn(line: str | None) -> None:
    if line is not None:
        logger.warning("%s", line)


def _digest_of(values: Sequence[Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()
