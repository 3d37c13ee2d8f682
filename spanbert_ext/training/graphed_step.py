"""A `DeviceStep` as CUDA graphs: the host starts a graph and does nothing else.

One graph is the whole update; with gradient accumulation there are three: the first micro-batch,
any further one (replayed as often as there are), and the end. The graphs share one memory pool and
are replayed in the order of their capture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from spanbert_ext.training.device_step import DeviceStep
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


class GraphedStep:
    """A `loop.Step` that replays a captured `DeviceStep`.

    The first updates of a process run without graphs, on the stream that is captured later.
    Gradients live in the graphs' memory; outside an update `.grad` is None.

    Args:
        step: on a CUDA device, not called by anybody else any more.
        required: False lets a run whose step cannot be captured go on without graphs, and says so.

    Raises:
        RuntimeError: the capture failed and is required.
    """

    def __init__(self, step: DeviceStep, required: bool = True):
        if step.device.type != "cuda":
            raise ValueError(f"graphs need a CUDA device; the model is on {step.device}")
        self._step, self._required = step, required
        self._stream = torch.cuda.Stream(step.device)
        self._graphs: list[tuple[torch.cuda.CUDAGraph, int]] = []
        self._warm_up = WARM_UP_STEPS

    @property
    def totals(self) -> DeviceTotals:
        """Sums since they were read last."""
        return self._step.totals

    @property
    def captured(self) -> bool:
        """Whether the next update is a replay."""
        return bool(self._graphs)

    def __call__(self, step: int) -> int:
        """Update `step`; its number of tokens."""
        tokens = self._step.task.seek(step)
        if not self._graphs and self._warm_up == 0:
            self._capture()
        if self._graphs:
            for graph, times in self._graphs:
                for _ in range(times):
                    graph.replay()
            return tokens
        current = torch.cuda.current_stream(self._step.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for run in self._step.stages():
                run()
        current.wait_stream(self._stream)
        self._warm_up -= 1
        return tokens

    def _capture(self) -> None:
        """Record the stages; nothing of them is executed."""
        pool = torch.cuda.graph_pool_handle()
        for group in self._step.optimizer.param_groups:
            group["capturable"] = True  # torch refuses to be captured without; changes no number
        graphs = []
        try:
            for calls, times in plan(self._step.stages()):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                    for call in calls:
                        call()
                graphs.append((graph, times))
        except RuntimeError as error:
            if self._required:
                raise
            reason = str(error).splitlines()[0]
            logger.warning("the step cannot be captured and runs without graphs: %s", reason)
            self._warm_up = -1  # never again
            self._step.optimizer.zero_grad(set_to_none=True)
            for group in self._step.optimizer.param_groups:
                group["capturable"] = False
        else:
            self._graphs = graphs
