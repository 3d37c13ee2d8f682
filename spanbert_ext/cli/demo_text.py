"""Real English that every Python carries: the prose of the language reference in
`pydoc_data.topics`.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from collections.abc import Iterator, Mapping

_HEADING = re.compile(r"^[^\n]+\n([=*\-~^\"]{3,})\s*$", re.MULTILINE)
_RULE = re.compile(r"([=*\-~^+#_.])\1{2,}")
_BULLET = re.compile(r"^(?:[*\-]|\d+\.|\[\d+\])\s+")
# A section shorter than this (in characters) is joined to the one before: a document needs context
# to predict from.
_SHORT_SECTION = 400


def documents(topics: Mapping[str, str] | None = None) -> Iterator[list[str]]:
    """The prose of every section, as a list of paragraphs of one line each; sections without prose
    are left out.

    Topics repeat each other's sections. A paragraph is kept where it comes first, so that nothing
    held out is also trained on.
    """
    seen: set[str] = set()
    topics = pydoc_data.topics.topics if topics is None else topics
    for name in sorted(topics):
        document: list[str] = []
        for section in _sections(topics[name]):
            if sum(map(len, document)) >= _SHORT_SECTION:
                yield document
                document = []
            for block in re.split(r"\n\s*\n", section):
                text = clean_paragraph(block)
                if text and text not in seen:
                    seen.add(text)
                    document.append(text)
        if document:
            yield document


def _sections(topic: str) -> list[str]:
    """The text between the headings of a topic."""
    starts = [0, *(heading.end() for heading in _HEADING.finditer(topic)), len(topic)]
    return [topic[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def clean_paragraph(block: str) -> str:
    """A block of reStructuredText as one line of prose; empty for headings, tables, grammar and
    code.
    """
    text = " ".join(block.split())
    text = _BULLET.sub("", text, count=1)
    if _RULE.search(text) or "::=" in text or ">>>" in text or "|" in text:
        return ""
    text = re.sub(r"\s*\[\d+\]", "", text)  # footnote marks
    text = re.sub(r"(?<!\w)\*{1,2}(\w[^*]*?)\*{1,2}(?!\w)", r"\1", text)  # emphasis
    text = re.sub(r'"([^"]+)"', r"\1", text).replace("’", "'")  # code marks
    words = text.split()
    plain = sum(word.strip(".,;:()'?!").isalpha() for word in words)
    return text if len(words) >= 6 and plain >= 0.6 * len(words) else ""
