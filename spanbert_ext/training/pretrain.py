"""A pre-training run around the loop: start or resume, validation, checkpoints, signals."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer

from spanbert_ext import _backend
from spanbert_ext.data import Corpus, open_corpus
from spanbert_ext.errors import ConfigError, Preempted, StorageError
from spanbert_ext.training import checkpoint
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.loop import LoopSettings, Progress, StopRequest, evaluate, train
from spanbert_ext.training.models import (
    build_model,
    checkpoint_bytes,
    choose_device,
    choose_precision,
    load_checkpoint,
)
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.pretrain_task import PretrainTask
from spanbert_ext.training.run_log import RunLog, rewind
from spanbert_ext.training.run_step import build_step, choose_compile, describe_step
from spanbert_ext.training.settings import as_flat_dict, nest
from spanbert_ext.training.state import (
    RunState,
    check_same_run,
    current_versions,
    load_generators,
    load_optimizer,
    read_state,
    write_training_state,
)


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

    Raises:
        ConfigError: the settings do not fit the corpus, the checkpoint or the machine, or the
            directory is in use.
        DataError: the corpus is too small or damaged.
        StorageError: a checkpoint cannot be read or written.
        Preempted: a signal asked to stop; the state is saved.
        NumericsError: gradients stayed non-finite.
    """
    config.validate()
    if config.corpus is None:
        raise ConfigError("corpus: a directory written by `spanbert prepare` is required")
    corpus = open_corpus(config.corpus)
    run = Path(config.output)
    start = choose_start(run, config.resume)
    if start is not None and start.parent == run:
        state = read_state(start)
        if state.step >= config.steps and state.settings.get("steps") == config.steps:
            return PretrainResult(run, start, state, was_finished=True)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the output directory {run}: {error.strerror}") from error
    with checkpoint.RunLock(run):
        checkpoint.sweep(run)
        return _Run(config, corpus, run, start).finish()


def choose_start(run: Path, resume: str) -> Path | None:
    """The checkpoint to continue, None to start afresh.

    Raises:
        ConfigError: `never` with checkpoints present, or a path that is no checkpoint, or one of
            another run.
        StorageError: the chosen checkpoint, or every one there is, is damaged.
    """
    if resume == "auto":
        return checkpoint.newest(run)
    existing = checkpoint.list_steps(run)
    if resume == "never":
        if existing:
            raise ConfigError(
                f"{run} already holds {len(existing)} checkpoint(s) and resume is never; choose "
                f"another output"
            )
        return None
    path = Path(resume)
    if not (path / checkpoint.MANIFEST).is_file():
        raise ConfigError(
            f"resume: {path} is not a checkpoint directory (no {checkpoint.MANIFEST})"
        )
    fault = checkpoint.find_fault(path)
    if fault:
        raise StorageError(f"checkpoint {path} is damaged: {fault}")
    if existing and path.resolve().parent != run.resolve():
        raise ConfigError(
            f"resume: {path} belongs to another run, and {run} already holds checkpoints"
        )
    return path


class _Run:
    """One process's part of a run, from building to the last checkpoint."""

    def __init__(self, config: PretrainConfig, corpus: Corpus, run: Path, start: Path | None):
        self.config, self.run = config, run
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.tokenizer_dir = Path(corpus.tokenizer_dir)
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_dir)
        self.state = RunState(
            settings=as_flat_dict(config) | {"precision": self.precision},
            corpus=corpus.fingerprint,
            vocabulary=corpus.vocab_hash,
            versions=current_versions(),
        )
        if start is not None:
            stored = read_state(start)
            check_same_run(stored, self.state, start)
            self._adopt(stored)
        torch.manual_seed(config.seed)
        if start is None:
            self.model = build_model(config, corpus.vocab_size, tokenizer)
        else:
            self.model = load_checkpoint(start)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.task = PretrainTask(corpus, tokenizer, config, self.device)
        if start is not None:
            load_optimizer(start, self.model, self.optimizer)
            load_generators(start, self.device)
        self.saved_step = self.state.step if start is not None and start.parent == run else -1
        self.start = start

    def _adopt(self, stored: RunState) -> None:
        for name in (
            "step",
            "samples",
            "tokens",
            "seconds",
            "skipped",
            "starting_losses",
            "latest_losses",
        ):
            setattr(self.state, name, getattr(stored, name))

    def finish(self) -> PretrainResult:
        """Train to the last step; returns the result or raises Preempted after saving."""
        config, state = self.config, self.state
        checkpoint.write_text(self.run / "config.yaml", yaml.safe_dump(nest(as_flat_dict(config))))
        if config.checkpoint.space_check:
            checkpoint.check_space(self.run, checkpoint_bytes(self.model))
        metrics = self.run / "metrics.jsonl"
        rewind(metrics, state.step if self.start is not None else -1)
        backend = _backend.name(self.device)
        self.log = RunLog(metrics, state.step, config.steps, self.device, backend)
        self.progress = Progress(state.step, state.tokens, state.skipped)
        self.began, self.seconds_before = time.monotonic(), state.seconds
        self._introduce()
        run_step = build_step(
            self.model, self.optimizer, self.task, self._loop_settings(), config.runtime
        )
        compiled = choose_compile(config.runtime.compile)
        self.log.say(f"the step: {describe_step(run_step, compiled)}")
        try:
            with StopRequest() as stop:
                if self.start is None:
                    state.starting_losses = self._validate()
                train(
                    self.model,
                    self.optimizer,
                    self.task,
                    self._loop_settings(),
                    self.progress,
                    self.log,
                    self._after_step,
                    stop,
                    run_step,
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

    def _introduce(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        batch = self.config.batch
        self.log.say(
            f"{parameters / 1e6:.1f} M parameters, {batch.rows} x {batch.max_length} tokens a "
            f"step, {self.device}, "
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
        )

    def _validate(self) -> dict[str, float]:
        if not self.task.num_held_out_rows:
            return {}
        losses = evaluate(self.model, self.task, self.task.held_out_batches(), self.precision)
        self.log.validation(self.progress.step, losses)
        self.state.latest_losses = losses
        return losses

    def _after_step(self, step: int) -> None:
        every, last = self.config.validation.every, step == self.config.steps
        if last or (every and step % every == 0):
            self._validate()
        if last or step % self.config.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        state, progress = self.state, self.progress
        state.step, state.tokens, state.skipped = progress.step, progress.tokens, progress.skipped
        state.samples = progress.step * self.config.batch.rows
        state.seconds = self.seconds_before + time.monotonic() - self.began
        path = checkpoint.save(
            self.run,
            progress.step,
            lambda directory: write_training_state(
                directory, self.model, self.optimizer, state, self.tokenizer_dir, self.device
            ),
            self.config.checkpoint.keep,
        )
        self.saved_step = progress.step
        self.log.record("checkpoint", progress.step, {"path": path.name})
