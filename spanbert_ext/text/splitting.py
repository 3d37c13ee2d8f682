"""Words of raw text with their places, by rule and, in scripts without blanks, by dictionary.

`units` knows no language: it reads letters, digits and the marks on them as words, every other
visible character as a word of its own, and takes scripts that are written without blanks between
words (Chinese, Japanese, Thai, Lao, Burmese, Khmer and their relatives) character by character.
`words` joins those characters to the words of ICU's dictionaries. Every character that is not white
space is in exactly one word of either.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable

Span = tuple[int, int]

_JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts, and inside emoji
_SKIN_TONES = "\U0001f3fb-\U0001f3ff"
_APOSTROPHES = "'\u2019"
# Code points that are searched for combining marks: the planes that have any.
_MARKED = (range(0x300, 0x1E95A), range(0xE0100, 0xE01F0))
_UNSPACED = (
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x1000, 0x10A0),  # Burmese
    range(0x1780, 0x1800),  # Khmer
    range(0x1950, 0x19E0),  # Tai Le, New Tai Lue
    range(0x1A20, 0x1AB0),  # Tai Tham
    range(0x2E80, 0x2FE0),  # radicals
    range(0x3000, 0x3130),  # kana, bopomofo, iteration marks
    range(0x31A0, 0x3200),
    range(0x3400, 0x4DC0),  # Han
    range(0x4E00, 0xA000),
    range(0xA980, 0xAA00),  # Javanese, Burmese
    range(0xAA60, 0xAAE0),  # Burmese, Tai Viet
    range(0xF900, 0xFB00),
    range(0xFF66, 0xFFA0),  # kana of half width
    range(0x1AFF0, 0x1B170),
    range(0x20000, 0x323B0),
)
# Letters that stand on the one before them, as Thai's vowel am; and what ties the next one to it.
_ATTACHED = "\u0e33\u0eb3"
_STACKERS = "\u1039\u17d2\u1a60"

# Abbreviations by how they are written: capitalised, in any case, before a number.
_TITLES = (
    "mr|mrs|ms|messrs|mme|mlle|dr|prof|rev|hon|st|ste|sr|jr|esq|gen|col|capt|lieut|lt|sgt|maj|cmdr|"
    "gov|sen|rep|pres|supt|insp|dept|inc|ltd|co|corp|bros|mt|ft|ave|blvd|rd|jan|feb|apr|jun|jul|"
    "aug|sept|oct|nov|dec"
)
_OTHERS = "etc|vs|viz|cf|approx"
_NUMBERED = "no|nos|fig|figs|vol|vols|chap|p|pp"
_ELISIONS = "em|cause|bout|til|till|round|neath|tween|n"


def units(text: str, treebank: bool = False) -> list[Span]:
    """The words of a text by rule; single characters where a script has no blanks between words.

    A character comes with the marks on it. Apostrophes stay inside a name (O'Brien) and English
    endings come off: John 's, do n't, we 'll. Numbers keep their inner points and commas.

    Args:
        treebank: in the manner of the Penn Treebank and of LitBank, addresses (http://...,
            name@host), abbreviations with their period (Mr., U.S., p.m., J.), numbers with what is
            joined to them (8:35, 20-year-old), words with hyphens and underscores, repeated
            periods, hyphens and stars (..., --) stay whole too, and "cannot" and "'tis" part.

    Returns:
        [start, end) of each in characters, in order.
    """
    return [match.span() for match in _pattern(treebank).finditer(text)]


def words(text: str) -> list[Span]:
    """The words of a text: `units`, joined to dictionary words in scripts without blanks.

    Returns:
        [start, end) of each in characters, in order. Which words the dictionaries have depends on
        the version of ICU.

    Source: Unicode Standard Annex 29 and the dictionaries of ICU (icu4py).
    """
    inside: set[int] = set()
    for run in _run().finditer(text):
        starts = _dictionary_starts(run[0])
        inside.update(run.start() + n for n in range(1, len(run[0])) if n not in starts)
    found: list[Span] = []
    for start, end in units(text):
        if start in inside:
            start = found.pop()[0]
        found.append((start, end))
    return found


def is_unspaced(text: str) -> bool:
    """Whether a character of the text belongs to a script without blanks between words."""
    return _letter_without_blanks().search(text) is not None


def _dictionary_starts(run: str) -> set[int]:
    """Where ICU begins a word, in characters."""
    from icu4py.breakers import WordBreaker

    starts = {start for start, _ in WordBreaker(run, "root").segments()}
    if max(run) < "\U00010000":
        return starts
    # ICU counts UTF-16 units.
    places = itertools.accumulate((1 + (c > "\uffff") for c in run), initial=0)
    return {n for n, place in enumerate(places) if place in starts}


@functools.cache
def _letter_without_blanks() -> re.Pattern[str]:
    return re.compile(f"[{_unspaced()}]")


@functools.cache
def _run() -> re.Pattern[str]:
    return re.compile(f"(?:{_cluster(f'[{_marks()}{_JOINERS}]')})+")


@functools.cache
def _pattern(treebank: bool) -> re.Pattern[str]:
    return re.compile("|".join(_treebank_rules() if treebank else _plain_rules()))


def _plain_rules() -> list[str]:
    extend = f"[{_marks()}{_JOINERS}]"
    # `\w` has no marks: a letter with its accent written apart would fall into two words.
    letter = rf"(?:[^\W_{_unspaced()}]{extend}*)"
    ending = rf"(?i:[{_APOSTROPHES}](?:s|m|d|re|ve|ll)(?!{letter}))"
    negation = rf"(?i:n[{_APOSTROPHES}]t(?!{letter}))"
    word = rf"(?:(?!{negation}){letter})+"
    return [
        rf"\d[\d{_marks()}]*(?:[.,]\d+)+(?!{letter})",
        negation,
        ending,
        rf"{word}(?:(?!{ending})[{_APOSTROPHES}]{word})*",
        _cluster(extend),
        rf"\S{extend}*",
    ]


def _treebank_rules() -> list[str]:
    extend = f"[{_marks()}{_SKIN_TONES}{_JOINERS}]"
    letter = rf"(?:[^\W_{_unspaced()}]{extend}*)"
    apostrophe = f"[{_APOSTROPHES}]"
    clitic = rf"(?:{apostrophe}(?i:s|m|d|ll|re|ve)|(?i:n{apostrophe}t))(?!{letter})"
    joined = rf"(?:{apostrophe}|[-_\u2010\u2011]|(?<=\d)[.,:/](?=\d))(?={letter})"
    # Repetitions that can fail at their end are bounded: time stays linear in the text.
    web = r"[^\s<>\"]*[^\s<>\".,;:!?')\]]"
    return [
        rf"(?:https?://|www\.){web}",
        r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}",
        rf"(?:{_TITLES.title()}|{_TITLES.upper()}|(?i:{_OTHERS}))\.(?!{letter})",
        rf"(?i:{_NUMBERED})\.(?=\s*\d)",
        rf"[^\W\d_](?:\.[^\W\d_]){{1,8}}\.?(?!{letter})",
        rf"[A-HJ-Z\u00c0-\u00de]\.(?!{letter})(?=\s*\S)",
        r"(?i:can(?=not\b))",
        clitic,
        rf"{apostrophe}(?i:t(?=(?:is|was|were|will|would)\b))",
        rf"{apostrophe}(?i:{_ELISIONS})(?!{letter}|{apostrophe})",
        _cluster(extend),
        rf"(?!{clitic}){letter}(?:(?!{clitic})(?:{letter}|{joined}))*",
        rf"([.*=~_-])\1+{extend}*",
        rf"\S{extend}*(?:(?<=\u200d)\S{extend}*)*",
    ]


def _cluster(extend: str) -> str:
    """A letter of a script without blanks, and what stands on it."""
    tied = f"[{_STACKERS}]{extend}{{0,4}}[{_unspaced()}]"  # bounded: time stays linear
    return f"[{_unspaced()}](?:{tied}|{extend}|[{_ATTACHED}])*"


@functools.cache
def _marks() -> str:
    """Combining marks of all scripts, for a character class."""
    return _character_class(_MARKED, ("M",))


@functools.cache
def _unspaced() -> str:
    """Letters of the scripts without blanks; their digits make numbers as others do."""
    return _character_class(_UNSPACED, ("L", "Nl"))


def _character_class(parts: Iterable[range], categories: tuple[str, ...]) -> str:
    codes = [
        c for part in parts for c in part if unicodedata.category(chr(c)).startswith(categories)
    ]
    text, begin = "", codes[0]
    for code, following in zip(codes, [*codes[1:], 0], strict=True):
        if following != code + 1:
            text += f"{chr(begin)}-{chr(code)}"
            begin = following
    return text
