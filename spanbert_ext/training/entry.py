"""Where a run begins: which processes, which directory, which checkpoint it continues.

Every process passes here; only rank 0 touches the disk and talks. `run.Run` does the training.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.training import checkpoint, memory
from spanbert_ext.training.determinism import deterministic
from spanbert_ext.training.models import choose_device
from spanbert_ext.training.ranks import Ranks, join, place_in_world
from spanbert_ext.training.resume import choose_start
from spanbert_ext.training.run import Run, RunResult
from spanbert_ext.training.run_lock import LOCK, RunLock
from spanbert_ext.training.state import RunState, read_state

BuildRun = Callable[[Path, Path | None, torch.device, Ranks], Run]


@dataclass(frozen=True)
class Kind:
    """What kind of run it is.

    Args:
        verb: words of the command before its settings, for the processes of `nproc`.
        is_finished: whether a state, of a checkpoint at a path, is that of the last step of a run
            with these settings.
        open: reads the data before the output directory is touched; gives what builds the run from
            its directory, the checkpoint to continue, the device and the ranks.
        advise: settings, processes -> what to do where memory runs out.
    """

    verb: Sequence[str]
    is_finished: Callable[[RunState, Path], bool]
    open: Callable[[Ranks], BuildRun]
    advise: Callable[[Any, int], str] = memory.advice


def run_all(config: Any, kind: Kind) -> RunResult:
    """Train until the last step of a run, or say that it is finished.

    Args:
        config: valid settings. With `nproc` above 1 the processes are started here; under torchrun
            every process calls this.

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
    _, world, local_rank = place_in_world()
    if config.nproc > 1:
        if world > 1:
            raise ConfigError(f"nproc: {world} processes were started already; leave it out")
        return _in_processes(config, kind)
    device = choose_device(config.device, local_rank)
    if world > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    with (
        deterministic(config.runtime.deterministic),
        join(device.type, config.parallel.timeout) as ranks,
    ):
        return _among(ranks, config, device, kind)


def _in_processes(config: Any, kind: Kind) -> RunResult:
    from spanbert_ext.training.launch import launch

    run = Path(config.output)
    start = choose_start(run, config)
    finished = _is_finished(run, start, kind)
    if not finished:
        launch(config, kind.verb)
        start = checkpoint.newest(run)
    return RunResult(run, start, read_state(start), was_finished=finished)


def _among(ranks: Ranks, config: Any, device: torch.device, kind: Kind) -> RunResult:
    if not ranks.is_main:  # what is worth saying is said once
        logging.getLogger("spanbert_ext").setLevel(logging.ERROR)
    build = ranks.main_first(lambda: kind.open(ranks))
    run = Path(config.output)
    with contextlib.ExitStack() as held:

        def take_directory() -> dict:
            seen, start = checkpoint.list_steps(run), choose_start(run, config)
            if _is_finished(run, start, kind):
                return {"start": str(start), "finished": True}
            made = [path for path in (run, *run.parents) if not path.exists()]
            try:
                run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot make the output directory {run}: {error.strerror}"
                ) from error
            held.enter_context(RunLock(run))
            held.callback(_remove_unused, made)
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
        with memory.explained(config, ranks.world, kind.advise):
            return build(run, start, device, ranks).finish()


def _remove_unused(made: list[Path]) -> None:
    """Take away the directories that a start has made, the run's own first, where it was refused
    before it wrote anything."""
    with contextlib.suppress(OSError):  # it has gone already, or another process is there by now
        if made and [path.name for path in made[0].iterdir()] == [LOCK]:
            (made[0] / LOCK).unlink()
            for path in made:
                path.rmdir()


def _is_finished(run: Path, start: Path | None, kind: Kind) -> bool:
    """Whether a checkpoint is the last one of this run."""
    return start is not None and start.parent == run and kind.is_finished(read_state(start), start)
