"""Portions: how the text of a document is handed on without being held whole.

They are cut at white space, which no pre-tokenizer joins across; those after a document's first
begin with the space, as byte-level vocabularies need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Characters of a portion: large enough to amortise a call, small enough to share out to threads.
_PORTION = 1 << 16


class Portion(NamedTuple):
    """Part of a document's text."""

    text: str
    ends_document: bool


class Document:
    """Joins lines by spaces into portions."""

    def __init__(self):
        self._lines: list[str] = []
        self._length = 0
        self._begun = False

    def add(self, line: str) -> Iterator[Portion]:
        self._lines.append(line.strip())
        self._length += len(line)
        if self._length >= _PORTION:
            yield from self._flush(ends_document=False)

    def end(self) -> Iterator[Portion]:
        if self._begun or self._lines:
            yield from self._flush(ends_document=True)
        self._begun = False

    def _flush(self, ends_document: bool) -> Iterator[Portion]:
        text = " ".join(self._lines)
        if self._begun and text:
            text = " " + text
        self._lines, self._length, self._begun = [], 0, True
        yield from split_text(text, ends_document)


def split_text(text: str, ends_document: bool = True) -> Iterator[Portion]:
    """Portions of a text, cut in front of single spaces between visible characters."""
    start = 0
    while len(text) - start > _PORTION:
        cut = text.find(" ", start + _PORTION)
        while 0 <= cut < len(text) - 1 and (text[cut - 1].isspace() or text[cut + 1].isspace()):
            cut = text.find(" ", cut + 1)
        if not 0 <= cut < len(text) - 1:
            break
        yield Portion(text[start:cut], False)
        start = cut
    yield Portion(text[start:], ends_document)
