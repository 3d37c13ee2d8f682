"""The training loop of pre-training and of every task: small, visible, exact.

One step is: fetch the step's micro-batches; add up their target counts, over all ranks; forward and
backward each with the loss divided by those sums, so that the accumulated gradient is the big
batch's; clip; update. Nothing reads back from the device outside the logging branch. `HostStep`
does that with batches made on the host, `device_step.DeviceStep` with batches that never leave the
device.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from spanbert_ext.training.guard import GradientGuard
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.optimizer import learning_rate, set_learning_rate
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.replica import Replica, whole
from spanbert_ext.training.run_log import RunLog
from spanbert_ext.training.signals import handled


class Step(Protocol):
    """How the loop does an update: calls return its number of tokens; nothing waits but `totals`
    when it is read.
    """

    totals: DeviceTotals
    guard: GradientGuard

    def __call__(self, step: int) -> int: ...


@dataclass
class Progress:
    """What changes while the loop runs and belongs into a checkpoint."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag; a second signal ends the process at once.

    SIGUSR1 and SIGUSR2 count too: batch schedulers announce the end of a slot with them. Outside of
    the main thread signals are left alone (`signals.handled`).

    Args:
        ranks: a signal to any of them stops all of them after the same step.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.signal: signal.Signals | None = None
        self._ranks = ranks

    def __enter__(self) -> StopRequest:
        self._handled = handled(self._handle)
        self._handled.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._handled.__exit__(*error)

    def requested(self) -> bool:
        """Whether to stop now; every rank must ask before every step."""
        number = self._ranks.largest(self.signal or 0)
        if number:
            self.signal = signal.Signals(number)
        return number > 0

    def _handle(self, number: int, _frame: Any) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)


class DeviceTotals:
    """Losses and gradient norm of applied updates, summed on the device between two log lines.

    Every sum is updated in place, so that `add` can be part of a captured step.

    Args:
        parts: number of loss parts.
        device: of the sums.
        ranks: each has a share of every loss part.
    """

    def __init__(self, parts: int, device: torch.device, ranks: Ranks = ALONE):
        self._sums = torch.zeros(parts + 2, device=device)  # parts, gradient norm, steps
        self._one = torch.ones(1, device=device)
        self._ranks = ranks

    def add(self, parts: torch.Tensor, norm: torch.Tensor, skipped: torch.Tensor) -> None:
        """Add one step, unless `skipped` is 1: then its numbers may be anything."""
        step = torch.cat([parts, norm.reshape(1), self._one])
        self._sums += torch.where(skipped > 0, torch.zeros_like(step), step)

    def read(self) -> tuple[list[float], float]:
        """(means of the parts, mean norm) since the last call; NaN where no update was applied.
        Waits for the device.
        """
        parts = self._ranks.add_up(self._sums[:-2].clone())
        *means, norm = (torch.cat([parts, self._sums[-2:-1]]) / self._sums[-1]).tolist()
        self._sums.zero_()
        return means, norm


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def accumulate(
    forward: Callable,
    objective: Objective,
    micro_batches: Sequence[Any],
    device: torch.device,
    precision: str,
) -> torch.Tensor:
    """Forward and backward of one step's micro-batches; gradients are added to `.grad`.

    Args:
        forward: a `Replica`, or a model that trains alone.

    Returns:
        this rank's share of the whole batch's loss parts, [len(objective.loss_names)] fp32 on the
        device.
    """
    replica = forward if isinstance(forward, Replica) else Replica(forward)
    totals = replica.ranks.add_up(torch.stack([objective.counts(m) for m in micro_batches]).sum(0))
    parts = torch.zeros(len(objective.loss_names), device=device)
    for number, micro in enumerate(micro_batches, 1):
        with replica.adding(last=number == len(micro_batches)):
            with autocast(device, precision):
                loss, micro_parts = objective.loss(replica, micro, totals)
            replica.backward(loss)
        parts += micro_parts
    return parts


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    guard: GradientGuard | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and apply the gradients, or skip the update; clears them.

    The skip is decided on the device: fused AdamW leaves parameters, moments and step count alone
    where `found_inf` is 1 (the interface GradScaler uses).

    Args:
        guard: decides; without one an update is skipped where the norm is not finite.

    Returns:
        (gradient norm before clipping, whether the update was skipped), fp32 scalars on the device.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    # The fused update divides by grad_scale on the way: clipping costs no pass of its own.
    optimizer.grad_scale = (norm / clip_norm).clamp(min=1).float() if clip_norm > 0 else None
    return norm, apply_gradients(optimizer, norm, guard)


def apply_gradients(
    optimizer: torch.optim.Optimizer, norm: torch.Tensor, guard: GradientGuard | None = None
) -> torch.Tensor:
    """Apply gradients of this norm, or skip them, as `update` does; clears them. Returns whether
    they were skipped."""
    skipped = guard.judge(norm) if guard else (~torch.isfinite(norm)).float()
    optimizer.found_inf = skipped
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return skipped


class HostStep:
    """An update whose batches the host makes; a call does one.

    Args:
        model: its parameters are trained.
        objective: gives batches and losses.
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
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._settings = settings
        self._replica = replica or Replica(model)
        self._device = next(model.parameters()).device
        self.totals = DeviceTotals(len(objective.loss_names), self._device, self._replica.ranks)
        self.guard = GradientGuard(settings.numerics, settings.log_every, self._device)

    def __call__(self, step: int) -> int:
        """Update `step`; its number of tokens."""
        s = self._settings
        micro_batches = self._objective.data.batches(step)
        parts = accumulate(self._replica, self._objective, micro_batches, self._device, s.precision)
        self.totals.add(parts, *self._update(step))
        return self._objective.data.num_tokens(step)

    def _update(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`update` at the step's learning rate."""
        s = self._settings
        rate = learning_rate(step, s.steps, s.warmup_steps, s.peak_lr)
        set_learning_rate(self._optimizer, rate)
        return update(self._model, self._optimizer, s.clip_norm, self.guard)


def train(
    model: nn.Module,
    run_step: Step,
    loss_names: Sequence[str],
    settings: LoopSettings,
    progress: Progress,
    log: RunLog,
    stop: StopRequest,
    inspect: Callable[[], bool],
    after_step: Callable[[int], None],
) -> None:
    """Run from `progress.step` to `settings.steps`, or until a stop is requested.

    Args:
        model: put into training mode.
        run_step: does an update.
        loss_names: of `run_step.totals`.
        progress: moves on; `inspect` and `after_step` may move it back.
        inspect: called before a log line; judges the steps since the last one (`NumericsWatch`) and
            says whether the run went back to an earlier step.
        after_step: called with the number of finished updates; validates and saves.

    Raises:
        NumericsError: from `inspect`.
    """
    model.train()
    began, tokens = time.monotonic(), 0
    while progress.step < settings.steps and not stop.requested():
        step_tokens = run_step(progress.step)
        progress.step += 1
        progress.tokens += step_tokens
        tokens += step_tokens
        log.advance(progress.step)
        if progress.step % settings.log_every == 0 or progress.step == settings.steps:
            went_back = inspect()
            means, norm = run_step.totals.read()
            if went_back:
                began, tokens = time.monotonic(), 0
                continue
            losses = dict(zip(loss_names, means, strict=True))
            elapsed = time.monotonic() - began
            rate = learning_rate(
                progress.step - 1, settings.steps, settings.warmup_steps, settings.peak_lr
            )
            log.train(progress.step, losses, rate, norm, tokens / elapsed)
            began, tokens = time.monotonic(), 0
        paused, reached = time.monotonic(), progress.step
        after_step(reached)
        began += time.monotonic() - paused
        if progress.step < reached:  # it went back: what was added up since then did not happen
            run_step.totals.read()
            began, tokens = time.monotonic(), 0


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    micro_batches: Iterator[Any],
    precision: str,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Loss parts over the micro-batches of all ranks, each part divided by all its targets; dropout
    off, fixed masks.

    A part without a target is 0. Needs `counts` to give one divisor per loss part. Every rank must
    bring as many micro-batches.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = torch.zeros(len(objective.loss_names), dtype=torch.float64, device=device)
    counted = torch.zeros(len(objective.loss_names), dtype=torch.int64, device=device)
    for micro in micro_batches:
        counts = objective.counts(micro)
        with autocast(device, precision):
            _, micro_parts = objective.loss(model, micro, counts)
        parts += micro_parts.double() * counts
        counted += counts
    model.train(was_training)
    means = (ranks.add_up(parts) / ranks.add_up(counted).clamp(min=1)).tolist()
    return dict(zip(objective.loss_names, means, strict=True))
