"""Words of raw text by a few rules, with their places.

Letters, digits and the marks on them run together; every other visible character is a word of its
own. Apostrophes stay inside a name (O'Brien) but English endings come off, as in the treebanks that
taggers learn from: John 's, do n't, we 'll. Numbers keep their inner points and commas.
Anything that knows its language better can take the place of `split_words`.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

_JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts, and inside emoji
_APOSTROPHES = "'\u2019"
_ENDINGS = "s|m|d|re|ve|ll"


@functools.cache
def _pattern() -> re.Pattern[str]:
    marks = "".join(
        re.escape(character)
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character)[0] == "M"
    )
    # `\w` has no marks: a letter with its accent written apart would fall into two words.
    letter = rf"(?:[^\W_][{marks}{_JOINERS}]*)"
    ending = rf"(?i:[{_APOSTROPHES}](?:{_ENDINGS})(?!{letter}))"
    negation = rf"(?i:n[{_APOSTROPHES}]t(?!{letter}))"
    word = rf"(?:(?!{negation}){letter})+"
    number = rf"\d[\d{marks}]*(?:[.,]\d+)+(?!{letter})"
    return re.compile(
        rf"{number}"
        rf"|{negation}|{ending}"
        rf"|{word}(?:(?!{ending})[{_APOSTROPHES}]{word})*"
        rf"|\S[{marks}{_JOINERS}]*"
    )


def split_words(text: str) -> list[tuple[int, int]]:
    """[start, end) of every word of a text, in characters.

    Every character that is not white space is in exactly one word.
    """
    return [match.span() for match in _pattern().finditer(text)]
