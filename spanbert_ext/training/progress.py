"""How far a command is: durations, and bars or lines that show it. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal

from tqdm import tqdm

Listener = Callable[[str, int, int], None]
# Of the thread that computes; whoever waits for it sets one, what computes deep inside tells it.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def watched_by(listener: Listener) -> Iterator[None]:
    """Let `tell` reach a listener inside this block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(doing: str, done: int, total: int) -> None:
    """`done` of `total` parts of a long computation are done; does nothing where nobody watches."""
    listener = _listener.get()
    if listener is not None:
        listener(doing, done, total)


def format_seconds(seconds: float) -> str:
    """5 -> 5s, 65 -> 1m05s, 3700 -> 1h01m, 200000 -> 2d07h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


class Progress:
    """Shows how far a command is: a bar for each pass on a terminal, else a line every few seconds.

    Args:
        seconds: between lines.
        unit: "B" counts bytes; others are words behind the numbers, as in " records".
        stream: the lines go to stdout or to stderr.
        passing: the bar of a pass appears when it takes longer than a line would, and goes away at
            its end.
    """

    def __init__(
        self,
        seconds: float = 5.0,
        unit: str = "B",
        stream: Literal["stdout", "stderr"] = "stdout",
        passing: bool = False,
    ):
        self._seconds, self._unit, self._stream = seconds, unit, stream
        self._look = {"leave": False, "delay": seconds} if passing else {}
        self._doing, self._done = "", 0
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """`done` of `total` of a pass; what is done at its first call was done before."""
        if doing != self._doing or done < self._done:
            self._begin(doing, done, total)
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._said >= self._seconds and self._before < done < total:
            rate = (done - self._before) / (now - self._began)
            left = format_seconds((total - done) / rate)
            shown = self._amounts(done, total, rate)
            print(f"{doing} {shown}  ETA {left}", flush=True, file=getattr(sys, self._stream))
            self._said = now

    def _amounts(self, done: int, total: int, rate: float) -> str:
        if self._unit != "B":
            return f"{done:,}/{total:,}{self._unit}"
        size, unit = (1e6, "MB") if total >= 1e6 else (1e3, "kB")
        digits = 2 if unit == "MB" else 1
        return f"{done / size:.1f}/{total / size:.1f} {unit}  {rate / size:.{digits}f} {unit}/s"

    def _begin(self, doing: str, done: int, total: int) -> None:
        self.close()
        self._doing, self._before = doing, done
        self._began = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=doing, unit=self._unit, unit_scale=True,
                dynamic_ncols=True, **self._look,
            )  # fmt: skip

    def close(self) -> None:
        """End the bar."""
        self._doing = ""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
