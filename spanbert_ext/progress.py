"""How far a command is: durations, and progress over bytes. Nothing here imports torch."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


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


class ByteProgress:
    """Shows how far `prepare` is: a bar for each pass on a terminal, else a line every few seconds.

    Args:
        seconds: between lines.
    """

    def __init__(self, seconds: float = 5.0):
        self._seconds = seconds
        self._doing = ""
        self._bar: tqdm | None = None

    def __call__(self, doing: str, done: int, total: int) -> None:
        """`done` of `total` bytes of a pass; what is done at its first call was done before."""
        if doing != self._doing:
            self._begin(doing, done, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._said >= self._seconds and done > self._before:
            rate = (done - self._before) / (now - self._began)
            left = format_seconds((total - done) / rate)
            print(
                f"{doing} {done / 1e6:.1f}/{total / 1e6:.1f} MB  {rate / 1e6:.2f} MB/s  ETA {left}",
                flush=True,
            )
            self._said = now

    def _begin(self, doing: str, done: int, total: int) -> None:
        self.close()
        self._doing, self._before = doing, done
        self._began = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=doing, unit="B", unit_scale=True, dynamic_ncols=True
            )

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
