"""Probabilities of spans against summing over all sequences of tags; choice against a plain one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.tagging import spans
from spanbert_ext.tasks.tagging.schemes import Tag, spans_of
from spanbert_ext.tasks.tagging.spans import bilou_scores, bio_scores, choose


@st.composite
def probabilities(draw, letters, most):
    """[n] probabilities of each letter and of O, and the ends of the sentences."""
    words = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = rng.dirichlet([0.7] * (len(letters) + 1), size=words)
    cut = draw(st.integers(0, words))
    sentences = [(0, cut), (cut, words)] if 0 < cut < words else [(0, words)]
    return table, sentences


def every_sequence(table, letters, start, stop):
    """Tags of one sentence with their probability, words being independent."""
    for chosen in itertools.product(range(len(letters)), repeat=stop - start):
        tags = [Tag(letters[c], "" if letters[c] == "O" else "X") for c in chosen]
        yield tags, np.prod([table[start + n, c] for n, c in enumerate(chosen)])


def summed(table, letters, sentences, max_words, is_whole):
    """The probability of each span by adding up the sequences that have it."""
    scores = np.zeros((len(table), max_words))
    for start, stop in sentences:
        for tags, probability in every_sequence(table, letters, start, stop):
            for span in spans_of(tags, "drop", start):
                inner = tags[span.start - start : span.end - start]
                if span.end - span.start <= max_words and is_whole(inner):
                    scores[span.start, span.end - span.start - 1] += probability
    return scores


@given(probabilities("BI", 5), st.integers(1, 6))
def test_bio_scores_are_probabilities_of_spans(case, max_words):
    table, sentences = case
    found = bio_scores(table[:, 1], table[:, 2], sentences, max_words)
    expected = summed(table, "OBI", sentences, max_words, lambda tags: True)
    assert found == pytest.approx(expected, abs=1e-12)


def is_whole(tags):
    letters = "".join(tag.letter for tag in tags)
    return letters == "U" or (letters[0] == "B" and letters[-1] == "L" and len(letters) > 1)


@given(probabilities("BILU", 4), st.integers(1, 5))
def test_bilou_scores_are_probabilities_of_spans(case, max_words):
    table, sentences = case
    by = dict(zip("BILU", table[:, 1:].T, strict=True))
    found = bilou_scores(by, sentences, max_words)
    expected = summed(table, "OBILU", sentences, max_words, is_whole)
    assert found == pytest.approx(expected, abs=1e-12)


@given(probabilities("BI", 30), st.integers(1, 12))
def test_the_formulas_word_by_word(case, max_words):
    table, sentences = case
    begin, inside = table[:, 1], table[:, 2]
    bio = np.zeros((len(table), max_words))
    for first, last in sentences:
        for start in range(first, last):
            for stop in range(start + 1, min(last, start + max_words) + 1):
                value = begin[start] * np.prod(inside[start + 1 : stop])
                bio[start, stop - start - 1] = value * (1 - inside[stop] if stop < last else 1)
    assert bio_scores(begin, inside, sentences, max_words) == pytest.approx(bio, abs=1e-12)


def naive_choice(scores, threshold, top_k, overlapping):
    kinds, words, widths = scores.shape
    every = [
        (-scores[k, s, w], s, w, k)
        for k in range(kinds)
        for s in range(words)
        for w in range(widths)
        if scores[k, s, w] > 0 and scores[k, s, w] >= (threshold or 0)
    ]
    chosen = []
    for value, start, width, kind in sorted(every):
        free = all(start + width < s or start >= e for _, s, e, _ in chosen)
        if (overlapping or free) and (top_k is None or len(chosen) < top_k):
            chosen.append((kind, start, start + width + 1, -value))
    return chosen


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 2), st.integers(0, 8), st.integers(1, 4)),
    st.sampled_from([None, 0.0, 0.3, 0.6, 1.0]),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.sampled_from([1, 64]),
)
def test_choice_against_a_plain_one(seed, shape, threshold, top_k, overlapping, looked_at):
    scores = np.random.default_rng(seed).integers(0, 6, shape) / 5  # many ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_LOOKED_AT", looked_at)
        found = choose(scores, threshold, top_k, overlapping)
    assert found == naive_choice(scores, threshold, top_k, overlapping)


@pytest.mark.parametrize("seed", range(20))
def test_the_first_looked_at_may_be_too_few(seed, monkeypatch):
    """The best three overlap more often than not: then more are looked at."""
    monkeypatch.setattr(spans, "_LOOKED_AT", 1)
    scores = np.random.default_rng(seed).random((2, 12, 6))
    scores[:, 4] += 1.0
    found = choose(scores, top_k=3)
    assert len(found) == 3 and found == naive_choice(scores, None, 3, False)


@given(probabilities("BI", 12))
def test_above_one_half_nothing_overlaps(case):
    table, sentences = case
    scores = bio_scores(table[:, 1], table[:, 2], sentences, 12)[None]
    free, strict = (choose(scores, 0.5000001, overlapping=x) for x in (True, False))
    assert free == strict


def test_no_words():
    assert bio_scores(np.zeros(0), np.zeros(0), [(0, 0)], 3).shape == (0, 3)
    assert choose(np.zeros((1, 0, 3))) == []
