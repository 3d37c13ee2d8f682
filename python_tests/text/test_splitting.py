"""Words of raw text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.text import units


@pytest.mark.parametrize(
    ("text", "words"),
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
def test_words(text, words):
    assert [text[start:end] for start, end in units(text)] == words


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
