"""Units shared out to worker processes.

Workers are processes of their own rather than forks: the tokenizers library has threads, which do
not survive a fork. The parent tells each worker one unit at a time; nothing else is shared but the
staging directory.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spanbert_ext import errors
from spanbert_ext.data.job import Job
from spanbert_ext.data.units import describe
from spanbert_ext.data.work import run_unit
from spanbert_ext.device import usable_cores
from spanbert_ext.errors import SpanBertError, StorageError

# Receives (number of a unit, bytes of it read since the last call).
Read = Callable[[int, int], None]


def run_units(
    job: Job, stage: str, numbers: Sequence[int], workers: int, read: Read
) -> Iterator[tuple[int, dict]]:
    """(unit, result) of a stage's units as they are finished.

    Args:
        numbers: of the units, in order.
        workers: processes; 1 works in this one.
        read: told how far the units are.

    Raises:
        SpanBertError: what the first unit that failed raised.
        StorageError: a worker was killed.
    """
    if workers == 1:
        for number in numbers:
            yield number, run_unit(job, stage, number, lambda count, n=number: read(n, count))
        return
    pool = _Pool(job, stage, workers)
    try:
        yield from pool.run(numbers, read)
    finally:
        pool.close()


class _Message(NamedTuple):
    """What a worker said; None when it is gone."""

    worker: _Worker
    content: dict | None


class _Worker:
    """A worker process and the thread that listens to it."""

    def __init__(self, name: str, job: Job, environment: dict[str, str], inbox: queue.Queue):
        self.name = name
        self.unit: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", __package__ + ".worker", str(job.directory), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def _listen(self, inbox: queue.Queue) -> None:
        for line in self.process.stdout:
            if line.endswith("\n"):  # a killed worker may leave half a line
                inbox.put(_Message(self, json.loads(line)))
        inbox.put(_Message(self, None))

    def begin(self, stage: str, unit: int) -> None:
        self.unit = unit
        try:
            self.process.stdin.write(json.dumps({"stage": stage, "unit": unit}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is in the inbox already


class _Pool:
    def __init__(self, job: Job, stage: str, workers: int):
        self._job, self._stage = job, stage
        self._inbox: queue.Queue[_Message] = queue.Queue()
        threads = max(1, usable_cores() // workers)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            # The cores are shared out between the workers, not to each of them.
            "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
            "RAYON_NUM_THREADS": str(threads),
        }
        self._workers = [
            _Worker(f"worker {number} of {workers}", job, environment, self._inbox)
            for number in range(1, workers + 1)
        ]

    def run(self, numbers: Sequence[int], read: Read) -> Iterator[tuple[int, dict]]:
        waiting = iter(numbers)
        faults: dict[int, SpanBertError] = {}
        for worker in self._workers:
            self._begin_next(worker, waiting)
        while any(worker.unit is not None for worker in self._workers):
            worker, content = self._inbox.get()
            if content is None:
                raise self._death(worker)
            if "read" in content:
                read(worker.unit, content["read"])
                continue
            unit, worker.unit = worker.unit, None
            if "error" in content:
                faults[unit] = getattr(errors, content["error"])(content["text"])
                waiting = iter(())  # units before this one are all begun: the first fault will show
            else:
                yield unit, content["result"]
            self._begin_next(worker, waiting)
        if faults:
            raise faults[min(faults)]

    def _begin_next(self, worker: _Worker, waiting: Iterator[int]) -> None:
        unit = next(waiting, None)
        if unit is not None:
            worker.begin(self._stage, unit)

    def _death(self, worker: _Worker) -> StorageError:
        code = worker.process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        doing = "before its first unit"
        if worker.unit is not None:
            unit = describe(self._job.units[worker.unit], self._job.sources)
            doing = f"in unit {worker.unit + 1} of {len(self._job.units)} ({unit})"
        advice = "; if the memory was full, fewer workers need less" if code == -9 else ""
        return StorageError(
            f"{self._stage}: {worker.name} (pid {worker.process.pid}) {how} {doing}{advice}"
        )

    def close(self) -> None:
        """End the workers, in the middle of a unit if need be."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.process.stdin.close()
            worker.process.stdout.close()
