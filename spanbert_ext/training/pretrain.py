"""A pre-training run around the loop: start or resume, validation, checkpoints, signals, several
processes. Every process runs this; only rank 0 touches the disk and talks.
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
from transformers import AutoTokenizer

from spanbert_ext import _backend
from spanbert_ext.data import Corpus, open_corpus
from spanbert_ext.data.corpus import vocabulary_hash
from spanbert_ext.errors import ConfigError, NumericsError, Preempted, StorageError
from spanbert_ext.load_report import LoadReport
from spanbert_ext.training import checkpoint, memory
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.guard import BAD_BATCHES, NumericsWatch, check_finite
from spanbert_ext.training.loop import LoopSettings, Progress, StopRequest, evaluate, train
from spanbert_ext.training.models import (
    build_model,
    checkpoint_bytes,
    choose_device,
    choose_precision,
    describe_hardware,
    load_checkpoint,
)
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.pretrain_task import PretrainTask
from spanbert_ext.training.ranks import Ranks, join, place_in_world
from spanbert_ext.training.replica import copy_weights, shard
from spanbert_ext.training.resume import choose_start, content_sample, restore_training_state
from spanbert_ext.training.run_lock import RunLock
from spanbert_ext.training.run_log import RunLog, rewind
from spanbert_ext.training.run_step import build_step, choose_compile, describe_step
from spanbert_ext.training.settings import as_flat_dict, nest
from spanbert_ext.training.starting import continue_model
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


@dataclass(frozen=True)
class PretrainResult:
    """How a run stands at its end.

    Args:
        run: its directory.
        checkpoint: the newest checkpoint.
        state: what that checkpoint records, with held-out losses at the start and at the end.
        was_finished: nothing was left to do.
    """

    run: Path
    checkpoint: Path
    state: RunState
    was_finished: bool


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pre-train, or continue a run, until its last step.

    With `nproc` above 1 the processes are started here. Under torchrun every process calls this.

    Raises:
        ConfigError: the settings do not fit the corpus, the checkpoint or the machine, or the
            directory is in use.
        DataError: the corpus is too small or damaged.
        StorageError: a checkpoint cannot be read or written.
        Preempted: a signal asked to stop; the state is saved.
        NumericsError: gradients stayed non-finite, or spikes came back.
        RankLost: another process died or stopped answering.
        ReportedElsewhere: another process of the run reports the fault.
        OutOfMemory: the device or the host is too small for the settings.
    """
    config.validate()
    if config.corpus is None:
        raise ConfigError("corpus: a directory written by `spanbert prepare` is required")
    _, world, local_rank = place_in_world()
    if config.nproc > 1:
        if world > 1:
            raise ConfigError(f"nproc: {world} processes were started already; leave it out")
        return _pretrain_in_processes(config)
    device = choose_device(config.device, local_rank)
    if world > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    with join(device.type, config.parallel.timeout) as ranks:
        return _pretrain_among(ranks, config, device)


def _pretrain_in_processes(config: PretrainConfig) -> PretrainResult:
    from spanbert_ext.training.launch import launch

    finished = _finished(config)
    if finished is not None:
        return finished
    launch(config)
    newest = checkpoint.newest(Path(config.output))
    return PretrainResult(Path(config.output), newest, read_state(newest), was_finished=False)


def _pretrain_among(ranks: Ranks, config: PretrainConfig, device: torch.device) -> PretrainResult:
    if not ranks.is_main:  # what is worth saying is said once
        logging.getLogger("spanbert_ext").setLevel(logging.ERROR)
    corpus = ranks.main_first(lambda: open_corpus(config.corpus))
    run = Path(config.output)
    if ranks.decide(lambda: _finished(config) is not None):
        return _finished(config)

    with contextlib.ExitStack() as held:

        def take_directory() -> str | None:
            try:
                run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot make the output directory {run}: {error.strerror}"
                ) from error
            held.enter_context(RunLock(run))
            checkpoint.sweep(run)
            start = choose_start(run, config)
            return None if start is None else str(start)

        chosen = ranks.decide(take_directory)
        start = None if chosen is None else Path(chosen)
        if start is not None:
            checkpoint.wait_until_visible(start, config.parallel.timeout)
        with memory.explained(config, ranks.world):
            return _Run(config, corpus, run, start, device, ranks).finish()


def _finished(config: PretrainConfig) -> PretrainResult | None:
    """The result of a run that has done its last step already."""
    run = Path(config.output)
    start = choose_start(run, config)
    if start is None or start.parent != run:
        return None
    state = read_state(start)
    if state.step < config.steps or state.settings.get("steps") != config.steps:
        return None
    return PretrainResult(run, start, state, was_finished=True)


class _Run:
    """One process's part of a run, from building to the last checkpoint."""

    def __init__(
        self,
        config: PretrainConfig,
        corpus: Corpus,
        run: Path,
        start: Path | None,
        device: torch.device,
        ranks: Ranks,
    ):
        self.config, self.run, self.start = config, run, start
        self.device, self.ranks = device, ranks
        self.precision = choose_precision(config.precision, device)
        self.tokenizer_dir = Path(corpus.tokenizer_dir)
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_dir)
        self.state = RunState(
            settings=as_flat_dict(config) | {"precision": self.precision},
            corpus=corpus.fingerprint,
            corpus_sample=content_sample(corpus),
            vocabulary=vocabulary_hash(corpus.vocabulary.pieces),
            corpus_facts=corpus.facts,
            hardware=describe_hardware(device, ranks.world),
            versions=current_versions(),
            world_size=ranks.world,
        )
        if start is not None:
            stored = read_state(start)
            ranks.main_first(lambda: check_same_run(stored, self.state, start))
            self._adopt(stored)
        torch.manual_seed(config.seed)  # the weights of a new model are the same on every rank
        self.load_report: LoadReport | None = None
        self.model = ranks.main_first(lambda: self._build_model(corpus, tokenizer)).to(device)
        if ranks.world > 1 and config.parallel.strategy == "fsdp":
            shard(self.model, ranks)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.task = PretrainTask(corpus, tokenizer, config, device, ranks)
        self.task.shift = self.state.shift
        if ranks.rank or (start is not None and stored.world_size != ranks.world):
            seed_generators(config.seed, ranks.rank, self.state.step)
        if start is not None:
            restore_training_state(
                start, self.model, self.optimizer, device, ranks, config.weights_only
            )
        self.saved_step = self.state.step if start is not None and start.parent == run else -1

    def _build_model(self, corpus: Corpus, tokenizer) -> torch.nn.Module:
        if self.start is not None:
            return load_checkpoint(self.start)
        if self.config.init is not None:
            model, self.load_report = continue_model(self.config, corpus)
            return model
        return build_model(self.config, corpus.vocab_size, tokenizer)

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
        ):
            setattr(self.state, name, getattr(stored, name))

    def finish(self) -> PretrainResult:
        """Train to the last step; returns the result or raises Preempted after saving."""
        config, state = self.config, self.state
        self.ranks.decide(self._prepare_files)
        metrics = self.run / "metrics.jsonl" if self.ranks.is_main else None
        backend = _backend.name(self.device)
        next_step = state.step + 1 if self.start is not None else 0
        names = config.report_to if self.ranks.is_main else []
        trackers = Trackers(names, self.run, state.settings, next_step)
        self.log = RunLog(metrics, state.step, config.steps, self.device, backend, trackers)
        self.progress = Progress(state.step, state.tokens, state.skipped)
        self.began, self.seconds_before = time.monotonic(), state.seconds
        self._introduce()
        self.step = build_step(
            self.model,
            self.optimizer,
            self.task,
            self._loop_settings(),
            config.runtime,
            self.ranks,
            config.parallel.strategy,
        )
        self.step.guard.restore(state.recent_norms)
        self.watch = NumericsWatch(
            config.numerics,
            self.step.guard,
            self.task.describe,
            self.log,
            self.run / BAD_BATCHES,
            self.ranks,
        )
        compiled = choose_compile(config.runtime.compile)
        self.log.say(f"the step: {describe_step(self.step, compiled)}")
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
        if self.progress.step < config.steps:
            raise Preempted(
                f"stopped by {stop.signal.name} after step {self.progress.step} of {config.steps}; "
                f"saved in {newest}. "
                "Start the same command again to continue"
            )
        return PretrainResult(self.run, newest, state, was_finished=False)

    def _prepare_files(self) -> None:
        config = self.config
        checkpoint.write_text(self.run / "config.yaml", yaml.safe_dump(nest(as_flat_dict(config))))
        if config.checkpoint.space_check:
            checkpoint.check_space(self.run, checkpoint_bytes(self.model))
        if self.load_report is not None:
            text = json.dumps(self.load_report.as_dict(), indent=1)
            checkpoint.write_text(self.run / "init.json", text + "\n")
        for name in ("metrics.jsonl", BAD_BATCHES):
            rewind(self.run / name, self.state.step if self.start is not None else -1)

    def _introduce(self) -> None:
        if self.load_report is not None:
            self.log.say(str(self.load_report))
        parameters = sum(p.numel() for p in self.model.parameters())
        batch, world = self.config.batch, self.ranks.world
        processes = f"{world} processes ({self.config.parallel.strategy}), " if world > 1 else ""
        self.log.say(
            f"{parameters / 1e6:.1f} M parameters, {batch.rows} x {batch.max_length} tokens a "
            f"step, {processes}{self.device}, "
            f"{self.precision}, {_backend.name(self.device)}, {torch.get_num_threads()} threads"
        )
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if self.device.type == "cpu" and torch.get_num_threads() > 1 and load > cores:
            self.log.say(
                f"other programs keep the {cores} cores busy (load {load:.0f}): threads that wait "
                "for each other are slow then, OMP_NUM_THREADS=1 trains faster"
            )
        if not self.task.num_held_out_rows:
            self.log.say("the corpus has no held-out part: no validation")
        if self.start is not None:
            self.log.say(
                f"continuing {self.start}: step {self.state.step}, {self.state.samples} rows, "
                f"{self.state.tokens} tokens"
            )

    def _loop_settings(self) -> LoopSettings:
        optimizer = self.config.optimizer
        return LoopSettings(
            steps=self.config.steps,
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

    def _after_step(self, step: int) -> None:
        every, last = self.config.validation.every, step == self.config.steps
        if last or (every and step % every == 0):
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
        copy_weights(load_checkpoint(path), self.model)
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
        state.samples = progress.step * self.config.batch.rows
        state.seconds = self.seconds_before + time.monotonic() - self.began
        state.recent_norms = self.step.guard.recent_norms()
        check_finite(self.model, self.ranks, progress.step)
        began, options = time.monotonic(), self.config.checkpoint
        snapshot = take_snapshot(self.model, self.optimizer, self.device, self.ranks)

        def commit() -> list:
            path = checkpoint.save(
                self.run,
                progress.step,
                lambda directory: write_training_state(
                    directory, self.model, snapshot, state, self.tokenizer_dir
                ),
                options.keep,
                options.retries,
                options.retry_seconds,
                checkpoint_bytes(self.model),
            )
            return [path.name, checkpoint.stored_bytes(path)]

        name, size = self.ranks.decide(commit)
        self.saved_step = progress.step
        self.log.checkpoint(progress.step, name, size, time.monotonic() - began)
