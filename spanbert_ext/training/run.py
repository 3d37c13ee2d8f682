"""One process's part of a run: what is built, and what happens around the loop.

`Run` is what pre-training and every fine-tuning share: exact resume, validation, checkpoints, the
numerics guard with its rollback, logging. What is trained is a subclass's matter.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from spanbert_ext.device import load_average
from spanbert_ext.errors import NumericsError, Preempted
from spanbert_ext.files import write_text
from spanbert_ext.ops import backend
from spanbert_ext.settings.build import as_flat_dict, nest
from spanbert_ext.training import checkpoint
from spanbert_ext.training.guard import BAD_BATCHES, NumericsWatch, check_finite
from spanbert_ext.training.loop import LoopSettings, Progress, Step, StopRequest, train
from spanbert_ext.training.models import checkpoint_bytes, choose_precision
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.replica import copy_weights, shard
from spanbert_ext.training.resume import restore_training_state
from spanbert_ext.training.run_log import RunLog, rewind
from spanbert_ext.training.state import (
    RunState,
    check_same_run,
    read_state,
    seed_generators,
    take_snapshot,
    write_training_state,
)
from spanbert_ext.training.trackers import Trackers
from spanbert_ext.weights.load_report import LoadReport


@dataclass(frozen=True)
class RunResult:
    """How a run stands at its end.

    Args:
        run: its directory.
        checkpoint: the newest checkpoint.
        state: what that checkpoint records, with held-out numbers at the start and at the end.
        was_finished: nothing was left to do.
    """

    run: Path
    checkpoint: Path
    state: RunState
    was_finished: bool


class Run(ABC):
    """One process's part of a run, from building to the last checkpoint.

    A subclass says what is trained; it sets `steps`, the number of updates, and `tokenizer_dir`,
    whose files go into every checkpoint (None: none), before it calls this constructor.

    Args:
        config: settings of the run; their names are those of `PretrainConfig` where they mean the
            same.
        run: directory.
        start: checkpoint to continue, None to begin.
        device, ranks: where, and who shares the work.
    """

    steps: int
    tokenizer_dir: Path | None
    # Set by `_build_model` where it starts from given weights.
    load_report: LoadReport | None = None
    choose_precision = staticmethod(choose_precision)

    def __init__(
        self, config: Any, run: Path, start: Path | None, device: torch.device, ranks: Ranks
    ):
        self.config, self.run, self.start = config, run, start
        self.device, self.ranks = device, ranks
        self.precision = self.choose_precision(config.precision, device)
        self.state = self._identity()
        self.state.threads = torch.get_num_threads() if device.type == "cpu" else 0
        if start is not None:
            stored = read_state(start)
            ranks.main_first(lambda: check_same_run(stored, self.state, start, type(config)))
            self._adopt(stored)
        torch.manual_seed(config.seed)  # the weights of a new model are the same on every rank
        self.model = ranks.main_first(self._start_model).to(device)
        if ranks.world > 1 and config.parallel.strategy == "fsdp":
            shard(self.model, ranks)
        self.optimizer = self._build_optimizer()
        self.task = self._build_task()
        self.task.shift = self.state.shift
        if ranks.rank or (start is not None and stored.world_size != ranks.world):
            seed_generators(config.seed, ranks.rank, self.state.step)
        if start is not None:
            restore_training_state(
                start, self.model, self.optimizer, device, ranks, config.weights_only
            )
        self.saved_step = self.state.step if start is not None and start.parent == run else -1

    @abstractmethod
    def _identity(self) -> RunState:
        """The state of a run that has not begun: settings, and digests of what it depends on."""

    @abstractmethod
    def _build_model(self) -> nn.Module:
        """The model that a new run trains."""

    @abstractmethod
    def _load_model(self, path: Path) -> nn.Module:
        """The model of a checkpoint."""

    @abstractmethod
    def _build_task(self) -> Any:
        """A `loop.Task` with `shift` (batches jumped over) and `describe` (step -> JSON facts)."""

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optimizer)

    @abstractmethod
    def _build_step(self) -> Step:
        """How an update is done."""

    @abstractmethod
    def _introduction(self) -> list[str]:
        """Lines for the person watching, before the first step."""

    def _busy_cores(self) -> list[str]:
        load, cores = load_average(), os.cpu_count() or 1
        if self.device.type != "cpu" or torch.get_num_threads() == 1 or load <= cores:
            return []
        return [
            f"other programs keep the {cores} cores busy (load {load:.0f}): threads that wait for "
            "each other are slow then, OMP_NUM_THREADS=1 trains faster"
        ]

    @abstractmethod
    def _validate(self) -> dict[str, float]:
        """Measure on held-out data, if there is any; log it and keep it in the state."""

    @abstractmethod
    def _validates_after(self, step: int) -> bool:
        """Whether to validate after `step` updates, not counting the last one."""

    @abstractmethod
    def _loop_settings(self) -> LoopSettings:
        """Numbers of the loop."""

    @abstractmethod
    def _samples(self, step: int) -> int:
        """Rows or examples seen after `step` updates."""

    def _start_model(self) -> nn.Module:
        return self._load_model(self.start) if self.start is not None else self._build_model()

    def _write_model(self, directory: Path) -> None:
        """Files of a checkpoint beside the weights and the tokenizer's; none by default."""
        return

    def _adopt(self, stored: RunState) -> None:
        for name in (
            "step",
            "samples",
            "tokens",
            "seconds",
            "skipped",
            "starting_losses",
            "latest_losses",
            "shift",
            "rollbacks",
            "recent_norms",
            "best",
        ):
            setattr(self.state, name, getattr(stored, name))

    def finish(self) -> RunResult:
        """Train to the last step; returns the result or raises Preempted after saving."""
        config, state = self.config, self.state
        self.ranks.decide(self._prepare_files)
        metrics = self.run / "metrics.jsonl" if self.ranks.is_main else None
        runs = backend.name(self.device)
        next_step = state.step + 1 if self.start is not None else 0
        names = config.report_to if self.ranks.is_main else []
        trackers = Trackers(names, self.run, state.settings, next_step)
        self.log = RunLog(metrics, state.step, self.steps, self.device, runs, trackers)
        self.progress = Progress(state.step, state.tokens, state.skipped)
        self.began, self.seconds_before = time.monotonic(), state.seconds
        report = [] if self.load_report is None else [str(self.load_report)]
        for line in (*report, *self._introduction(), *self._busy_cores()):
            self.log.say(line)
        if self.start is not None:
            self.log.say(
                f"continuing {self.start}: step {state.step}, {state.samples} rows, "
                f"{state.tokens} tokens"
            )
        self.step = self._build_step()
        self.step.guard.restore(state.recent_norms)
        self.watch = NumericsWatch(
            config.numerics,
            self.step.guard,
            self.task.describe,
            self.log,
            self.run / BAD_BATCHES,
            self.ranks,
        )
        for where in trackers.where:
            self.log.say(f"curves: {where}")
        try:
            with StopRequest(self.ranks) as stop:
                if self.start is None:
                    state.starting_losses = self._validate()
                train(
                    self.model,
                    self.step,
                    self.task.loss_names,
                    self._loop_settings(),
                    self.progress,
                    self.log,
                    stop,
                    self._inspect,
                    self._after_step,
                )
                if self.saved_step != self.progress.step:
                    self._save()
        finally:
            self.log.close()
        newest = self.run / checkpoint.step_name(self.saved_step)
        if self.progress.step < self.steps:
            raise Preempted(
                f"stopped by {stop.signal.name} after step {self.progress.step} of {self.steps}; "
                f"saved in {newest}. "
                "Start the same command again to continue"
            )
        return RunResult(self.run, newest, state, was_finished=False)

    def _prepare_files(self) -> None:
        config = self.config
        write_text(self.run / "config.yaml", yaml.safe_dump(nest(as_flat_dict(config))))
        if config.checkpoint.space_check:
            checkpoint.check_space(self.run, checkpoint_bytes(self.model))
        if self.load_report is not None:
            text = json.dumps(self.load_report.as_dict(), indent=1)
            write_text(self.run / "init.json", text + "\n")
        for name in ("metrics.jsonl", BAD_BATCHES):
            rewind(self.run / name, self.state.step if self.start is not None else -1)

    def _after_step(self, step: int) -> None:
        last = step == self.steps
        if last or self._validates_after(step):
            self._validate()
        if last or step % self.config.checkpoint.every == 0:
            self._save()

    def _inspect(self) -> bool:
        """Judge the steps since the last call; whether the run went back to a checkpoint."""
        skipped, wants_rollback = self.watch.inspect(self.progress.step)
        self.progress.skipped += skipped
        if wants_rollback:
            self._roll_back()
        return wants_rollback

    def _roll_back(self) -> None:
        """Continue the newest checkpoint, in place, with batches behind those seen since then."""
        state, reached = self.state, self.progress.step
        newest = self.ranks.decide(lambda: str(checkpoint.newest(self.run) or ""))
        if not newest or state.rollbacks >= self.config.numerics.max_rollbacks:
            why = f"after {state.rollbacks} rollbacks" if newest else "before the first checkpoint"
            raise NumericsError(
                f"the gradient norm spiked {why} (seen at step {reached}); "
                f"{self.run / BAD_BATCHES} lists the batches. Lower optimizer.peak_lr, or set "
                "numerics.spike_policy to skip"
            )
        path, rollbacks, shift = Path(newest), state.rollbacks + 1, state.shift
        stored = read_state(path)
        self._adopt(stored)
        state.rollbacks, state.shift = rollbacks, shift + reached - stored.step
        copy_weights(self._load_model(path), self.model)
        restore_training_state(path, self.model, self.optimizer, self.device, self.ranks)
        self.step.guard.restore(state.recent_norms)
        self.task.shift = state.shift
        progress = self.progress
        progress.step, progress.tokens, progress.skipped = state.step, state.tokens, state.skipped
        self.log.go_back(state.step)
        jumped = reached - state.step
        self.log.say(f"back to {path.name}; the {jumped} batches behind it are jumped over")
        self.log.record("rollback", state.step, {"from_step": reached, "batches": jumped})

    def _save(self) -> None:
        if self._inspect():
            return
        state, progress = self.state, self.progress
        state.step, state.tokens, state.skipped = progress.step, progress.tokens, progress.skipped
        state.samples = self._samples(progress.step)
        state.seconds = self.seconds_before + time.monotonic() - self.began
        state.recent_norms = self.step.guard.recent_norms()
        check_finite(self.model, self.ranks, progress.step)
        began, options = time.monotonic(), self.config.checkpoint
        snapshot = take_snapshot(self.model, self.optimizer, self.device, self.ranks)

        def write(directory: Path) -> None:
            write_training_state(directory, self.model, snapshot, state, self.tokenizer_dir)
            self._write_model(directory)

        def commit() -> list:
            path = checkpoint.save(
                self.run,
                progress.step,
                write,
                options.keep,
                options.retries,
                options.retry_seconds,
                checkpoint_bytes(self.model),
            )
            return [path.name, checkpoint.stored_bytes(path)]

        name, size = self.ranks.decide(commit)
        self.saved_step = progress.step
        self.log.checkpoint(progress.step, name, size, time.monotonic() - began)
