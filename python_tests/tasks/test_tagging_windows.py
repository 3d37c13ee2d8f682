"""Windows: every word is owned once, with the best context there is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.tagging.windows import Window, windows


@st.composite
def documents(draw):
    room = draw(st.integers(1, 20))
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    word = st.integers(1, room)
    small = draw(st.booleans())
    sizes = [draw(st.integers(1, min(2, room)) if small else word) for _ in range(sum(lengths))]
    ends = np.cumsum([0, *lengths]).tolist()
    ranges = list(zip(ends[:-1], ends[1:], strict=True))
    return np.array(sizes, dtype=np.int64), ranges, room, draw(st.integers(0, 12))


def test_sentences_share_windows_while_they_fit():
    sizes, sentences = np.array([2, 2, 3, 1, 1, 4]), [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert list(windows(sizes, sentences, 7, 2, True)) == [Window(0, 3, 0, 3), Window(3, 6, 3, 6)]
    alone = [Window(a, b, a, b) for a, b in sentences]
    assert list(windows(sizes, sentences, 7, 2, False)) == alone


def test_a_long_sentence_between_short_ones():
    sizes = np.ones(14, dtype=np.int64)
    found = list(windows(sizes, [(0, 2), (2, 12), (12, 14)], 6, 2, True))
    assert found == [
        Window(0, 2, 0, 2),
        Window(2, 8, 2, 7),
        Window(6, 12, 7, 12),
        Window(12, 14, 12, 14),
    ]


@given(documents(), st.booleans())
def test_every_word_is_owned_once(document, join):
    sizes, sentences, room, overlap = document
    found = list(windows(sizes, sentences, room, overlap, join))
    owned = [word for window in found for word in range(window.first, window.last)]
    assert owned == list(range(len(sizes)))
    for window in found:
        assert window.start <= window.first < window.last <= window.stop
        assert sizes[window.start : window.stop].sum() <= room


@given(documents())
def test_only_long_sentences_are_cut(document):
    sizes, sentences, room, overlap = document
    found = list(windows(sizes, sentences, room, overlap, True))
    for start, stop in sentences:
        if sizes[start:stop].sum() <= room:
            assert all(w.stop <= start or w.start >= stop or w.start <= start and stop <= w.stop
                       for w in found)  # fmt: skip


@given(documents())
def test_a_cut_sentence_is_read_little_more_than_once(document):
    sizes, sentences, room, overlap = document
    read = sum(
        int(sizes[w.start : w.stop].sum()) for w in windows(sizes, sentences, room, overlap, 1)
    )
    assert read <= 2 * sizes.sum() + room


def naive_owner(parts, word, first, last):
    def poorer_side(part):
        left = 1000 if part.start == first else word - part.start
        right = 1000 if part.stop == last else part.stop - 1 - word
        return min(left, right)

    there = [part for part in parts if part.start <= word < part.stop]
    return max(there, key=poorer_side) if there else None


@given(documents())
def test_a_word_is_owned_where_its_poorer_side_is_best(document):
    sizes, sentences, room, overlap = document
    for first, last in sentences:
        one = [(0, first)] * (first > 0) + [(first, last)]
        found = list(windows(sizes[:last], one, room, overlap, False))
        parts = [window for window in found if window.start >= first]
        for word in range(first, last):
            owner = naive_owner(parts, word, first, last)
            assert owner.first <= word < owner.last
