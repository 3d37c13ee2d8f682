"""Documents cut into segments."""

import dataclasses

import numpy as np
import pytest
from coref_cases import CLS, SEP, TOKENIZER, cut, documents, pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.coref import conll
from spanbert_ext.tasks.coref.data import Document, without_singletons
from spanbert_ext.tasks.coref.features import segment, window
from spanbert_ext.tasks.rejects import Rejects


def test_a_document_in_segments_typed_by_hand():
    document = Document(
        "d",
        ("the", "cats", "ran", ".", "it", "\x01", "sat"),
        (0, 0, 0, 0, 1, 1, 1),
        ("B", "B", "A", None, "C", "C", "A"),
        "nw",
        clusters=(((0, 1), (4, 5)), ((1, 1),)),
    )
    found = cut(document, max_segment_len=7, max_speakers=2)
    assert " ".join(pieces(found)) == (
        "[CLS] the cat ##s [SEP] [CLS] r ##a ##n . [SEP] "
        "[CLS] i ##t [UNK] [SEP] [CLS] s ##a ##t [SEP]"
    )
    assert found.cu_seqlens.tolist() == [0, 5, 11, 16, 21]
    first, second = [-1, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1], [-1, 1, 1, 1, -1]
    assert found.sentence_map.tolist() == first + second + second
    first, second = [-1, 0, 1, 1, -1, -1, 2, 2, 2, 3, -1], [-1, 4, 4, 5, -1, -1, 6, 6, 6, -1]
    assert found.word_of_piece.tolist() == first + second
    assert found.segment_of.tolist() == [0] * 5 + [1] * 6 + [2] * 5 + [3] * 5
    # B is 1, A 2; C would be 3 and shares the last number.
    first, second = [0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0], [0, 2, 2, 2, 0]
    assert found.speakers.tolist() == first + second + second
    assert found.genre == "nw"
    assert found.gold_starts.tolist() == [1, 2, 12]
    assert found.gold_ends.tolist() == [3, 3, 14]
    assert found.gold_clusters.tolist() == [0, 1, 0]
    # The third cluster names words again that the first one has.
    clusters = [[(1, 3), (12, 14)], [(2, 2)], [(1, 2), (6, 6)]]
    assert found.word_clusters(clusters) == (((0, 1), (4, 5)), ((1, 1),), ((2, 2),))
    for values in dataclasses.astuple(found)[1:]:
        assert values.dtype == np.int64
    for span in ((0, 3), (1, 4), (3, 1), (-1, 3), (8, 21)):
        with pytest.raises(DataError, match="d: "):
            found.word_span(*span)


def test_singletons_are_dropped_where_asked():
    document = Document("d", ("a", "b", "c"), (0, 0, 0), clusters=(((0, 0),), ((1, 1), (2, 2))))
    assert cut(document).gold_clusters.tolist() == [0, 1, 1]
    assert cut(document, singletons=False).gold_starts.tolist() == [2, 3]
    assert len(set(cut(document, singletons=False).gold_clusters.tolist())) == 1


def test_impossible_settings_of_segments():
    document = Document("d", ("a",), (0,))
    with pytest.raises(ConfigError, match="max_segment_len: must be at least 3; got 2"):
        cut(document, max_segment_len=2)
    with pytest.raises(ConfigError, match="max_speakers: must be at least 1; got 0"):
        cut(document, max_speakers=0)
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    with pytest.raises(ConfigError, match=r"it has no \[CLS\]"):
        segment([document], bare)
    assert segment([], TOKENIZER) == []


def plain_ends(sizes, closes, room):
    """Segment ends by trying every piece from the farthest back."""
    ends_word, ends_sentence, at = set(), set(), 0
    for size, close in zip(sizes, closes, strict=True):
        at += size
        ends_word.add(at)
        if close:
            ends_sentence.add(at)
    found, begin = [], 0
    while begin < at:
        tries = range(min(begin + room, at), begin, -1)
        good = next((t for t in tries if t in ends_sentence), None)
        good = good or next((t for t in tries if t in ends_word), None)
        found.append(good or begin + room)
        begin = found[-1]
    return found


@settings(max_examples=200)
@given(documents(), st.integers(3, 12), st.booleans(), st.integers(1, 3))
@example(Document("d_0", ("a",), (0,)), 3, True, 1)
@example(
    Document("d_0", ("unbelievable",) * 3, (0, 0, 0), clusters=(((0, 0), (2, 2)),)), 3, True, 1
)
def test_segments_hold_every_word_whole_and_map_back(document, longest, singletons, max_speakers):
    found = cut(document, max_segment_len=longest, singletons=singletons, max_speakers=max_speakers)
    words, inner = found.word_of_piece, found.word_of_piece >= 0
    assert (found.cu_seqlens[0], found.cu_seqlens[-1]) == (0, len(found.tokens))
    for begin, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
        assert 3 <= end - begin <= longest
        assert (found.tokens[begin], found.tokens[end - 1]) == (CLS, SEP)
        assert inner[begin:end].tolist() == [False, *[True] * (end - begin - 2), False]
    # Every word in its order, tokenised as it is alone; never a special token but [UNK].
    expected = [TOKENIZER.tokenize(w, split_special_tokens=True) for w in document.words]
    expected = [own or ["[UNK]"] for own in expected]
    flat = [piece for own in expected for piece in own]
    assert [p for p, own in zip(pieces(found), inner, strict=True) if own] == flat
    assert not set(found.tokens[inner].tolist()) & {CLS, SEP}
    sizes = [len(own) for own in expected]
    assert words[inner].tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()
    numbers = document.sentence_of_word
    assert found.sentence_map[inner].tolist() == [numbers[w] for w in words[inner]]
    assert set(found.sentence_map[~inner].tolist()) == {-1}
    # Ends where it should.
    closes = [n != m for n, m in zip(numbers, [*numbers[1:], -1], strict=True)]
    lengths = np.diff(found.cu_seqlens) - 2
    assert np.cumsum(lengths).tolist() == plain_ends(sizes, closes, longest - 2)
    for word, size in enumerate(sizes):
        if len(set(found.segment_of[words == word].tolist())) > 1:
            assert size > longest - 2
    # Speakers and gold mentions.
    said = document.speakers or (None,) * len(document.words)
    known = list(dict.fromkeys(s for s in said if s))
    ids = {s: min(n, max_speakers) for n, s in enumerate(known, 1)}
    assert found.speakers[inner].tolist() == [ids.get(said[w], 0) for w in words[inner]]
    clusters = document.clusters if singletons else without_singletons(document.clusters)
    spans = {}
    for start, end, number in zip(
        found.gold_starts, found.gold_ends, found.gold_clusters, strict=True
    ):
        spans.setdefault(int(number), []).append((int(start), int(end)))
    assert found.word_clusters(spans.values()) == clusters
    assert (np.diff(found.gold_starts) >= 0).all()


@settings(max_examples=100)
@given(documents(), st.integers(3, 8), st.integers(1, 4), st.integers(0, 99))
def test_a_window_is_a_stretch_of_whole_segments(document, longest, most, seed):
    whole = cut(document, max_segment_len=longest)
    part = window(whole, np.random.default_rng(seed), most)
    assert part.segments == min(most, whole.segments)
    gold = list(zip(whole.gold_starts, whole.gold_ends, whole.gold_clusters, strict=True))
    stretches = []
    for first in range(whole.segments - part.segments + 1):
        begin, end = whole.cu_seqlens[[first, first + part.segments]].tolist()
        stretches.append(
            [
                whole.tokens[begin:end].tolist(),
                whole.word_of_piece[begin:end].tolist(),
                whole.sentence_map[begin:end].tolist(),
                (whole.cu_seqlens[first : first + part.segments + 1] - begin).tolist(),
                [(a - begin, b - begin, c) for a, b, c in gold if begin <= a and b < end],
            ]
        )
    found = [part.tokens, part.word_of_piece, part.sentence_map, part.cu_seqlens]
    mentions = zip(part.gold_starts, part.gold_ends, part.gold_clusters, strict=True)
    assert [*(array.tolist() for array in found), list(mentions)] in stretches
    assert (part.segment_of[0], part.segment_of[-1]) == (0, part.segments - 1)


def test_every_window_is_drawn():
    whole = cut(Document("d", tuple("abcde"), (0, 1, 2, 3, 4)), max_segment_len=3)
    rng = np.random.default_rng(0)
    firsts = [int(window(whole, rng, 2).word_of_piece[1]) for _ in range(400)]
    # Each of four with 1/4: under 50 or over 160 of 400 has a probability below 1e-7.
    assert all(50 < firsts.count(first) < 160 for first in range(4))
    assert window(whole, rng, 5) is whole
    with pytest.raises(ConfigError, match="max_segments: must be at least 1; got 0"):
        window(whole, rng, 0)
    with pytest.raises(DataError, match=r"no segments 2\.\.1"):
        whole.part(2, 2)


def test_ten_thousand_words_are_cut_and_written(tmp_path):
    words = tuple(f"w{n % 97}" for n in range(10_000))
    clusters = tuple(
        tuple((n, n + n % 3) for n in range(first, 9_990, 50)) for first in range(0, 50, 5)
    )
    document = Document("d_0", words, tuple(n // 5_000 for n in range(10_000)), clusters=clusters)
    found = cut(document)
    assert np.diff(found.cu_seqlens).max() <= 384
    assert len(found.gold_starts) == sum(map(len, clusters))
    conll.write(tmp_path / "long", [document])
    assert conll.read(tmp_path / "long", Rejects())[0].clusters == clusters
