"""A `DeviceStep` as CUDA graphs: the host starts a graph and does nothing else.

One graph is the whole update; with gradient accumulation there are three: the first micro-batch,
any further one (replayed as often as there are), and the end. The graphs share one memory pool and
are replayed in the order of their capture.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.guard import GradientGuard
from spanbert_ext.training.loop import DeviceTotals

logger = logging.getLogger("spanbert_ext")

# Updates before the capture: libraries start up, the optimizer makes its state, torch.compile
# compiles. They are ordinary updates of the run.
WARM_UP_STEPS = 3


def plan(stages: Sequence[Callable]) -> list[tuple[list[Callable], int]]:
    """Which calls make a graph together, and how often it is replayed before the next one.

    An update of two stages (no accumulation) is one graph; otherwise equal neighbours are one graph
    that is replayed.
    """
    if len(stages) == 2:
        return [(list(stages), 1)]
    graphs: list[tuple[list[Callable], int]] = []
    for stage in stages:
        if graphs and graphs[-1][0] == [stage]:
            graphs[-1] = ([stage], graphs[-1][1] + 1)
        else:
            graphs.append(([stage], 1))
    return graphs


def capture_place(device: torch.device) -> tuple[torch.cuda.Stream, tuple[int, int]]:
    """A stream to warm up and capture on, and a pool for the memory of graphs."""
    if device.type != "cuda":
        raise ValueError(f"graphs need a CUDA device; the model is on {device}")
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def behind(stream: torch.cuda.Stream) -> Iterator[None]:
    """What is queued inside comes after what the current stream holds, and before what follows."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def record(calls: Sequence[Callable], stream: torch.cuda.Stream, pool) -> torch.cuda.CUDAGraph:
    """The calls as a graph; nothing of them is executed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        for call in calls:
            call()
    return graph


class GraphedStep:
    """A `loop.Step` that replays a captured `DeviceStep`.

    The first updates of a process run without graphs, on the stream that is captured later.
    Gradients live in the graphs' memory; outside an update `.grad` is None.

    Args:
        step: on a CUDA device, not called by anybody else any more.
        required: False lets a run whose step cannot be captured go on without graphs, and says so.

    Raises:
        ValueError: the step is not on a CUDA device.
        RuntimeError: from a call, the capture failed and is required.
    """

    def __init__(self, step: DeviceStep, required: bool = True):
        self._step, self._required = step, required
        self._stream, self._pool = capture_place(step.device)
        self._graphs: list[tuple[torch.cuda.CUDAGraph, int]] = []
        self._warm_up = WARM_UP_STEPS

    @property
    def totals(self) -> DeviceTotals:
        """Sums since they were read last."""
        return self._step.totals

    @property
    def guard(self) -> GradientGuard:
        """Verdicts since they were read last."""
        return self._step.guard

    @property
    def captured(self) -> bool:
        """Whether updates are replays by now."""
        return bool(self._graphs)

    def __call__(self, step: int) -> int:
        """Update `step`; its number of tokens."""
        tokens = self._step.data.seek(step)
        if self._warm_up == 0:
            self._capture()
        if self._graphs:
            for graph, times in self._graphs:
                for _ in range(times):
                    graph.replay()
        else:
            with behind(self._stream):
                for run in self._step.stages():
                    run()
        self._warm_up -= 1
        return tokens

    def _capture(self) -> None:
        optimizer = self._step.optimizer
        _set_capturable(optimizer, True)
        try:
            self._graphs = [
                (record(calls, self._stream, self._pool), times)
                for calls, times in plan(self._step.stages())
            ]
        except RuntimeError as error:
            if self._required:
                raise
            reason = str(error).splitlines()[0]
            logger.warning("the step cannot be captured and runs without graphs: %s", reason)
            optimizer.zero_grad(set_to_none=True)
            _set_capturable(optimizer, False)


def _set_capturable(optimizer: torch.optim.Optimizer, value: bool) -> None:
    # torch refuses to capture an optimizer without it; the fused update does not look at it.
    for group in optimizer.param_groups:
        group["capturable"] = value
