"""Clocks, memory, threads and CUDA graphs: how one call is measured on either kind of device."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """CPU threads of torch and of our core inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock(device: str) -> Callable[[Callable[[], object], int], float]:
    """A function (run, calls) -> seconds of all calls."""
    return _cuda_seconds if device == "cuda" else _cpu_seconds


def _cpu_seconds(run: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - began


def _cuda_seconds(run: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def extra_bytes(run: Callable[[], object], device: str) -> int | None:
    """Most memory that one call holds beyond what is held before it, results included.

    On a GPU by torch's allocator. On Linux by the high-water mark of resident memory, after the
    allocator gave back what it kept; None elsewhere.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # sets the high-water mark to the present
    before = _resident_bytes("VmRSS")
    run()
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The same work as one CUDA graph; results stay in the buffers of the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay():
        graph.replay()
        return outputs

    return replay
