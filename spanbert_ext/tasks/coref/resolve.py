"""From clusters back to text: strings, character spans, and a text with its references resolved.

`resolved_text` replaces mentions by the most telling one of their cluster, its representative:

- a name stands before a description, a description before a pronoun; then one of at most six words
  before a longer one, one that holds no other mention of its cluster before one that does, the
  longer before the shorter, the earlier before the later. A cluster of pronouns alone stays as it
  is;
- a possessive pronoun, or a mention that ends in 's, is replaced by the representative with 's (a
  description that ends in s gets the apostrophe alone). "her" is possessive where a longer mention
  begins with it, or a word follows that is neither capitalised nor a function word;
- reflexive and relative pronouns stay, and so do mentions inside another one of their own cluster,
  those that read like the representative already, and descriptions with its head word;
- of mentions that overlap, the outermost that is to change is replaced, the others vanish in it;
- a representative that begins with "The" or the like, or with a word that the text also writes in
  lower case, gets a small letter inside a sentence, and any gets a capital at its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref.data import Document, Span
from spanbert_ext.tasks.coref.mention_words import (
    DETERMINERS,
    FUNCTION_WORDS,
    POSSESSIVES,
    REFLEXIVES,
    RELATIVES,
    head_of,
    kind_of,
)
from spanbert_ext.text import units

_RANK = {"name": 0, "nominal": 1, "pronoun": 2}
_POSSESSIVE_END = re.compile(r"(?:\s*['\u2019]s|(?<=s)\s*['\u2019])$", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:^|[.?!\u2026])[\s\"'\u201c\u2018\u201d\u2019(\[]*$")
_NEXT_WORD = re.compile(r"[^\S\n]*\n?[^\S\n]*([^\W\d_]+)")
_SHORT = 6  # words
_LOOK_BACK = 40  # characters that are searched for the end of the sentence before


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention of a cluster.

    Args:
        first, last: its words, both inclusive.
        start, end: first character and the one behind the last; None without a text.
        text: as written, or its words joined by blanks.
        score: the higher, the surer a model is that this is a mention; None where nobody said.
    """

    first: int
    last: int
    start: int | None
    end: int | None
    text: str
    score: float | None = None


def cluster_mentions(
    document: Document,
    clusters: Iterable[Iterable[Span]] | None = None,
    scores: Mapping[Span, float] | None = None,
) -> list[list[Mention]]:
    """Clusters of word spans, default the document's own, with their characters and strings.

    Args:
        scores: of the mentions, if there are any.
    """
    found = []
    for cluster in document.clusters if clusters is None else clusters:
        mentions = []
        for span in cluster:
            start, end = document.characters(span) or (None, None)
            score = None if scores is None else scores[span]
            mentions.append(Mention(*span, start, end, document.span_text(span), score))
        found.append(mentions)
    return found


def with_text(document: Document) -> tuple[str, tuple[Span, ...]]:
    """A document's text and its words' characters; without a text, its words joined by blanks and
    its sentences by line feeds."""
    if document.text is not None and document.word_offsets is not None:
        return document.text, document.word_offsets
    parts, offsets, at = [], [], 0
    for place, word in enumerate(document.words):
        if place:
            numbers = document.sentence_of_word
            parts.append(" " if numbers[place] == numbers[place - 1] else "\n")
            at += 1
        parts.append(word)
        offsets.append((at, at + len(word)))
        at += len(word)
    return "".join(parts), tuple(offsets)


def resolved_document(document: Document, clusters: Iterable[Iterable[Span]] | None = None) -> str:
    """`resolved_text` for clusters of word spans, default the document's own."""
    text, offsets = with_text(document)
    chosen = document.clusters if clusters is None else clusters
    return resolved_text(
        text, [[(offsets[a][0], offsets[b][1]) for a, b in cluster] for cluster in chosen]
    )


def cluster_names(document: Document, clusters: Iterable[Iterable[Span]]) -> list[str]:
    """The most telling mention of each cluster of word spans; of pronouns alone the first."""
    text, offsets = with_text(document)
    resolver = _Resolver(
        text, [sorted({(offsets[a][0], offsets[b][1]) for a, b in cluster}) for cluster in clusters]
    )
    return [
        " ".join(text[slice(*(resolver.representative(own) or own[0]))].split())
        for own in resolver.clusters
    ]


def resolved_text(text: str, clusters: Iterable[Iterable[Span]]) -> str:
    """A text in which mentions are replaced by their cluster's representative.

    The rules are the module's.

    Args:
        clusters: ranges of characters of the mentions, end exclusive.

    Raises:
        DataError: a range is empty, outside the text, or white space alone.
    """
    resolver = _Resolver(text, [sorted(set(cluster)) for cluster in clusters])
    parts, at = [], 0
    for start, end, new in resolver.changes():
        if start >= at:
            parts += [text[at:start], new]
            at = end
    return "".join([*parts, text[at:]])


class _Resolver:
    def __init__(self, text: str, clusters: Sequence[Sequence[Span]]):
        for start, end in (span for cluster in clusters for span in cluster):
            if not 0 <= start < end <= len(text):
                raise DataError(f"mention {start}..{end} is not inside the {len(text)} characters")
            if text[start:end].isspace():
                raise DataError(f"mention {start}..{end} is white space")
        self.text, self.clusters = text, clusters
        words = (text[start:end] for start, end in units(text, treebank=True))
        self.lower_words = {word for word in words if word[0].islower()}
        self.longest: dict[int, int] = {}
        for start, end in (span for cluster in clusters for span in cluster):
            self.longest[start] = max(end, self.longest.get(start, 0))

    def changes(self) -> list[tuple[int, int, str]]:
        """What is to be replaced by what, outer before inner."""
        found = []
        for cluster in self.clusters:
            inner = _inside_others(cluster)
            representative = self.representative(cluster)
            if representative is None:
                continue
            for span in cluster:
                new = self._replacement(span, representative)
                if span != representative and span not in inner and new is not None:
                    found.append((*span, new))
        return sorted(found, key=lambda change: (change[0], -change[1]))

    def _words(self, span: Span) -> list[str]:
        part = self.text[slice(*span)]
        return [part[start:end] for start, end in units(part, treebank=True)] or [part]

    def representative(self, cluster: Sequence[Span]) -> Span | None:
        """The most telling mention; None where all are pronouns, or there is one alone."""
        if len(cluster) < 2:
            return None
        holders = _inside_others(cluster, outer=True)

        def order(span: Span) -> tuple:
            words = self._words(span)
            rank = _RANK[kind_of(words, self.lower_words)]
            return rank, len(words) > _SHORT, span in holders, span[0] - span[1], span[0]

        best = min(cluster, key=order)
        return None if order(best)[0] == _RANK["pronoun"] else best

    def _replacement(self, span: Span, representative: Span) -> str | None:
        """New text of a mention; None where it stays."""
        old = self.text[slice(*span)]
        if old.lower() in REFLEXIVES or old.lower() in RELATIVES:
            return None
        new = " ".join(self.text[slice(*representative)].split())
        new = _POSSESSIVE_END.sub("", new) or new
        if _POSSESSIVE_END.sub("", old).lower() == new.lower():
            return None
        words, others = self._words(representative), self._words(span)
        described = kind_of(words, self.lower_words) == "nominal"
        if described and head_of(words).lower() == head_of(others).lower():
            return None
        first = words[0].lower()
        if _SENTENCE_START.search(self.text[max(0, span[0] - _LOOK_BACK) : span[0]]):
            new = new[0].upper() + new[1:]
        elif not words[0][1:].isupper() and (first in DETERMINERS or first in self.lower_words):
            new = new[0].lower() + new[1:]
        if self._possessive(span, old.lower()):
            return new + ("'" if described and new.endswith("s") else "'s")
        return new

    def _possessive(self, span: Span, old: str) -> bool:
        if old != "her":
            return old in POSSESSIVES or _POSSESSIVE_END.search(old) is not None
        if self.longest[span[0]] > span[1]:
            return True
        following = _NEXT_WORD.match(self.text, span[1])
        return following is not None and (
            following[1][0].islower() and following[1] not in FUNCTION_WORDS
        )


def _inside_others(cluster: Sequence[Span], outer: bool = False) -> set[Span]:
    """Mentions of a cluster inside another one of it; with `outer`, those around another one."""
    found, around = set(), []
    for span in sorted(cluster, key=lambda span: (span[0], -span[1])):
        around = [other for other in around if other[1] >= span[1]]
        if around:
            found |= set(around) if outer else {span}
        around.append(span)
    return found
