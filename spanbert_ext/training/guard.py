"""Gradients that must not be applied: not finite, or far larger than those before.

The verdict on a step is made on the device from the gradient norm alone, which is equal on all
ranks, so that they skip together and nothing waits. What was found is read at log lines and before
checkpoints: `NumericsWatch` then records the batches, and decides whether the run goes on, goes
back or ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spanbert_ext.errors import NumericsError, StorageError
from spanbert_ext.training.config import NumericsOptions
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.replica import local
from spanbert_ext.training.run_log import RunLog

_FINE, _NOT_FINITE, _SPIKE = 0, 1, 2
BAD_BATCHES = "bad_batches.jsonl"


class GradientGuard:
    """Judges every step's gradient norm on the device; shapes are fixed, so it can be captured.

    A spike is a norm above `spike_factor` medians of the last `spike_window` finite norms, once
    more than half of the window is known.

    Args:
        options: factor, window and policy.
        capacity: most steps between two calls of `read`.
        device: of the norms.
    """

    def __init__(self, options: NumericsOptions, capacity: int, device: torch.device):
        self._factor, self._skips_spikes = options.spike_factor, options.spike_policy != "warn"
        self._history = torch.zeros(capacity, 2, device=device)  # norm, verdict
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        # What is not known yet is infinite, so the median is infinite until half is known.
        self._recent = torch.full((options.spike_window,), math.inf, device=device)
        self._known = torch.zeros(1, dtype=torch.int64, device=device)

    def judge(self, norm: torch.Tensor) -> torch.Tensor:
        """1 where the step must be skipped, else 0; fp32 scalar on the device."""
        norm = norm.float().reshape(1)
        finite = torch.isfinite(norm)
        verdict = torch.where(finite, float(_FINE), float(_NOT_FINITE))
        if self._factor > 0:
            median = self._recent.sort().values[self._recent.numel() // 2]
            verdict = torch.where(finite & (norm > self._factor * median), float(_SPIKE), verdict)
            slot = self._known % self._recent.numel()
            kept = torch.where(finite, norm, self._recent.index_select(0, slot))
            self._recent.index_copy_(0, slot, kept)
            self._known += finite
        # Where nobody reads, as in a benchmark, the last place is written again and again.
        place = self._place.clamp(max=len(self._history) - 1)
        self._history.index_copy_(0, place, torch.stack([norm, verdict], dim=1))
        self._place += 1
        skipped = verdict > _FINE if self._skips_spikes else verdict == _NOT_FINITE
        return skipped.float().reshape(())

    def read(self) -> list[tuple[float, int]]:
        """(norm, verdict) of every step since the last call. Waits for the device."""
        steps = min(int(self._place), len(self._history))
        self._place.zero_()
        return [(norm, int(verdict)) for norm, verdict in self._history[:steps].tolist()]

    def recent_norms(self) -> list[float]:
        """The norms that spikes are measured against, oldest first; part of a checkpoint."""
        known, size = int(self._known), self._recent.numel()
        values = self._recent.tolist()
        first = known % size if known >= size else 0
        return [*values[first:], *values[:first]][: min(known, size)]

    def restore(self, norms: list[float]) -> None:
        """Continue from what `recent_norms` gave, in place."""
        norms = norms[-self._recent.numel() :]
        self._recent.fill_(math.inf)
        self._recent[: len(norms)] = torch.tensor(norms, device=self._recent.device)
        self._known.fill_(len(norms))
        self._place.zero_()


class NumericsWatch:
    """Reads the guard, writes bad_batches.jsonl, ends hopeless runs.

    Args:
        options: limits and policy.
        guard: of the run's step.
        describe: step -> JSON facts that identify its batch.
        log: for the person watching.
        path: of bad_batches.jsonl.
        ranks: rank 0's reading counts.
    """

    def __init__(
        self,
        options: NumericsOptions,
        guard: GradientGuard,
        describe: Callable[[int], dict[str, Any]],
        log: RunLog,
        path: Path,
        ranks: Ranks = ALONE,
    ):
        self._options, self._guard, self._describe = options, guard, describe
        self._log, self._path, self._ranks = log, path, ranks
        self._in_a_row = 0

    def inspect(self, step: int) -> tuple[int, bool]:
        """Judge the steps since the last call, the last of which made `step` finished ones.

        Returns:
            (skipped updates, whether to go back to a checkpoint before the first spike).

        Raises:
            NumericsError: too many non-finite updates in a row.
        """
        own = self._guard.read()
        found = self._ranks.decide(lambda: own)
        skipped, spikes = 0, 0
        for index, (norm, verdict) in enumerate(found):
            self._in_a_row = self._in_a_row + 1 if verdict == _NOT_FINITE else 0
            if verdict == _FINE:
                continue
            spikes += verdict == _SPIKE
            applied = verdict == _SPIKE and self._options.spike_policy == "warn"
            skipped += not applied
            self._record(step - len(found) + index, norm, verdict, applied)
            if self._in_a_row >= self._options.max_skipped:
                raise NumericsError(
                    f"{self._in_a_row} updates in a row had non-finite gradients (up to step "
                    f"{step - len(found) + index + 1}); none was applied, so the newest "
                    f"checkpoint is good; {self._path} lists the batches. Lower "
                    "optimizer.peak_lr, or try precision fp32"
                )
        return skipped, bool(spikes) and self._options.spike_policy == "rollback"

    def _record(self, step: int, norm: float, verdict: int, applied: bool) -> None:
        what = "spike" if verdict == _SPIKE else "not_finite"
        reason = f"gradient norm {norm:.3g} is a spike" if what == "spike" else "not finite"
        action = "applied" if applied else "skipped"
        self._log.say(f"step {step + 1}: update {action}, {reason}; see {self._path.name}")
        values = {"kind": what, "action": action, "grad_norm": norm}
        self._log.record("bad_batch", step + 1, values)
        if not self._ranks.is_main:
            return
        shown = values | {"grad_norm": norm if math.isfinite(norm) else str(norm)}
        line = json.dumps({"step": step + 1} | shown | self._describe(step))
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


def check_finite(model: nn.Module, ranks: Ranks, step: int) -> None:
    """Refuse to save weights that are not finite, so that every checkpoint is one to continue.

    Raises:
        NumericsError: names the first such tensors.
    """
    bad = [name for name, p in model.named_parameters() if not torch.isfinite(local(p)).all()]
    if ranks.largest(len(bad)):
        names = ", ".join(bad[:3]) or "on another rank"
        raise NumericsError(
            f"after step {step} weights are not finite ({names}); they are not saved, the newest "
            "checkpoint is good. Lower optimizer.peak_lr, or try precision fp32"
        )
