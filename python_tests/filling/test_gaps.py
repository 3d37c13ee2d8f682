"""Gaps: where they are, which pieces stand around them and may stand in them, and their text."""

import numpy as np
import pytest
from data.corpora import byte_level_bpe, unigram, wordpiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.filling.gaps import GapReader

WORDS = ["the", "statement", "a", "handlers", "of", "expression", "is", "names", "evaluated"]
MARKED = ("bpe", "unigram", "spaced bpe")


def tokenizers():
    """Every kind, by name; "spaced bpe" puts a space before a text, as Metaspace does."""
    spaced = byte_level_bpe()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return {
        "cased": wordpiece(400, lowercase=False),
        "uncased": wordpiece(400, lowercase=True),
        "bpe": byte_level_bpe(),
        "spaced bpe": spaced,
        "unigram": unigram(),
    }


KINDS = tokenizers()
READERS = {kind: GapReader(tokenizer) for kind, tokenizer in KINDS.items()}
every_kind = pytest.mark.parametrize("kind", KINDS)


def ids_of(kind, text):
    return KINDS[kind].encode(text, add_special_tokens=False).ids


def pieces_of(reader, ids):
    return [reader.info.pieces[i] for i in ids]


def allowed(reader, gap, *pieces):
    return [bool(gap.first[reader.info.pieces.index(piece)]) for piece in pieces]


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("one [MASK] two", None, ("one ", " two", 1)),
        ("one [MASK] [MASK][MASK] two", None, ("one ", " two", 3)),
        ("one [MASK] two", 4, ("one ", " two", 4)),
        ("one ___ two", None, ("one ", " two", None)),
        ("one, ______.", 2, ("one, ", ".", 2)),
        ("[SPAN] two", 3, ("", " two", 3)),
        ("one __init__ and __", None, None),
    ],
)
def test_where_a_marked_gap_is(text, pieces, expected):
    reader = READERS["cased"]
    if expected is None:
        with pytest.raises(DataError, match="must have one gap, it has 0"):
            reader.read(text, None, pieces)
        return
    gap = reader.read(text, None, pieces)
    assert (gap.before, gap.after, gap.pieces) == expected


def test_the_tokenizers_own_mask_marks_a_gap():
    gap = READERS["bpe"].read("a <mask><mask> b", None, None)
    assert (gap.before, gap.after, gap.pieces) == ("a ", " b", 2)
    assert READERS["bpe"].read("a [MASK] b", None, None).pieces == 1


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("one two three", (4, 7), ("one ", " three")),
        ("one two three", (3, 8), ("one ", " three")),
        ("one two three", (4, 4), ("one ", "two three")),
        ("one  two", (3, 5), ("one", "two")),
        ("one", (0, 3), ("", "")),
        ("a [MASK] b", (0, 1), ("", " [MASK] b")),
    ],
)
def test_where_a_range_is(text, span, expected):
    gap = READERS["cased"].read(text, span, None)
    assert (gap.before, gap.after, gap.pieces) == (*expected, None)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("  ", None, None), DataError, "empty"),
        (("no gap", None, None), DataError, "it has 0"),
        (("[MASK] and ___", None, None), DataError, "it has 2: .*'___' at character 11"),
        (("[MASK] [MASK]", None, 3), ConfigError, "marks a gap of 2"),
        (("text", (2, 5), None), ConfigError, r"\(2, 5\) is no range of the text's 4"),
        (("text", (-1, 2), None), ConfigError, "is no range"),
        (("text", (3, 2), None), ConfigError, "is no range"),
    ],
)
def test_what_is_no_gap(arguments, kind, message):
    with pytest.raises(kind, match=message):
        READERS["cased"].read(*arguments)


@pytest.mark.parametrize(
    ("before", "after", "first", "joined"),
    [
        ("the ", " of", [True, False, True], False),
        ("", " of", [True, False, True], False),
        ("(", ") of", [True, False, True], False),
        ("the", " of", [False, True, True], False),
        ("the ", "ing of", [True, False, True], True),
        ("the ", ", of", [True, False, True], False),
    ],
)
def test_wordpiece_continues_words_only_behind_letters(before, after, first, joined):
    reader = READERS["cased"]
    gap = reader.read(before + "___" + after, None, None)
    assert allowed(reader, gap, "the", "##s", ",") == first
    assert gap.joined == joined
    assert allowed(reader, gap, "[MASK]", "[UNK]") == [False, False]


def test_a_word_that_goes_on_is_read_as_continuation():
    reader = READERS["cased"]
    gap = reader.read("the ___ing of the", None, None)
    whole = pieces_of(reader, ids_of("cased", "naming of the"))
    assert pieces_of(reader, gap.right)[-2:] == whole[-2:]
    rest = pieces_of(reader, gap.right)[:-2]
    assert rest[0].startswith("##") and "".join(rest).replace("##", "") == "ing"
    unknown = reader.read("the ___\u1234x of", None, None)
    assert unknown.right[0] == reader.info.unk_id


@pytest.mark.parametrize("kind", MARKED)
@pytest.mark.parametrize("after", [", of", "ing of", ") of", "'s", " of", ""])
def test_text_behind_a_gap_begins_without_a_space_of_its_own(kind, after):
    reader = READERS[kind]
    gap = reader.read("the ___" + after, None, None)
    first = gap.right and bool(reader.info.word_starts[gap.right[0]])
    assert first == (after == " of") if after else gap.right == []
    assert "".join(reader.info.texts[i] for i in gap.right) == after.replace(" ", "")


@pytest.mark.parametrize("kind", MARKED)
def test_marked_pieces_come_behind_spaces(kind):
    reader = READERS[kind]
    starts = reader.info.word_starts
    for before, spaced in (("the ", True), ("the", False), ("(", False), ("a\n", True)):
        gap = reader.read(before + "___ of", None, None)
        assert not gap.first[starts != spaced].any() and gap.first.any()
    gap = reader.read("___ of", None, None)
    assert not gap.first[starts != (kind != "bpe")].any()


@every_kind
def test_special_pieces_never_fill(kind):
    reader = READERS[kind]
    assert not reader.ordinary[list(reader.info.special_ids)].any()
    assert not reader.ordinary[reader.info.unk_id]


TEXTS = st.lists(st.sampled_from([*WORDS, "(a", "of)", "is,", "names."]), min_size=3, max_size=12)


@every_kind
@given(words=TEXTS, data=st.data())
def test_whole_words_are_read_and_written_as_in_the_whole_text(kind, words, data):
    """Pieces around a gap are those of the whole text, and what was hidden fills it again."""
    reader, text = READERS[kind], " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    start = len(" ".join(words[:first])) + (first > 0)
    stop = len(" ".join(words[:last]))
    gap = reader.read(text, (start, stop), None)
    ids = ids_of(kind, text)
    assert gap.left == ids[: len(gap.left)]
    assert gap.right == ids[len(ids) - len(gap.right) :]
    hidden = ids[len(gap.left) : len(ids) - len(gap.right)]
    assert gap.first[hidden[0]]
    written = reader.write(gap, hidden)
    plain = not set("(),.") & set(text[start:stop])
    # WordPiece does not keep the space around punctuation.
    assert written == text[start:stop] if plain or kind in MARKED else written is not None


def test_wordpiece_text():
    reader = READERS["cased"]
    at = reader.info.pieces.index

    def write(text, *pieces):
        return reader.write(reader.read(text, None, None), [at(p) for p in pieces])

    assert write("a ___ b", "the", "##s", ",", "a") == "thes, a"
    assert write("a___ b", "##s") == "s"
    assert write("a ___ b", "the", ",", "##s") is None  # nothing to continue
    assert write("a ___b", "the", ",") is None
    assert write("a ___b", "the") == "the"


def test_unfinished_characters_are_no_text():
    reader = READERS["bpe"]
    gap = reader.read("a ___ b", None, None)
    ids = ids_of("bpe", " \N{SNOWMAN}")
    assert len(ids) > 2
    assert reader.write(gap, ids) == "\N{SNOWMAN}"
    assert reader.write(gap, ids[:-1]) is None
    assert reader.write(gap, ids_of("bpe", "  ")) is None


def test_a_tokenizer_without_pre_tokenizer_parts_words_at_spaces():
    bare = Tokenizer.from_str(KINDS["cased"].to_str())
    bare.pre_tokenizer, bare.normalizer = None, normalizers.Lowercase()
    reader = GapReader(bare)
    gap = reader.read("The(___ of", None, None)
    assert not gap.first[np.flatnonzero(reader.info.word_starts)].any()
