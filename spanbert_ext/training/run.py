"""A run: which processes and which checkpoint, and what happens around the loop.

Every process passes here; rank 0 alone touches the disk and talks. What is trained is an
`objective.Objective`; exact resume, validation, checkpoints, the numerics guard with its rollback
and logging are the same for all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from spanbert_ext.device import load_average
from spanbert_ext.errors import ConfigError, NumericsError, Preempted
from spanbert_ext.files import write_text
from spanbert_ext.ops import backend
from spanbert_ext.settings.build import as_flat_dict, nest
from spanbert_ext.training import checkpoint, memory
from spanbert_ext.training.determinism import deterministic
from spanbert_ext.training.guard import BAD_BATCHES, NumericsWatch, check_finite
from spanbert_ext.training.loop import Progress, StopRequest, train
from spanbert_ext.training.models import checkpoint_bytes, choose_device, describe_hardware
from spanbert_ext.training.objective import Objective
from spanbert_ext.training.ranks import Ranks, join, place_in_world
from spanbert_ext.training.replica import copy_weights, shard
from spanbert_ext.training.resume import choose_start, restore_training_state
from spanbert_ext.training.run_directory import RunDirectory
from spanbert_ext.training.run_log import RunLog, rewind
from spanbert_ext.training.state import (
    RunState,
    check_same_run,
    current_versions,
    read_state,
    seed_generators,
    take_snapshot,
    write_training_state,
)
from spanbert_ext.training.trackers import Trackers

# What a continued run takes from its checkpoint's state; the rest is what it is now.
_PROGRESS = (
    *("step", "samples", "tokens", "seconds", "skipped", "starting_losses", "latest_losses"),
    *("shift", "rollbacks", "recent_norms", "best"),
)


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


def train_run(objective: Objective) -> RunResult:
    """Train until the last step of a run, or say that it is finished.

    With `nproc` above 1 the processes are started here; under torchrun every process calls this.

    Raises:
        ConfigError: the settings do not fit the data, the checkpoint or the machine, or the
            directory is in use.
        DataError: the data is too small or damaged.
        StorageError: a checkpoint cannot be read or written.
        Preempted: a signal asked to stop; the state is saved.
        NumericsError: gradients stayed non-finite, or spikes came back.
        RankLost: another process died or stopped answering.
        ReportedElsewhere: another process of the run reports the fault.
        OutOfMemory: the device or the host is too small for the settings.
    """
    config = objective.config
    _, world, local_rank = place_in_world()
    if config.nproc > 1:
        if world > 1:
            raise ConfigError(f"nproc: {world} processes were started already; leave it out")
        return _in_processes(objective)
    device = choose_device(config.device, local_rank)
    if world > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    with (
        deterministic(config.runtime.deterministic),
        join(device.type, config.parallel.timeout) as ranks,
    ):
        return _among(ranks, objective, device)


def _in_processes(objective: Objective) -> RunResult:
    from spanbert_ext.training.launch import launch

    config, run = objective.config, Path(objective.config.output)
    start = choose_start(run, config)
    finished = _is_finished(objective, run, start)
    if not finished:
        launch(config, objective.command)
        start = checkpoint.newest(run)
    return RunResult(run, start, read_state(start), was_finished=finished)


def _among(ranks: Ranks, objective: Objective, device: torch.device) -> RunResult:
    if not ranks.is_main:  # what is worth saying is said once
        logging.getLogger("spanbert_ext").setLevel(logging.ERROR)
    ranks.main_first(objective.read)
    config, run = objective.config, Path(objective.config.output)
    with contextlib.ExitStack() as held:

        def take_directory() -> dict:
            seen, start = checkpoint.list_steps(run), choose_start(run, config)
            if _is_finished(objective, run, start):
                return {"start": str(start), "finished": True}
            held.enter_context(RunDirectory(run))
            if checkpoint.list_steps(run) != seen:  # another process trained here until just now
                start = choose_start(run, config)
            checkpoint.sweep(run)
            return {"start": start and str(start), "finished": False}

        chosen = ranks.decide(take_directory)
        start = chosen["start"] and Path(chosen["start"])
        if start is not None:
            checkpoint.wait_until_visible(start, config.parallel.timeout)
        if chosen["finished"]:
            return RunResult(run, start, read_state(start), was_finished=True)
        with memory.explained(lambda: objective.memory_advice(ranks.world)):
            return Run(objective, run, start, device, ranks).finish()


def _is_finished(objective: Objective, run: Path, start: Path | None) -> bool:
    """Whether a checkpoint is the last one of this run."""
    own = start is not None and start.parent == run
    return own and objective.is_finished(read_state(start), start)


class Run:
    """One process's part of a run, from building to the last checkpoint.

    Args:
        objective: what is trained; it has read its data.
        run: directory.
        start: checkpoint to continue, None to begin.
        device, ranks: where, and who shares the work.
    """

    def __init__(
        self,
        objective: Objective,
        run: Path,
        start: Path | None,
        device: torch.device,
        ranks: Ranks,
    ):
        self.objective, self.config = objective, objective.config
        self.run, self.start, self.device, self.ranks = run, start, device, ranks
        config = self.config
        with contextlib.ExitStack() as held:
            objective.prepare(start, device, ranks, held)
            self.state = self._new_state()
            if start is not None:
                stored = read_state(start)
                ranks.main_first(lambda: check_same_run(stored, self.state, start, type(config)))
                self._adopt(stored)
            torch.manual_seed(config.seed)  # the weights of a new model are the same on every rank
            self.model = ranks.main_first(self._start_model).to(device)
        if ranks.world > 1 and config.parallel.strategy == "fsdp":
            shard(self.model, ranks)
        self.optimizer = objective.build_optimizer(self.model)
        objective.data = objective.build_batches(self.model)
        objective.data.shift = self.state.shift
        if ranks.rank or (start is not None and stored.world_size != ranks.world):
            seed_generators(config.seed, ranks.rank, self.state.step)
        if start is not None:
            restore_training_state(
                start, self.model, self.optimizer, device, ranks, config.weights_only
            )
        self.saved_step = self.state.step if start is not None and start.parent == run else -1

    def _new_state(self) -> RunState:
        state = RunState(
            **self.objective.identity(),
            hardware=describe_hardware(self.device, self.ranks.world),
            versions=current_versions(),
            world_size=self.ranks.world,
            threads=torch.get_num_threads() if self.device.type == "cpu" else 0,
        )
        state.settings = state.settings | {"precision": self.objective.precision}
        return state

    def _start_model(self) -> nn.Module:
        if self.start is None:
            return self.objective.build_model()
        return self.objective.load_model(self.start)

    def _adopt(self, stored: RunState) -> None:
        for name in _PROGRESS:
            setattr(self.state, name, getattr(stored, name))
        self.objective.resumed(self)

    def _busy_cores(self) -> list[str]:
        load, cores = load_average(), os.cpu_count() or 1
        if self.device.type != "cpu" or torch.get_num_threads() == 1 or load <= cores:
            return []
        return [
            f"other programs keep the {cores} cores busy (load {load:.0f}): threads that wait for "
            "each other are slow then, OMP_NUM_THREADS=1 trains faster"
        ]

    def finish(self) -> RunResult:
        """Train to the last step; returns the result or raises Preempted after saving."""
        config, state, objective = self.config, self.state, self.objective
        self.ranks.decide(self._prepare_files)
        metrics = self.run / "metrics.jsonl" if self.ranks.is_main else None
        runs = backend.name(self.device)
        next_step = state.step + 1 if self.start is not None else 0
        names = config.report_to if self.ranks.is_main else []
        trackers = Trackers(names, self.run, state.settings, next_step)
        self.log = RunLog(metrics, state.step, objective.steps, self.device, runs, trackers)
        self.progress = Progress(state.step, state.tokens, state.skipped)
        self.began, self.seconds_before = time.monotonic(), state.seconds
        report = [] if objective.load_report is None else [str(objective.load_report)]
        for line in (*report, *objective.introduction(self.model), *self._busy_cores()):
            self.log.say(line)
        if self.start is not None:
            self.log.say(
                f"continuing {self.start}: step {state.step}, {state.samples} rows, "
                f"{state.tokens} tokens"
            )
        self.step = objective.build_step(self)
        self.step.guard.restore(state.recent_norms)
        self.watch = NumericsWatch(
            config.numerics,
            self.step.guard,
            objective.data.describe,
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
                    objective.loss_names,
                    objective.loop_settings(),
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
        if self.progress.step < objective.steps:
            raise Preempted(
                f"stopped by {stop.signal.name} after step {self.progress.step} of "
                f"{objective.steps}; saved in {newest}. Start the same command again to continue"
            )
        result = RunResult(self.run, newest, state, was_finished=False)
        objective.finished(self, result)
        return result

    def _prepare_files(self) -> None:
        config = self.config
        write_text(self.run / "config.yaml", yaml.safe_dump(nest(as_flat_dict(config))))
        if config.checkpoint.space_check:
            checkpoint.check_space(self.run, checkpoint_bytes(self.model))
        report = self.objective.load_report
        if report is not None:
            text = json.dumps(report.as_dict(), indent=1)
            write_text(self.run / "init.json", text + "\n")
        for name in ("metrics.jsonl", BAD_BATCHES):
            rewind(self.run / name, self.state.step if self.start is not None else -1)
        self.objective.write_files(self.run)

    def _after_step(self, step: int) -> None:
        last = step == self.objective.steps
        if last or self.objective.validates_after(step):
            self._validate()
        if last or step % self.config.checkpoint.every == 0:
            self._save()

    def _validate(self) -> dict[str, float]:
        """Measure on held-out data, if there is any; log it and keep it in the state."""
        began, step = time.monotonic(), self.progress.step
        numbers = self.objective.evaluate(self.model, step)
        if numbers:
            self.log.validation(step, numbers)
            self.state.latest_losses = numbers
        self.objective.evaluated(self, numbers, time.monotonic() - began)
        return numbers

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
        copy_weights(self.objective.load_model(path), self.model)
        restore_training_state(path, self.model, self.optimizer, self.device, self.ranks)
        self.step.guard.restore(state.recent_norms)
        self.objective.data.shift = state.shift
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
        state.samples = self.objective.samples(progress.step)
        state.seconds = self.seconds_before + time.monotonic() - self.began
        state.recent_norms = self.step.guard.recent_norms()
        check_finite(self.model, self.ranks, progress.step)
        began, options = time.monotonic(), self.config.checkpoint
        snapshot = take_snapshot(self.model, self.optimizer, self.device, self.ranks)

        def write(directory: Path) -> None:
            tokenizer_dir = self.objective.tokenizer_dir
            write_training_state(directory, self.model, snapshot, state, tokenizer_dir)
            self.objective.write_model(directory)

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
