"""The training loop of pre-training and of every task: small, visible, exact.

One step is: fetch the step's micro-batches; add up their target counts; forward and backward each
with the loss divided by those sums, so that the accumulated gradient is the big batch's; clip;
update. Nothing reads back from the device outside the logging branch. `HostStep` does that with
batches made on the host, `device_step.DeviceStep` with batches that never leave the device.
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

from spanbert_ext.errors import NumericsError
from spanbert_ext.training.optimizer import learning_rate, set_learning_rate
from spanbert_ext.training.run_log import RunLog

MAX_SKIPPED_IN_A_ROW = 10


class Task(Protocol):
    """What the loop asks of pre-training or of a fine-tuning task. Losses are device scalars, never
    read here.

    `loss_names` are the parts that are logged. `counts` gives the int64 [C] divisors a micro-batch
    contributes (C: one per loss part, or whatever the task's loss divides by). `loss` gets the
    divisors of the whole step and returns the loss to differentiate and the detached parts
    [len(loss_names)], all divided by them, so that sums over micro-batches are the values of the
    big batch.
    """

    loss_names: Sequence[str]

    def batches(self, step: int) -> list[Any]: ...
    def num_tokens(self, micro_batch: Any) -> int: ...
    def counts(self, micro_batch: Any) -> torch.Tensor: ...
    def loss(
        self, model: nn.Module, micro_batch: Any, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Step(Protocol):
    """How the loop does an update: calls return its number of tokens; nothing waits but `totals`
    when it is read.
    """

    totals: DeviceTotals

    def __call__(self, step: int) -> int: ...


@dataclass(frozen=True)
class LoopSettings:
    """Numbers the loop needs; see PretrainConfig for their meaning."""

    steps: int
    peak_lr: float
    warmup_steps: int
    clip_norm: float
    precision: str
    log_every: int


@dataclass
class Progress:
    """What changes while the loop runs and belongs into a checkpoint."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag; a second signal ends the process at once.

    SIGUSR1 and SIGUSR2 count too: batch schedulers announce the end of a slot with them.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)


class DeviceTotals:
    """Losses, gradient norm and skipped updates summed on the device between two log lines.

    Every sum is updated in place, so that `add` can be part of a captured step.
    """

    def __init__(self, parts: int, device: torch.device):
        self._sums = torch.zeros(parts + 2, device=device)  # parts, gradient norm, steps
        self._one = torch.ones(1, device=device)
        self.in_a_row = torch.zeros((), device=device)
        self.worst = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)

    def add(self, parts: torch.Tensor, norm: torch.Tensor, found_inf: torch.Tensor) -> None:
        """Add one step; `found_inf` is 1 where its update was skipped."""
        self._sums += torch.cat([parts, norm.reshape(1), self._one])
        self.in_a_row.add_(1).mul_(found_inf)
        self.worst.copy_(torch.maximum(self.worst, self.in_a_row))
        self.skipped += found_inf

    def read(self) -> tuple[list[float], float, int, int]:
        """(means of the parts, mean norm, skipped, longest run of skips) since the last call. Waits
        for the device.
        """
        means = self._sums[:-1] / self._sums[-1].clamp(min=1)
        values = torch.cat([means, self.skipped[None], self.worst[None]]).tolist()
        self._sums.zero_()
        self.skipped.zero_()
        *parts, norm, skipped, worst = values
        return parts, norm, int(skipped), int(worst)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def accumulate(
    model: Callable, task: Task, micro_batches: Sequence[Any], device: torch.device, precision: str
) -> torch.Tensor:
    """Forward and backward of one step's micro-batches; gradients are added to `.grad`.

    Returns:
        loss parts of the whole batch, [len(task.loss_names)] fp32 on the device.
    """
    totals = torch.stack([task.counts(micro) for micro in micro_batches]).sum(0)
    parts = torch.zeros(len(task.loss_names), device=device)
    for micro in micro_batches:
        with autocast(device, precision):
            loss, micro_parts = task.loss(model, micro, totals)
        loss.backward()
        parts += micro_parts
    return parts


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and apply the gradients, or skip the update if their norm is not finite; clears them.

    The skip is decided on the device: fused AdamW leaves parameters, moments and step count alone
    where `found_inf` is 1 (the interface GradScaler uses).

    Returns:
        (gradient norm before clipping, found_inf), both fp32 scalars on the device.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    found_inf = (~torch.isfinite(norm)).float()
    # The fused update divides by grad_scale on the way: clipping costs no pass of its own.
    optimizer.grad_scale = (norm / clip_norm).clamp(min=1).float() if clip_norm > 0 else None
    optimizer.found_inf = found_inf
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, found_inf


class HostStep:
    """An update whose batches the host makes; a call does one.

    Args:
        model: its parameters are trained.
        task: gives batches and losses.
        forward: called in place of the model (the compiled model); default the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        settings: LoopSettings,
        forward: Callable | None = None,
    ):
        self._model, self._optimizer, self._task = model, optimizer, task
        self._settings = settings
        self._forward = model if forward is None else forward
        self._device = next(model.parameters()).device
        self.totals = DeviceTotals(len(task.loss_names), self._device)

    def __call__(self, step: int) -> int:
        """Update `step`; its number of tokens."""
        s = self._settings
        micro_batches = self._task.batches(step)
        parts = accumulate(self._forward, self._task, micro_batches, self._device, s.precision)
        rate = learning_rate(step, s.steps, s.warmup_steps, s.peak_lr)
        set_learning_rate(self._optimizer, rate)
        self.totals.add(parts, *update(self._model, self._optimizer, s.clip_norm))
        return sum(self._task.num_tokens(micro) for micro in micro_batches)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    settings: LoopSettings,
    progress: Progress,
    log: RunLog,
    after_step: Callable[[int], None],
    stop: StopRequest,
    run_step: Step | None = None,
) -> None:
    """Run from `progress.step` to `settings.steps`, or until a stop is requested.

    Args:
        after_step: called with the number of finished updates; validates and saves.
        run_step: how an update is done; default a `HostStep`.

    Raises:
        NumericsError: ten updates in a row had non-finite gradients.
    """
    run_step = run_step or HostStep(model, optimizer, task, settings)
    model.train()
    began, tokens = time.monotonic(), 0
    while progress.step < settings.steps and stop.signal is None:
        step_tokens = run_step(progress.step)
        progress.step += 1
        progress.tokens += step_tokens
        tokens += step_tokens
        log.advance(progress.step)
        if progress.step % settings.log_every == 0 or progress.step == settings.steps:
            means, norm, skipped, worst = run_step.totals.read()
            losses = dict(zip(task.loss_names, means, strict=True))
            elapsed = time.monotonic() - began
            rate = learning_rate(
                progress.step - 1, settings.steps, settings.warmup_steps, settings.peak_lr
            )
            _note_skips(progress, skipped, worst, log)
            log.train(progress.step, losses, rate, norm, tokens / elapsed)
            began, tokens = time.monotonic(), 0
        paused = time.monotonic()
        after_step(progress.step)
        began += time.monotonic() - paused


def _note_skips(progress: Progress, skipped: int, worst: int, log: RunLog) -> None:
    if skipped:
        progress.skipped += skipped
        log.say(f"step {progress.step}: {skipped} update(s) skipped, the gradient was not finite")
        log.record("skipped", progress.step, {"updates": skipped, "in_a_row": worst})
    if worst >= MAX_SKIPPED_IN_A_ROW:
        raise NumericsError(
            f"{worst} updates in a row had non-finite gradients (seen at step {progress.step}); "
            f"the last "
            "checkpoint is good. Lower optimizer.peak_lr, or try precision fp32"
        )


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, micro_batches: Iterator[Any], precision: str
) -> dict[str, float]:
    """Loss parts over all micro-batches, each part divided by all its targets; dropout off, fixed
    masks.

    A part without a target is 0. Needs `counts` to give one divisor per loss part.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = torch.zeros(len(task.loss_names), dtype=torch.float64, device=device)
    counted = torch.zeros(len(task.loss_names), dtype=torch.int64, device=device)
    for micro in micro_batches:
        counts = task.counts(micro)
        with autocast(device, precision):
            _, micro_parts = task.loss(model, micro, counts)
        parts += micro_parts.double() * counts
        counted += counts
    model.train(was_training)
    means = (parts / counted.clamp(min=1)).tolist()
    return dict(zip(task.loss_names, means, strict=True))
