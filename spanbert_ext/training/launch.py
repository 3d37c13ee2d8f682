"""`--nproc N`: the processes of a run on one machine, and what becomes of them.

Each is the installed command with a file of the resolved settings. This process hosts the common
store, so that losing any rank leaves the others able to say which one; it forwards signals, and
ends what is left when a rank fails. torchrun does the same for several machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from spanbert_ext.device import usable_cores
from spanbert_ext.errors import RankLost, ReportedElsewhere
from spanbert_ext.settings.build import as_flat_dict, nest
from spanbert_ext.training import signals

logger = logging.getLogger("spanbert_ext")

_POLL_SECONDS = 0.05
# The others need some seconds to see that a rank is gone, and to say so.
_GRACE_SECONDS = 20.0


def launch(config: Any, verb: Sequence[str]) -> None:
    """Run `config.nproc` processes to their end.

    Args:
        config: settings of the run.
        verb: words of the command before its settings, as in ["pretrain"].

    Raises:
        ReportedElsewhere: a rank ended with a fault that it has reported.
        RankLost: a rank was killed and nobody was left to report it.
    """
    with tempfile.TemporaryDirectory(prefix="spanbert-") as work:
        settings = Path(work) / "run.yaml"
        settings.write_text(yaml.safe_dump(nest(as_flat_dict(replace(config, nproc=1)))), "utf-8")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        processes = [
            _start(rank, config.nproc, store.port, settings, verb) for rank in range(config.nproc)
        ]
        try:
            with _forwarded_signals(processes):
                rank = _wait(processes)
        finally:
            for process in processes:  # also after a fault of our own: nothing is left behind
                process.kill()
                process.wait()
    if rank is None:
        return
    code = processes[rank].returncode
    if code < 0:
        name = signal.Signals(-code).name
        logger.error("rank %d (pid %d) was killed by %s", rank, processes[rank].pid, name)
        told = any(process.returncode == RankLost.exit_code for process in processes)
        if not told:
            raise RankLost("no process is left; start the same command again to continue")
        code = RankLost.exit_code
    raise ReportedElsewhere(code)


def _start(
    rank: int, world: int, port: int, settings: Path, verb: Sequence[str]
) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torchrun's word for a store outside the ranks
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // world)))
    return subprocess.Popen(
        [sys.executable, "-m", "spanbert_ext", *verb, "--config", str(settings)],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """The kernel sends SIGTERM when this process's parent dies, so that no rank is orphaned."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _forwarded_signals(processes: list[subprocess.Popen]) -> Iterator[None]:
    """The first signal goes to rank 0, which stops all ranks after the same step; a second one ends
    them at once.
    """
    received: list[int] = []

    def forward(number: int, _frame) -> None:
        received.append(number)
        if len(received) == 1:
            if os.name != "nt":  # where Ctrl-C goes to every process of a console by itself
                processes[0].send_signal(number)
            return
        for process in processes:
            process.kill()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    with signals.handled(forward):
        yield


def _wait(processes: list[subprocess.Popen]) -> int | None:
    """The rank that failed first, once all have ended; None if none did."""
    failed, deadline = None, float("inf")
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _first_failure(processes)
            if failed is not None:
                deadline = time.monotonic() + _GRACE_SECONDS
        late = time.monotonic() > deadline  # such as those that wait for a rank that is gone
        for process in processes:
            if late or (failed is not None and _is_stopped(process.pid)):
                process.kill()
        time.sleep(_POLL_SECONDS)
    return _first_failure(processes) if failed is None else failed


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process, so that it will not end by itself."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "T"


def _first_failure(processes: list[subprocess.Popen]) -> int | None:
    codes = [process.poll() for process in processes]
    return next((rank for rank, code in enumerate(codes) if code), None)
