"""How probable it is that exactly these words are an entity, for every stretch of words.

With the tags of different words taken as independent, as the head gives them, words s to e-1 are
exactly one entity of a type with the probability

    bio:    P_s(B) P_s+1(I) ... P_e-1(I) (1 - P_e(I))     the last factor 1 at a sentence's end
    bilou:  P_s(B) P_s+1(I) ... P_e-1(L), or P_s(U) for one word

Two stretches that share a word, or the same one with two types, ask different tags of that word:
such events exclude each other, so that no two of them are above 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

# Stretches looked at first for each that is wanted: a long text has millions, which need not all
# be sorted.
_LOOKED_AT = 64
_SMALLEST = float(np.nextafter(0.0, 1.0))


def bio_scores(
    begin: np.ndarray,
    inside: np.ndarray,
    sentences: Iterable[tuple[int, int]],
    max_words: int,
) -> np.ndarray:
    """Probabilities of all stretches under tags in BIO.

    Args:
        begin: [n] float in [0, 1], P(B) of each word.
        inside: [n] float in [0, 1], P(I).
        sentences: [start, stop) of each; stretches across are given 0.
        max_words: longest stretch.

    Returns:
        [n, max_words] float64; row s, column w is the stretch of words s to s + w inclusive.
    """
    goes_on = np.append(np.asarray(inside, dtype=np.float64), 0.0)
    room = _room(len(begin), sentences)
    scores = np.zeros((len(begin), max_words))
    grown = np.asarray(begin, dtype=np.float64)  # P(B) P(I) ... of the words so far
    places = np.arange(len(begin))
    for width in range(1, max_words + 1):
        behind = goes_on[np.minimum(places + width, len(begin))]
        # No tag of the next sentence continues this one's.
        ends = np.where(room > width, 1.0 - behind, 1.0)
        scores[:, width - 1] = np.where(room >= width, grown * ends, 0.0)
        grown = grown * behind
    return scores


def bilou_scores(
    letters: Mapping[str, np.ndarray], sentences: Iterable[tuple[int, int]], max_words: int
) -> np.ndarray:
    """Probabilities of all stretches under tags in BILOU; like `bio_scores`.

    Args:
        letters: B, I, L and U, each [n] float in [0, 1].
    """
    begin, inside, last = (
        np.append(np.asarray(letters[letter], dtype=np.float64), 0.0) for letter in "BIL"
    )
    count = len(begin) - 1
    room = _room(count, sentences)
    scores = np.zeros((count, max_words))
    scores[:, 0] = letters["U"]
    grown = begin[:count]
    places = np.arange(count)
    for width in range(2, max_words + 1):
        end = np.minimum(places + width - 1, count)
        scores[:, width - 1] = np.where(room >= width, grown * last[end], 0.0)
        grown = grown * inside[end]
    return scores


def choose(
    scores: np.ndarray,
    threshold: float | None = None,
    top_k: int | None = None,
    overlapping: bool = False,
) -> list[tuple[int, int, int, float]]:
    """The best stretches.

    Args:
        scores: [types, n, max_words] float, in [0, 1].
        threshold: least score. Stretches of score 0 are never chosen.
        top_k: most stretches.
        overlapping: whether words may be in several; without, the better one stays.

    Returns:
        Type's number, first word, the word behind the last, score: best first; of equal ones the
        earlier, then the shorter, then the earlier type.
    """
    least = _SMALLEST if threshold is None else max(threshold, _SMALLEST)
    seen = scores.size if top_k is None else _LOOKED_AT * top_k
    while seen < scores.size:
        place = scores.size - seen
        bound = np.partition(scores, place, axis=None)[place]
        # All that are better than the bound come before all others, so the choice is the same.
        chosen = _best_first(scores, max(least, bound), top_k, overlapping)
        if bound <= least or len(chosen) == top_k:
            return chosen
        seen *= 8
    return _best_first(scores, least, top_k, overlapping)


def _best_first(
    scores: np.ndarray, least: float, top_k: int | None, overlapping: bool
) -> list[tuple[int, int, int, float]]:
    kinds, starts, widths = (scores >= least).nonzero()
    values = scores[kinds, starts, widths]
    taken = np.zeros(scores.shape[1], dtype=bool)
    chosen: list[tuple[int, int, int, float]] = []
    for n in np.lexsort((kinds, widths, starts, -values)):
        if len(chosen) == top_k:
            break
        start, stop = int(starts[n]), int(starts[n] + widths[n] + 1)
        if not overlapping:
            if taken[start:stop].any():
                continue
            taken[start:stop] = True
        chosen.append((int(kinds[n]), start, stop, float(values[n])))
    return chosen


def _room(words: int, sentences: Iterable[tuple[int, int]]) -> np.ndarray:
    """[words] int64: how many words the sentence has from each one on, itself included."""
    room = np.zeros(words, dtype=np.int64)
    for start, stop in sentences:
        room[start:stop] = np.arange(stop - start, 0, -1)
    return room
