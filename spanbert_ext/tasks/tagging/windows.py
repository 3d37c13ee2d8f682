"""Windows over the words of an example: what the encoder reads at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """Words `start` to `stop` are read; the tags of `first` to `last` are taken from here.

    All four count words of the example that have tokens of their own; `stop` and `last` are
    exclusive.

    Args:
        words: [w] int64, those words of the example; None: every one.
    """

    start: int
    stop: int
    first: int
    last: int
    words: np.ndarray | None = field(default=None, compare=False)


def windows(
    sizes: np.ndarray,
    sentences: Iterable[tuple[int, int]],
    room: int,
    overlap: int,
    join: bool,
) -> Iterator[Window]:
    """Windows in which every word's tag is taken from exactly one.

    Whole sentences share a window while they fit; one that is longer than a window is cut, with
    words of context on both sides of a cut.

    Args:
        sizes: [words] int, pieces of each word, 1..room.
        sentences: [start, stop) of each, in order, all words covered.
        room: most pieces of a window.
        overlap: words that two windows of a sentence share, fewer where they would take more than
            half the room.
        join: whether sentences share windows.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])
    start = stop = 0  # whole sentences that wait for more
    for first, last in sentences:
        if stop > start and (not join or ends[last] - ends[start] > room):
            yield Window(start, stop, start, stop)
            start = stop
        if ends[last] - ends[first] > room:
            yield from _cut(ends, first, last, room, overlap)
            start = last
        stop = last
    if stop > start:
        yield Window(start, stop, start, stop)


def _cut(ends: np.ndarray, first: int, last: int, room: int, overlap: int) -> Iterator[Window]:
    parts = []
    start = first
    while True:
        stop = min(last, int(np.searchsorted(ends, ends[start] + room, side="right")) - 1)
        parts.append((start, stop))
        if stop == last:
            break
        # Context up to half the room: every window brings something new, and not too little.
        kept = int(np.searchsorted(ends, ends[stop] - room // 2))
        fits = int(np.searchsorted(ends, ends[stop + 1] - room))
        start = max(stop - overlap, kept, fits, start)
    bounds = _owners(parts, first, last)
    for (start, stop), own, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
        if own < end:
            yield Window(start, stop, own, end)


def _owners(parts: Sequence[tuple[int, int]], first: int, last: int) -> list[int]:
    """Where the words that each window owns begin, and the end.

    A word belongs to the window with most words on its poorer side; the edge of the sentence is no
    lack. Starts and ends of windows ascend, so that what a window owns is one range.
    """
    best = np.full(last - first, -1)
    owner = np.zeros(last - first, dtype=np.int64)
    far = last - first
    for number, (start, stop) in enumerate(parts):
        here = slice(start - first, stop - first)
        left = np.arange(stop - start) + (far if start == first else 0)
        right = np.arange(stop - start)[::-1] + (far if stop == last else 0)
        context = np.minimum(left, right)
        better = context > best[here]
        best[here][better] = context[better]
        owner[here][better] = number
    return [first + int(n) for n in np.searchsorted(owner, range(len(parts) + 1))]
