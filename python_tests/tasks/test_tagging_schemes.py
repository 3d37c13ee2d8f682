"""Tags and spans: hand-typed cases, and every sequence against a second definition."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.tagging.schemes import (
    SCHEMES,
    Span,
    Tag,
    fault_in,
    label_names,
    parse_tag,
    recognise,
    spans_of,
    tag_text,
    tags_of,
)


def tags(text):
    return [parse_tag(tag) for tag in text.split()]


def written(spans, words, scheme):
    return " ".join(map(tag_text, tags_of(spans, words, scheme)))


@st.composite
def sentences(draw, types=("A", "B-C")):
    """Words and spans that do not overlap."""
    words = draw(st.integers(0, 12))
    spans, start = [], 0
    while start < words:
        end = draw(st.integers(start, words))
        if end > start:
            spans.append(Span(start, end, draw(st.sampled_from(types))))
        start = max(end, start + 1)
    return words, spans


@pytest.mark.parametrize(
    ("spans", "bio", "iob1", "bilou"),
    [
        ([], "O O O", "O O O", "O O O"),
        ([Span(1, 2, "X")], "O B-X O", "O I-X O", "O U-X O"),
        ([Span(0, 3, "X")], "B-X I-X I-X", "I-X I-X I-X", "B-X I-X L-X"),
        ([Span(0, 1, "X"), Span(1, 3, "X")], "B-X B-X I-X", "I-X B-X I-X", "U-X B-X L-X"),
        ([Span(0, 1, "X"), Span(1, 3, "Y")], "B-X B-Y I-Y", "I-X I-Y I-Y", "U-X B-Y L-Y"),
    ],
)
def test_an_entity_in_each_scheme(spans, bio, iob1, bilou):
    for scheme, text in zip(SCHEMES, (bio, iob1, bilou), strict=True):
        assert written(spans, 3, scheme) == text
        assert spans_of(tags(text)) == spans
        assert fault_in(tags(text), scheme) is None


def test_bioes_is_bilou_and_types_keep_their_hyphens():
    assert parse_tag("E-PER") == Tag("L", "PER") and parse_tag("S-PER") == Tag("U", "PER")
    assert parse_tag("B-product-game") == Tag("B", "product-game")
    assert parse_tag("O") == Tag("O", "")
    assert spans_of(tags("B-X E-X S-Y")) == [Span(0, 2, "X"), Span(2, 3, "Y")]
    for text in ("", "B", "B-", "-X", "X-PER", "PER", "b-PER", "o", "O-X", "I_PER"):
        assert parse_tag(text) is None, text


@pytest.mark.parametrize(
    ("text", "begin", "drop"),
    [
        ("O I-X I-X O", [Span(1, 3, "X")], []),
        ("B-X I-Y I-Y", [Span(0, 1, "X"), Span(1, 3, "Y")], [Span(0, 1, "X")]),
        ("B-X O I-X", [Span(0, 1, "X"), Span(2, 3, "X")], [Span(0, 1, "X")]),
        ("I-X B-X I-X", [Span(0, 1, "X"), Span(1, 3, "X")], [Span(1, 3, "X")]),
        ("L-X L-X O", [Span(0, 1, "X"), Span(1, 2, "X")], []),
        ("B-X O O", [Span(0, 1, "X")], [Span(0, 1, "X")]),
        (
            "B-X U-X L-X",
            [Span(n, n + 1, "X") for n in range(3)],
            [Span(0, 1, "X"), Span(1, 2, "X")],
        ),
        ("B-X L-X I-X", [Span(0, 2, "X"), Span(2, 3, "X")], [Span(0, 2, "X")]),
    ],
)
def test_repair(text, begin, drop):
    assert spans_of(tags(text), "begin") == begin
    assert spans_of(tags(text), "drop") == drop
    assert spans_of(tags(text), "begin", first=7) == [
        Span(s.start + 7, s.end + 7, s.type) for s in begin
    ]


@pytest.mark.parametrize(
    ("scheme", "text", "place", "named"),
    [
        ("bio", "O I-X", 1, "I-X after O"),
        ("bio", "I-X", 0, "I-X after the start"),
        ("bio", "B-X I-Y", 1, "I-Y after B-X"),
        ("bio", "B-X L-X", 1, "L-X after B-X"),
        ("iob1", "B-X", 0, "B-X after the start"),
        ("iob1", "I-X O B-X", 2, "B-X after O"),
        ("bilou", "B-X O", 1, "O after B-X"),
        ("bilou", "O B-X", 1, "the end of the sentence after B-X"),
        ("bilou", "U-X L-X", 1, "L-X after U-X"),
        ("bilou", "B-X I-Y L-Y", 1, "I-Y after B-X"),
    ],
)
def test_what_breaks_a_scheme(scheme, text, place, named):
    found, reason = fault_in(tags(text), scheme)
    assert found == place and named in reason


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_strict_rules_are_what_the_writer_can_write(scheme):
    """Every sequence of up to 4 tags is free of faults if and only if some spans give it."""
    letters = "BILU" if scheme == "bilou" else "BI"
    alphabet = [Tag("O", ""), *(Tag(x, kind) for x in letters for kind in "XY")]
    for words in range(4 if scheme == "bilou" else 5):
        for sequence in itertools.product(alphabet, repeat=words):
            possible = tags_of(spans_of(sequence), words, scheme) == list(sequence)
            assert (fault_in(sequence, scheme) is None) == possible, sequence


@given(sentences(), st.sampled_from(SCHEMES), st.sampled_from(["begin", "drop"]))
def test_spans_survive_every_scheme(sentence, scheme, repair):
    words, spans = sentence
    sequence = tags_of(spans, words, scheme)
    assert fault_in(sequence, scheme) is None
    if scheme != "iob1" or repair == "begin":
        assert spans_of(sequence, repair) == spans


@given(st.lists(sentences(), min_size=1, max_size=5), st.sampled_from(SCHEMES))
def test_a_recognised_scheme_reads_the_file(files, scheme):
    sequences = [tags_of(spans, words, scheme) for words, spans in files]
    found = recognise(sequences)
    assert all(fault_in(sequence, found) is None for sequence in sequences)
    assert [spans_of(sequence) for sequence in sequences] == [spans for _, spans in files]


def test_one_broken_sentence_does_not_change_the_scheme():
    good = [tags("B-X I-X O"), tags("O B-Y")]
    assert recognise([*good, tags("O I-X")]) == "bio"
    assert recognise([*good, tags("U-X O")]) == "bio"
    assert recognise([tags("I-X O"), tags("O I-Y B-Y"), tags("B-X O")]) == "iob1"
    assert recognise([]) == "bio"


@pytest.mark.parametrize(
    "spans", [[Span(0, 0, "X")], [Span(2, 4, "X")], [Span(0, 2, "X"), Span(1, 3, "X")]]
)
def test_impossible_spans_are_refused(spans):
    with pytest.raises(ValueError, match="Span"):
        tags_of(spans, 3)


def test_labels_are_whole_and_sorted():
    assert label_names({"B", "A"}, "bio") == ["O", "B-A", "B-B", "I-A", "I-B"]
    assert label_names(["A"], "bilou") == ["O", "B-A", "I-A", "L-A", "U-A"]
