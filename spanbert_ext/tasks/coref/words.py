"""Words of raw text by rule, in the manner of the Penn Treebank and of LitBank.

Every character that is not white space belongs to exactly one word. In order of precedence:

- addresses (http://..., name@host) stay whole;
- abbreviations keep their period: capitals alone ("J." but not "I."), letters with periods between
  ("U.S.", "p.m."), and those of `TITLES`, `OTHERS` and, before a number, `NUMBERED`;
- numbers keep inner signs and what is joined to them: 1,000.50 8:35 1/2 10th 20-year-old;
- contractions part before the clitic: do|n't, he|'s, we|'ll, can|not, 't|is; 'em and the like stay
  whole, and so does an apostrophe between letters (o'clock);
- a hyphen or an underscore between letters joins (drawing-room), two hyphens part;
- marks that combine with a letter, and joiners, stay with it;
- a Chinese or Japanese character is a word;
- periods, hyphens and stars repeated are one word (... -- ***), any other sign is one by itself.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

from spanbert_ext.tasks.coref.documents import Span
from spanbert_ext.tasks.coref.mention_words import word_set

# Abbreviations by how they are written: capitalised, in any case, before a number.
TITLES = word_set(
    "mr mrs ms messrs mme mlle dr prof rev hon st ste sr jr esq gen col capt lieut lt sgt maj cmdr "
    "gov sen rep pres supt insp dept inc ltd co corp bros mt ft ave blvd rd jan feb apr jun jul "
    "aug sept oct nov dec"
)
OTHERS = word_set("etc vs viz cf approx")
NUMBERED = word_set("no nos fig figs vol vols chap p pp")
_ELISIONS = word_set("em cause bout til till round neath tween n")
# Code points that are searched for combining marks: the planes that have any.
_MARKED = (range(0x300, 0x1E95A), range(0xE0100, 0xE01F0))


@functools.cache
def _pattern() -> re.Pattern[str]:
    # Letters' marks, variation selectors, skin tones, the two joiners.
    extend = f"[{_marks()}\U0001f3fb-\U0001f3ff\u200c\u200d]"
    letter = rf"(?:[^\W_]{extend}*)"
    han = "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    apostrophe = "['\u2019]"
    clitic = rf"(?:{apostrophe}(?i:s|m|d|ll|re|ve)|(?i:n{apostrophe}t))(?!{letter})"
    joined = rf"(?:{apostrophe}|[-_\u2010\u2011]|(?<=\d)[.,:/](?=\d))(?={letter})"
    titles = _either([*map(str.capitalize, TITLES), *map(str.upper, TITLES)])
    # Repetitions that can fail at their end are bounded: time stays linear in the text.
    web = r"[^\s<>\"]*[^\s<>\".,;:!?')\]]"
    parts = [
        rf"(?:https?://|www\.){web}",
        r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}",
        rf"(?:{titles}|(?i:{_either(OTHERS)}))\.(?!{letter})",
        rf"(?i:{_either(NUMBERED)})\.(?=\s*\d)",
        rf"[^\W\d_](?:\.[^\W\d_]){{1,8}}\.?(?!{letter})",
        rf"[A-HJ-Z\u00c0-\u00de]\.(?!{letter})(?=\s*\S)",
        r"(?i:can(?=not\b))",
        clitic,
        rf"{apostrophe}(?i:t(?=(?:is|was|were|will|would)\b))",
        rf"{apostrophe}(?i:{_either(_ELISIONS)})(?!{letter}|{apostrophe})",
        rf"{han}{extend}*",
        rf"(?!{clitic}){letter}(?:(?!{clitic}|{han})(?:{letter}|{joined}))*",
        rf"([.*=~_-])\1+{extend}*",
        rf"\S{extend}*(?:(?<=\u200d)\S{extend}*)*",
    ]
    return re.compile("|".join(parts))


def _either(words: Iterable[str]) -> str:
    return "|".join(sorted(words))


def _marks() -> str:
    """Combining marks of all scripts, for a character class."""
    codes = [c for part in _MARKED for c in part if unicodedata.category(chr(c))[0] == "M"]
    text, begin = "", codes[0]
    for code, following in zip(codes, [*codes[1:], 0], strict=True):
        if following != code + 1:
            text += f"{chr(begin)}-{chr(code)}"
            begin = following
    return text


def split_words(text: str) -> list[Span]:
    """Ranges of characters of the words of a text, in order; the rules are the module's."""
    return [match.span() for match in _pattern().finditer(text)]
