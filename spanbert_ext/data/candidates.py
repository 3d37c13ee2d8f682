"""Candidate spans aligned with pieces: one byte for each piece.

0 outside, 1 begins a span, 2 continues it, so that adjacent spans stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from spanbert_ext.data.annotators import KINDS
from spanbert_ext.errors import DataError

OUTSIDE, BEGIN, INSIDE = 0, 1, 2


def mark_candidates(
    text: str,
    spans: Iterable[tuple[int, int, str]],
    offsets: Sequence[tuple[int, int]],
    begins_word: np.ndarray,
) -> dict[str, np.ndarray]:
    """Mark the pieces of annotated spans.

    White space at a span's ends is left out, and it grows to whole words. Of spans that overlap,
    the one that begins first wins, of those the longest.

    Args:
        text: what was annotated and encoded.
        spans: (start, end, kind) in characters.
        offsets: [n] (start, end) of each piece in characters.
        begins_word: [n] bool, whether a piece begins a word; the first always does.

    Returns:
        kind -> [n] uint8

    Raises:
        DataError: a span lies outside the text or is of another kind.
    """
    words = np.cumsum(begins_word)
    starts = np.fromiter((start for start, _ in offsets), np.int64, len(offsets))
    ends = np.fromiter((end for _, end in offsets), np.int64, len(offsets))
    found: dict[str, set[tuple[int, int]]] = {kind: set() for kind in KINDS}
    for start, end, kind in spans:
        if kind not in found or not 0 <= start <= end <= len(text):
            raise DataError(
                f"the annotator gave ({start}, {end}, {kind!r}) for a text of {len(text)} "
                f"characters; expected start <= end inside it and a kind of {', '.join(KINDS)}"
            )
        covered = text[start:end]
        start += len(covered) - len(covered.lstrip())
        end -= len(covered) - len(covered.rstrip())
        pieces = np.flatnonzero((starts < end) & (ends > start))
        if pieces.size:
            first = int(np.searchsorted(words, words[pieces[0]]))
            stop = int(np.searchsorted(words, words[pieces[-1]], side="right"))
            found[kind].add((first, stop))
    return {kind: _marks(spans, len(offsets)) for kind, spans in found.items()}


def _marks(spans: set[tuple[int, int]], count: int) -> np.ndarray:
    marks, free = np.zeros(count, dtype=np.uint8), 0
    for first, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if first >= free:
            marks[first] = BEGIN
            marks[first + 1 : stop] = INSIDE
            free = stop
    return marks
