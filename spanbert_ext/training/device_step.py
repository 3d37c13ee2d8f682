"""An update without the host: batches, masks, divisors, learning rate and totals are made on the
device from a step counter that lives there.

`DeviceStep` runs it operation by operation, on a CPU or a GPU; `graphed_step.GraphedStep` captures
the same calls in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from spanbert_ext.training.guard import GradientGuard
from spanbert_ext.training.loop import DeviceTotals, autocast, update
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.optimizer import DeviceSchedule, set_learning_rate
from spanbert_ext.training.replica import Replica


class DeviceBatches(Protocol):
    """An `objective.Batches` that makes batches on the device too.

    `seek` makes a step the next one and gives its number of tokens. `batch_on_device` makes a
    micro-batch of the step at the counter; its number is a [1] int64 tensor or an int. `advance`
    moves the counter on.
    """

    num_micro_batches: int
    step_counter: torch.Tensor

    def seek(self, step: int) -> int: ...
    def advance(self) -> None: ...
    def batch_on_device(self, micro: torch.Tensor | int) -> Any: ...


class DeviceStep:
    """A `loop.Step` that reads nothing back and copies nothing to the device (but an epoch's order
    when the epoch begins).

    Args:
        model: its parameters are trained, and are on a device.
        objective: its `data` are `DeviceBatches`.
        replica: called in place of the model; default the model, alone.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        settings: LoopSettings,
        replica: Replica | None = None,
    ):
        self.model, self.optimizer, self.data = model, optimizer, objective.data
        self._objective = objective
        self._settings = settings
        self._replica = replica or Replica(model)
        self.device = next(model.parameters()).device
        self._schedule = DeviceSchedule(
            settings.steps, settings.warmup_steps, settings.peak_lr, self.device
        )
        self.totals = DeviceTotals(len(objective.loss_names), self.device, self._replica.ranks)
        self.guard = GradientGuard(settings.numerics, settings.log_every, self.device)
        self._parts = torch.zeros(len(objective.loss_names), device=self.device)
        self._micro = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._divisors: torch.Tensor | None = None
        self._left = 0  # micro-batches of the step that are still to come

    def __call__(self, step: int) -> int:
        """Update `step`; its number of tokens."""
        tokens = self.data.seek(step)
        for run in self.stages():
            run()
        return tokens

    def stages(self) -> list[Callable[[], None]]:
        """The calls that make up an update, in order. Equal ones do the same to other data."""
        return [self.first, *[self.next] * (self.data.num_micro_batches - 1), self.end]

    def first(self) -> None:
        """The divisors of the step, then its first micro-batch."""
        data = self.data
        # A mask is a pure function of step and sequence: what is counted here is made again later,
        # which is cheaper than keeping it.
        made = [data.batch_on_device(i) for i in range(data.num_micro_batches)]
        counts = torch.stack([self._objective.counts(micro) for micro in made]).sum(0)
        self._replica.ranks.add_up(counts)
        if self._divisors is None:
            self._divisors = torch.empty_like(counts)
        self._divisors.copy_(counts)
        self._parts.zero_()
        self._micro.zero_()
        self._left = data.num_micro_batches
        self._run(made[0])

    def next(self) -> None:
        """A further micro-batch."""
        self._run(self.data.batch_on_device(self._micro))

    def _run(self, micro: Any) -> None:
        self._left -= 1
        with self._replica.adding(last=self._left == 0):
            with autocast(self.device, self._settings.precision):
                loss, parts = self._objective.loss(self._replica, micro, self._divisors)
            self._replica.backward(loss)
        self._parts.add_(parts)
        self._micro.add_(1)

    def end(self) -> None:
        """Learning rate, clipping, AdamW, totals."""
        set_learning_rate(self.optimizer, self._schedule(self.data.step_counter))
        done = update(self.model, self.optimizer, self._settings.clip_norm, self.guard)
        self.totals.add(self._parts, *done)
        self.data.advance()
