"""A pre-training run from its settings: which processes, which directory, where it continues.

Every process runs this; only rank 0 touches the disk and talks. `run.Run` does the training.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch

from spanbert_ext.data import open_corpus
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.training import checkpoint, memory
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.models import choose_device
from spanbert_ext.training.ranks import Ranks, join, place_in_world
from spanbert_ext.training.resume import choose_start
from spanbert_ext.training.run import PretrainResult, Run
from spanbert_ext.training.run_lock import RunLock
from spanbert_ext.training.state import read_state


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

    run = Path(config.output)
    start = choose_start(run, config)
    finished = _is_finished(config, start)
    if not finished:
        launch(config)
        start = checkpoint.newest(run)
    return PretrainResult(run, start, read_state(start), was_finished=finished)


def _pretrain_among(ranks: Ranks, config: PretrainConfig, device: torch.device) -> PretrainResult:
    if not ranks.is_main:  # what is worth saying is said once
        logging.getLogger("spanbert_ext").setLevel(logging.ERROR)
    corpus = ranks.main_first(lambda: open_corpus(config.corpus))
    run = Path(config.output)
    with contextlib.ExitStack() as held:

        def take_directory() -> dict:
            seen, start = checkpoint.list_steps(run), choose_start(run, config)
            if _is_finished(config, start):
                return {"start": str(start), "finished": True}
            try:
                run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot make the output directory {run}: {error.strerror}"
                ) from error
            held.enter_context(RunLock(run))
            if checkpoint.list_steps(run) != seen:  # another process trained here until just now
                start = choose_start(run, config)
            checkpoint.sweep(run)
            return {"start": start and str(start), "finished": False}

        chosen = ranks.decide(take_directory)
        start = chosen["start"] and Path(chosen["start"])
        if start is not None:
            checkpoint.wait_until_visible(start, config.parallel.timeout)
        if chosen["finished"]:
            return PretrainResult(run, start, read_state(start), was_finished=True)
        with memory.explained(config, ranks.world):
            return Run(config, corpus, run, start, device, ranks).finish()


def _is_finished(config: PretrainConfig, start: Path | None) -> bool:
    """Whether a checkpoint is the last one of this run."""
    if start is None or start.parent != Path(config.output):
        return False
    state = read_state(start)
    return state.step >= config.steps and state.settings.get("steps") == config.steps
