"""Sample ids for batches that come without: every batch gets the next ones.

In a `DataLoader`'s worker they start from the worker's seed, which differs from epoch to epoch, and
each worker has a range of its own.
"""

from __future__ import annotations

import torch
from torch.utils.data import get_worker_info

_WORKER_RANGE = 40  # bits: rows that a worker can see before it reaches the ids of the next
_ID_BITS = 62  # of a first id: adding rows to it cannot overflow


class SampleIdCounter:
    """Counts rows; part of a masker, copied and pickled with it.

    The count is a tensor on the CPU: torch.compile would compile a number anew in every call.
    """

    def __init__(self, start: int = 0, worker_seed: int | None = None):
        self._worker_seed = worker_seed
        self._set(start)

    def __reduce__(self):
        # As a number: a tensor would be memory that processes share.
        return SampleIdCounter, (int(self._next), self._worker_seed)

    def _set(self, value: int) -> None:
        self._next = torch.tensor(value, dtype=torch.int64, device="cpu")

    @property
    def next(self) -> int:
        """The next id in this process."""
        self._enter_worker()
        return int(self._next)

    @next.setter
    def next(self, value: int) -> None:
        if not 0 <= value < 1 << _ID_BITS:
            raise ValueError(f"the next sample id must lie in [0, 2**{_ID_BITS}); got {value}")
        self._enter_worker()
        self._set(value)

    def take(self, count: int, device: torch.device) -> torch.Tensor:
        """[count] int64, ids that nobody has had from this counter.

        Raises:
            RuntimeError: a CUDA graph is being captured, whose replays would repeat the ids.
        """
        if torch.compiler.is_compiling():
            pass  # which worker this is cannot be traced, and nobody compiles in one
        elif device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "sample_ids is missing while a CUDA graph is captured: every replay would repeat "
                "the same draws; pass a tensor and change its numbers between replays"
            )
        else:
            self._enter_worker()
        ids = torch.arange(count, device=device) + self._next
        self._next = self._next + count
        return ids

    def _enter_worker(self) -> None:
        worker = get_worker_info()
        if worker is None or worker.seed == self._worker_seed:
            return
        # A worker's seed is that of the epoch plus the worker's number.
        start = worker.seed - worker.id + (worker.id << _WORKER_RANGE)
        self._worker_seed = worker.seed
        self._set(start % (1 << _ID_BITS))
