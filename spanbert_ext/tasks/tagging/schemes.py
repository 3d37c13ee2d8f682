"""Tags of words and the spans they stand for: BIO, IOB1 and BILOU.

| scheme | an entity of one word | of three | a second one of the type right behind |
|---|---|---|---|
| bio | B | B I I | B ... |
| iob1 | I | I I I | B ... |
| bilou | U | B I L | U, or B ... L |

BIOES is BILOU with other letters (E for L, S for U) and is read as such. A tag is `O`, or a letter,
a hyphen and a type; the type may have hyphens of its own.

`fault_in` is strict: what a file may hold. `spans_of` reads any sequence, as a model without
constraints may give it:

- B and U start an entity, whatever stands before; O ends the one before.
- I and L continue an entity of their type. With no such entity before, `begin` starts one with them
  (so IOB1 is read rightly) and `drop` leaves them out, and those that would continue them.
- An entity of BILOU that lacks its last word ends where something else begins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Scheme = Literal["bio", "iob1", "bilou"]
Repair = Literal["begin", "drop"]

SCHEMES: tuple[Scheme, ...] = ("bio", "iob1", "bilou")
SCHEME_NAMES = {"bio": "BIO", "iob1": "IOB1", "bilou": "BILOU or BIOES"}
# Letters of a tag -> ours.
_LETTERS = {"B": "B", "I": "I", "L": "L", "U": "U", "E": "L", "S": "U"}
_LETTERS_OF = {"bio": "BIO", "iob1": "BIO", "bilou": "BILOU"}


class Span(NamedTuple):
    """Words `start` to `end` (exclusive) and what they are."""

    start: int
    end: int
    type: str


class Tag(NamedTuple):
    """A tag taken apart; the outside has the letter O and no type."""

    letter: str
    type: str


OUTSIDE = Tag("O", "")


@functools.lru_cache(4096)
def parse_tag(text: str) -> Tag | None:
    """The tag of a text in any of the schemes, BIOES letters as BILOU ones; None if it is none."""
    if text == "O":
        return OUTSIDE
    letter, hyphen, kind = text.partition("-")
    if not hyphen or not kind or letter not in _LETTERS:
        return None
    return Tag(_LETTERS[letter], kind)


def tag_text(tag: Tag) -> str:
    """The tag as files have it."""
    return f"{tag.letter}-{tag.type}" if tag.type else tag.letter


@functools.lru_cache(4096)
def follows(before: Tag | None, after: Tag | None, scheme: Scheme) -> bool:
    """Whether a scheme allows two tags side by side.

    Args:
        before: None is the start of the sentence.
        after: None is its end.
    """
    known = _LETTERS_OF[scheme]
    if any(tag is not None and tag.letter not in known for tag in (before, after)):
        return False
    inside = before is not None and before.letter in "BI"
    same = inside and after is not None and before.type == after.type
    if scheme == "bilou":
        continues = after is not None and after.letter in "IL"
        return same if continues else not inside
    if after is None or after.letter == "O":
        return True
    needs_entity = "I" if scheme == "bio" else "B"
    return same or after.letter != needs_entity


def fault_in(tags: Sequence[Tag], scheme: Scheme) -> tuple[int, str] | None:
    """Where a sentence breaks a scheme, and how: the first place, or None."""
    before: Tag | None = None
    for place, after in enumerate([*tags, None]):
        if not follows(before, after, scheme):
            left = "the start of the sentence" if before is None else tag_text(before)
            right = "the end of the sentence" if after is None else tag_text(after)
            reason = f"{right} after {left} is not {SCHEME_NAMES[scheme]}"
            return min(place, len(tags) - 1), reason
        before = after
    return None


def recognise(sentences: Iterable[Sequence[Tag]]) -> Scheme:
    """The scheme that most sentences keep to; the earlier of `SCHEMES` where several do."""
    kept = dict.fromkeys(SCHEMES, 0)
    for tags in sentences:
        for scheme in SCHEMES:
            kept[scheme] += fault_in(tags, scheme) is None
    return max(SCHEMES, key=lambda scheme: kept[scheme])


def spans_of(tags: Iterable[Tag], repair: Repair = "begin", first: int = 0) -> list[Span]:
    """The spans of one sentence's tags in any scheme, by the rules above.

    Args:
        first: number of the first word.
    """
    spans: list[Span] = []
    start, kind = -1, ""  # of the open entity
    place = first
    for place, tag in enumerate(tags, first):
        goes_on = tag.letter in "IL" and start >= 0 and tag.type == kind
        if not goes_on:
            if start >= 0:
                spans.append(Span(start, place, kind))
            start = -1
            if tag.letter in "BU" or (tag.letter in "IL" and repair == "begin"):
                start, kind = place, tag.type
        if start >= 0 and tag.letter in "LU":
            spans.append(Span(start, place + 1, kind))
            start = -1
    if start >= 0:
        spans.append(Span(start, place + 1, kind))
    return spans


def tags_of(spans: Iterable[Span], words: int, scheme: Scheme = "bio") -> list[Tag]:
    """The tags of a sentence with these spans.

    Raises:
        ValueError: a span is empty, outside the words, or meets another.
    """
    tags = [OUTSIDE] * words
    end, last = 0, ""
    for span in sorted(spans):
        if not end <= span.start < span.end <= words:
            raise ValueError(f"{span} is empty, outside of {words} words or meets another span")
        adjacent = span.start == end and span.type == last
        tags[span.start : span.end] = _letters(span, scheme, adjacent)
        end, last = span.end, span.type
    return tags


def _letters(span: Span, scheme: Scheme, adjacent: bool) -> list[Tag]:
    size = span.end - span.start
    letters = ["I"] * size
    if scheme != "iob1" or adjacent:
        letters[0] = "B"
    if scheme == "bilou":
        letters[-1] = "L" if size > 1 else "U"
    return [Tag(letter, span.type) for letter in letters]


def label_names(types: Iterable[str], scheme: Literal["bio", "bilou"]) -> list[str]:
    """Every tag a model of these types predicts: O, then the others sorted.

    Tags that no training sentence has are among them: without the I of a type, or its L, a
    constrained path could lead nowhere.
    """
    letters = _LETTERS_OF[scheme].replace("O", "")
    return ["O", *sorted(f"{letter}-{kind}" for letter in letters for kind in types)]
