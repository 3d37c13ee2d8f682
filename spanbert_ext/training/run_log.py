"""What a run says: one line every few steps, a bar on a terminal, one JSON object per event in
metrics.jsonl.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spanbert_ext.device import peak_memory
from spanbert_ext.errors import StorageError
from spanbert_ext.files import write_text
from spanbert_ext.training.progress import format_seconds
from spanbert_ext.training.trackers import Trackers


def memory_gb(device: torch.device) -> float:
    """Largest memory used so far, in 10^9 bytes: of the accelerator, or of this process on a
    CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_memory() / 1e9


class RunLog:
    """Writes metrics.jsonl, the console and the trackers.

    Args:
        path: the JSONL file; None, as on ranks above 0, writes and says nothing.
        first_step, steps: where this process starts and where the run ends, for the bar and the
            ETA.
        device, backend: shown on every line.
        trackers: get the numbers of every log line and validation; closed with the log.
    """

    def __init__(
        self,
        path: Path | None,
        first_step: int,
        steps: int,
        device: torch.device,
        backend: str,
        trackers: Trackers | None = None,
    ):
        self._path = path
        self._trackers = trackers
        self._steps = steps
        self._device = device
        self._backend = backend
        self._began = time.monotonic()
        self._first_step = first_step
        self._saves, self._save_seconds = 0, 0.0
        on_terminal = path is not None and sys.stderr.isatty()
        self._bar = (
            tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)
            if on_terminal
            else None
        )

    def close(self) -> None:
        """End the bar and the trackers, and say how long training stood still to save."""
        if self._saves:
            elapsed = time.monotonic() - self._began
            self.say(
                f"{self._saves} checkpoint(s) took {self._save_seconds:.2f} s, "
                f"{self._save_seconds / elapsed:.1%} of the time"
            )
        if self._bar is not None:
            self._bar.close()
        if self._trackers is not None:
            self._trackers.close()

    def say(self, text: str) -> None:
        """A line for the person watching."""
        if self._path is None:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def advance(self, step: int) -> None:
        """Move the bar to `step` finished updates."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def go_back(self, step: int) -> None:
        """The run continues behind an earlier step: what was logged since then did not happen."""
        if self._path is not None:
            rewind(self._path, step)
        if self._trackers is not None:
            self._trackers.go_back(step)
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def train(
        self, step: int, losses: dict[str, float], lr: float, norm: float, rate: float
    ) -> None:
        """The log line of a step: losses, learning rate, gradient norm, tokens/s, memory, backend,
        ETA.
        """
        memory = memory_gb(self._device)
        left = (
            (time.monotonic() - self._began)
            / max(1, step - self._first_step)
            * (self._steps - step)
        )
        shown = "  ".join(f"{_short(name)} {value:.4f}" for name, value in losses.items())
        self.say(
            f"step {step}/{self._steps}  {shown}  lr {lr:.2e}  grad {norm:.2f}  {rate:,.0f} tok/s  "
            f"{memory:.2f} GB  {self._backend}  ETA {format_seconds(left)}"
        )
        row = {"lr": lr, "grad_norm": norm, "tokens_per_s": rate, "memory_gb": memory}
        self.record("train", step, losses | row | {"backend": self._backend})
        self._track("train", step, losses | row)

    def validation(self, step: int, losses: dict[str, float]) -> None:
        """The held-out losses after `step` updates."""
        shown = "  ".join(f"{_short(name)} {value:.4f}" for name, value in losses.items())
        self.say(f"step {step}/{self._steps}  held-out  {shown}")
        self.record("validation", step, losses)
        self._track("validation", step, losses)

    def _track(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._trackers is not None:
            self._trackers.log(step, group, values)

    def checkpoint(self, step: int, name: str, size: int, seconds: float) -> None:
        """A checkpoint of `size` bytes was committed; training stood still for `seconds`."""
        self._saves += 1
        self._save_seconds += seconds
        row = {"path": name, "bytes": size, "seconds": round(seconds, 4)}
        self.record("checkpoint", step, row)

    def record(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite is written as null."""
        if self._path is None:
            return
        clean = {k: _finite_or_none(v) for k, v in values.items()}
        line = json.dumps({"event": event, "step": step, "time": round(time.time(), 3)} | clean)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


def _short(name: str) -> str:
    return name.removesuffix("_loss")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewind(path: Path, step: int) -> None:
    """Drop lines of metrics.jsonl that lie after `step`, and a half-written last line.

    A killed run has logged steps that its last checkpoint does not know; they will be done and
    logged again.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))
