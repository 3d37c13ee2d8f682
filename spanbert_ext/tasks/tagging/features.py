"""From the tokens of an example to what the encoder reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample
from spanbert_ext.tasks.tagging.schemes import Span
from spanbert_ext.tasks.tagging.windows import Window, windows
from spanbert_ext.tasks.task import Feature
from spanbert_ext.text import WordTokens

IGNORED = -100


def features_of(
    place: int,
    example: TaggedExample,
    tokens: WordTokens,
    words: np.ndarray | None,
    labels: np.ndarray | None,
    specials: tuple[int, int],
    options: TaggingOptions,
) -> Iterator[Feature]:
    """The windows of an example, one at least. A gold tag is in one of them, and ignored in others.

    Words that share a token (in scripts without blanks) have one row, that of the first of them.

    Args:
        place: of the example among the others.
        tokens: of its words, none with more than a window holds.
        words: [w] int64, those with tokens of their own; None: all.
        labels: [w] int64; None where there are no gold tags.
        specials: ids of [CLS] and [SEP].
    """
    bounds, first = tokens.bounds, tokens.first
    if words is not None:
        bounds, first = np.append(bounds[words], bounds[-1]), first[words]
    sentences = sentence_ranges(example, words)
    room, overlap = options.length - 2, options.overlap
    parts = list(windows(np.diff(bounds), sentences, room, overlap, options.join))
    cls, sep = specials
    for window in parts or [Window(0, 0, 0, 0)]:
        start, stop = bounds[window.start], bounds[window.stop]
        yield Feature(
            example=place,
            input_ids=np.concatenate([[cls], tokens.ids[start:stop], [sep]]).astype(np.int64),
            rows=1 + first[window.start : window.stop] - start,
            labels=None if labels is None else _owned(labels, window),
            place=replace(window, words=words),
        )


def sentence_ranges(example: TaggedExample, words: np.ndarray | None) -> list[tuple[int, int]]:
    """The sentences of an example, counted in some of its words; None: in all."""
    ranges = list(example.sentence_ranges())
    if words is None:
        return ranges
    return [tuple(np.searchsorted(words, own).tolist()) for own in ranges]


def counted_in(words: np.ndarray | None, spans: Sequence[Span]) -> list[Span]:
    """Spans of words, counted in some of the words; None: in all.

    A span that begins or ends inside a token has all of it, if no span before it has.
    """
    if words is None:
        return list(spans)
    found, done = [], 0
    for start, end, kind in spans:
        first = max(int(np.searchsorted(words, start, side="right")) - 1, done)
        last = int(np.searchsorted(words, end))
        if first < last:
            found.append(Span(first, last, kind))
            done = last
    return found


def _owned(labels: np.ndarray, window: Window) -> np.ndarray:
    """[words of the window] int64: a word in two windows is trained in the one that owns it."""
    own = labels[window.start : window.stop].copy()
    own[: window.first - window.start] = IGNORED
    own[window.last - window.start :] = IGNORED
    return own
