"""Sentences of a text by rule: from its words to the number of each word's sentence.

A sentence ends

- at an empty line, whatever stands there;
- after `.`, `?`, `!`, their repetitions and the full stops of other scripts, with the quotes and
  brackets that close behind them, if what follows can begin a sentence. It does unless it starts in
  lower case (`"Really?" she asked` goes on) or with a sign that continues (`,` `;` `:`);
- after an abbreviation that often ends one (`etc.`, `p.m.`, `Inc.`), if a word follows that
  commonly begins one. No sentence ends after other abbreviations and initials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spanbert_ext.tasks.coref.data import Span
from spanbert_ext.tasks.coref.mention_words import word_set

_STOP = re.compile(r"[.?!\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964]+$")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_STRAIGHT = frozenset("\"'")
_CLOSING = frozenset("\u201d\u2019\u00bb\u203a)]}\u300d\u300f") | {"''", "\u2019\u201d"}
# Passed over on the way to the word that shows whether a sentence begins.
_BEFORE = frozenset("\"'`\u201c\u2018\u00ab\u2039([{\u300c\u300e_*\u2014\u2013-") | {"``", "--"}
_GOES_ON = frozenset(",;:")
_ENDS = word_set(
    "etc. inc. ltd. co. corp. esq. jr. sr. bros. a.m. p.m. u.s. u.k. u.s.a. e.u. d.c. b.c. a.d. "
    "ph.d. m.d. dept. blvd. ave. rd."
)
_BEGINS = word_set(
    "The A An This That These Those He She It They We You His Her Its Their My Our Your There Here "
    "But And Or So Then When While If In On At As For After Before With What Who How Why Where No "
    "Not Yes One Some All Now"
)


def number_sentences(text: str, words: Sequence[Span]) -> list[int]:
    """Number of each word's sentence, from 0; the rules are the module's.

    Args:
        words: ranges of characters, in order, as `text.units` gives them.
    """
    written = [text[start:end] for start, end in words]
    numbers: list[int] = []
    number, ended = 0, ""
    open_quotes: set[str] = set()
    for place, word in enumerate(written):
        if place and _PARAGRAPH.search(text, words[place - 1][1], words[place][0]):
            number, ended = number + 1, ""
            open_quotes.clear()
        closes = word in _CLOSING
        if word in _STRAIGHT:
            closes = _closes(text, words[place], word in open_quotes)
            if closes:
                open_quotes.discard(word)
            elif not (place and word == "'" and written[place - 1][-1] in "sS"):  # not the boys'
                open_quotes.add(word)
        stops = _STOP.match(word) is not None
        if ended and not closes and not stops:
            number += _begins(written, place, ended)
            ended = ""
        numbers.append(number)
        if stops:
            ended = "stop"
        elif word.lower() in _ENDS:
            ended = "abbreviation"
    return numbers


def _closes(text: str, quote: Span, is_open: bool) -> bool:
    """Whether a straight quote closes: by the side that it touches, else if one is open."""
    start, end = quote
    before = start > 0 and not text[start - 1].isspace()
    behind = end < len(text) and not text[end].isspace()
    return before if before != behind else is_open


def _begins(written: Sequence[str], place: int, ended: str) -> bool:
    """Whether the words from `place` on can begin a sentence."""
    while place < len(written) - 1 and written[place] in _BEFORE:
        place += 1
    word = written[place]
    if ended == "abbreviation":
        return word in _BEGINS
    return word not in _GOES_ON and not word[0].islower()
