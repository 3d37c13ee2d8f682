"""Words of raw text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import run_python

from spanbert_ext.text import is_unspaced, units, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t\u3000", []),
        ("Ada Lovelace, 1815.", ["Ada", "Lovelace", ",", "1815", "."]),
        ("John's O'Brien doesn't", ["John", "'s", "O'Brien", "does", "n't"]),
        ("isn\u2019t DON'T we'll I'm", ["is", "n\u2019t", "DO", "N'T", "we", "'ll", "I", "'m"]),
        ("rock'n'roll l'eau dogs' 'Tis", ["rock'n'roll", "l'eau", "dogs", "'", "'", "Tis"]),
        ("3.14 1,000.5 1. 10th v2.0", ["3.14", "1,000.5", "1", ".", "10th", "v2", ".", "0"]),
        ("well-known x_y a@b", ["well", "-", "known", "x", "_", "y", "a", "@", "b"]),
        ("cafe\u0301's", ["cafe\u0301", "'s"]),
        ("\u05e9\u05c1\u05dc\u05d5\u05b9!", ["\u05e9\u05c1\u05dc\u05d5\u05b9", "!"]),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", ["\u0928\u092e\u0938\u094d\u0924\u0947"]),
        ("a\0b", ["a", "\0", "b"]),
        ("\u0301x", ["\u0301", "x"]),
        ("hi\U0001f600", ["hi", "\U0001f600"]),
        ("\U0001f469\u200d\U0001f467", ["\U0001f469\u200d", "\U0001f467"]),
    ],
)
def test_units(text, expected):
    assert [text[start:end] for start, end in units(text)] == expected
    assert [text[start:end] for start, end in words(text)] == expected


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("nt's.,1aN’\u0301\u200d "))))
def test_every_visible_character_is_in_one_word(text):
    ranges = units(text)
    assert all(start < end for start, end in ranges)
    covered = [place for start, end in ranges for place in range(start, end)]
    assert covered == [n for n, character in enumerate(text) if not character.isspace()]


@pytest.mark.parametrize("text", ["a", "a'", "1.", "1.1,", "n't", "'", "\u0301", "a\u0301", "\0"])
def test_no_text_takes_long(text):
    """Time grows with the text, not with its square: 200,000 characters in a moment."""
    text *= 200_000 // len(text)
    for tail in ("", "a", "1a"):
        start = time.process_time()
        units(text + tail)
        assert time.process_time() - start < 2.0


THAI = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e"  # Bangkok, of six characters
KHMER = "\u1797\u17d2\u1793\u17c6\u1796\u17c1\u1789"  # Phnom Penh: pnom, pe, ny


@pytest.mark.parametrize(
    ("divided", "dictionary"),
    [
        # A bar parts units; what the dictionaries join.
        ("\u5317|\u4eac|\u5927|\u5b66|\u3002", "\u5317\u4eac|\u5927\u5b66|\u3002"),
        ("\u6771|\u4eac|\u306f|\u65e5|\u672c", "\u6771\u4eac|\u306f|\u65e5\u672c"),
        ("\u30ab|\u30bf|\u30ab|\u30ca|\u3067|\u3059", "\u30ab\u30bf\u30ab\u30ca|\u3067\u3059"),
        ("\u0e01|\u0e23\u0e38|\u0e07|\u0e40|\u0e17|\u0e1e", THAI),
        ("\u0e17\u0e33", "\u0e17\u0e33"),  # the vowel am stands on its letter
        ("\u1797\u17d2\u1793\u17c6|\u1796\u17c1|\u1789", KHMER),
        # Digits make numbers, blanks part, other scripts keep their words.
        ("\u0e1b\u0e35|\u0e52\u0e55\u0e55\u0e51", "\u0e1b\u0e35|\u0e52\u0e55\u0e55\u0e51"),
        ("\u5728|Paris|\u7684|\u5317|\u4eac", "\u5728|Paris|\u7684|\u5317\u4eac"),
        ("John|'s|\u5728|3.5|\u4e07", "John|'s|\u5728|3.5|\u4e07"),
        # Characters of two UTF-16 units, before and in a word.
        ("\U0001f600|\U00020bb7|\u5317|\u4eac", "\U0001f600|\U00020bb7|\u5317\u4eac"),
        ("\u5317\u0301|\u4eac\ufe00", "\u5317\u0301|\u4eac\ufe00"),
        ("\uc548\ub155|.", "\uc548\ub155|."),  # Korean has blanks
    ],
)
@pytest.mark.parametrize("treebank", [False, True])
def test_scripts_without_blanks(divided, dictionary, treebank):
    text = divided.replace("|", "")
    assert [text[start:end] for start, end in units(text, treebank)] == divided.split("|")
    assert [text[start:end] for start, end in words(text)] == dictionary.split("|")
    assert is_unspaced(text) == ("\uc548" not in text)


UNSPACED = "\u674e\u660e\u53bb\u4e86\u5317\u4eac\u3042\u30ab\U00020bb7"
UNSPACED += "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e33\u0e48\u1797\u17d2\u1793\u17c6"
MIXED = st.text(alphabet=st.one_of(st.characters(), st.sampled_from(UNSPACED + " .a\u0301\u200d")))


@given(MIXED)
def test_words_are_whole_units(text):
    parts, whole = units(text), words(text)
    starts, ends = ({span[n] for span in parts} for n in (0, 1))
    assert {start for start, _ in whole} <= starts and {end for _, end in whole} <= ends
    covered = [place for start, end in whole for place in range(start, end)]
    assert covered == [n for n, character in enumerate(text) if not character.isspace()]


@given(st.text(alphabet=UNSPACED, min_size=1, max_size=20))
def test_a_character_is_what_unicode_takes_for_one(text):
    """Against ICU's grapheme clusters: none is cut."""
    from icu4py.breakers import CharacterBreaker

    text = "\u5317" + text  # for marks to stand on
    utf16 = [0]
    for character in text:
        utf16.append(utf16[-1] + 1 + (character > "\uffff"))
    clusters = {start for start, _ in CharacterBreaker(text, "root").segments()}
    for start, _ in units(text):
        assert utf16[start] in clusters


@pytest.mark.parametrize("text", ["\u5317", THAI, KHMER, "\u5317a", "\u5317\u0301", "\u17d2"])
def test_no_text_without_blanks_takes_long(text):
    text *= 100_000 // len(text)
    start = time.process_time()
    units(text), units(text, treebank=True), words(text)
    assert time.process_time() - start < 5.0


def test_torch_is_not_needed():
    code = "import sys; from spanbert_ext.text import words; words('\u5317'); "
    child = run_python(code + "assert not {'torch', 'transformers'} & set(sys.modules)")
    assert child.returncode == 0, child.stderr
