"""A document of words with its sentences, speakers and clusters of mentions.

A mention is a pair (first word, last word), both inclusive, counted from 0 over the document. A
cluster is a tuple of mentions. Gold clusters are what the file says, so a mention may stand in
several, or twice in one; `merged` joins them for training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spanbert_ext.errors import DataError
from spanbert_ext.text import Span, units

Clusters = tuple[tuple[Span, ...], ...]
# What becomes of a mention that stands in two clusters.
Shared = Literal["keep", "merge", "error"]

GENRES = ("bc", "bn", "mz", "nw", "pt", "tc", "wb")


@dataclass(frozen=True, slots=True)
class Document:
    """One text; only `id` and `words` are needed.

    Args:
        id: unique in its file.
        words: as written, none empty.
        sentence_of_word: number of each word's sentence, from 0, never falling and without gaps.
        speakers: who says each word, None where nobody is named; None: no speakers at all.
        genre: of OntoNotes (`GENRES`), or of one's own; None: unknown.
        clusters: sorted, see `sorted_clusters`; empty where nothing is annotated.
        text: the text as it came, None where only words came.
        word_offsets: first character and the one behind the last of each word in `text`.
        header: what follows "#begin document" in the file it came from, so that it can be written
            back under the same name.
    """

    id: str
    words: tuple[str, ...]
    sentence_of_word: tuple[int, ...]
    speakers: tuple[str | None, ...] | None = None
    genre: str | None = None
    clusters: Clusters = ()
    text: str | None = None
    word_offsets: tuple[Span, ...] | None = None
    header: str | None = None

    def __post_init__(self):
        fault = _fault_of(self)
        if fault:
            raise DataError(f"document {self.id}: {fault}")

    def span_text(self, span: Span) -> str:
        """A mention as it stands in the text, or its words joined by blanks."""
        first, last = span
        if self.text is None or self.word_offsets is None:
            return " ".join(self.words[first : last + 1])
        return self.text[self.word_offsets[first][0] : self.word_offsets[last][1]]

    def characters(self, span: Span) -> Span | None:
        """First character of a mention and the one behind its last; None without a text."""
        if self.text is None or self.word_offsets is None:
            return None
        return self.word_offsets[span[0]][0], self.word_offsets[span[1]][1]


def _fault_of(document: Document) -> str | None:
    words, sentences = document.words, document.sentence_of_word
    if not words:
        return "it has no words"
    if not all(words):
        return f"word {words.index('')} is empty"
    if len(sentences) != len(words):
        return f"{len(words)} words but {len(sentences)} sentence numbers"
    before = -1
    for place, number in enumerate(sentences):
        if number not in (before, before + 1) or number < 0:
            return f"sentence number {number} at word {place} follows {before}"
        before = number
    if document.speakers is not None and len(document.speakers) != len(words):
        return f"{len(words)} words but {len(document.speakers)} speakers"
    if document.word_offsets is not None and len(document.word_offsets) != len(words):
        return f"{len(words)} words but {len(document.word_offsets)} offsets"
    for first, last in (span for cluster in document.clusters for span in cluster):
        if not 0 <= first <= last < len(words):
            return f"mention {first}..{last} is out of range, there are {len(words)} words"
    return None


def sorted_clusters(
    clusters: Iterable[Iterable[Sequence[int]]], shared: Shared = "merge"
) -> tuple[Clusters, int]:
    """Clusters in the one order used everywhere, every mention once unless it is to be kept.

    Mentions are sorted by first and last word, clusters by their first mention; empty clusters
    vanish.

    Args:
        shared: what to do with a mention in two clusters: `merge` joins them into one, as the
            preprocessing of the original implementation does. `keep` leaves all clusters as they
            are, repetitions inside one too, and in their order if any mention stands there twice:
            scores depend on it (`metrics.CorefScorer`).

    Returns:
        The clusters, and how many repetitions of a mention inside its cluster there were.

    Raises:
        DataError: with shared=error, names such a mention.
    """
    repeated, owner, joined = 0, {}, []
    given = [[(int(first), int(last)) for first, last in cluster] for cluster in clusters]
    if shared == "keep":
        kept = [tuple(sorted(cluster)) for cluster in given if cluster]
        every = [span for cluster in kept for span in cluster]
        repeated = sum(len(cluster) - len(set(cluster)) for cluster in kept)
        return tuple(kept if len(set(every)) < len(every) else sorted(kept)), repeated
    for mentions in given:
        group = set(mentions)
        repeated += len(mentions) - len(group)
        for other in sorted({owner[span] for span in group if span in owner}):
            if shared == "error":
                span = min(group & joined[other])
                raise DataError(f"mention {span[0]}..{span[1]} stands in two clusters")
            group |= joined[other]
            joined[other] = set()
        owner.update(dict.fromkeys(group, len(joined)))
        joined.append(group)
    return tuple(sorted(tuple(sorted(group)) for group in joined if group)), repeated


def merged(document: Document) -> Document:
    """The document with every gold mention in one cluster: those that share one are joined."""
    return dataclasses.replace(document, clusters=sorted_clusters(document.clusters)[0])


def without_singletons(clusters: Clusters) -> Clusters:
    """The clusters of at least two mentions."""
    return tuple(cluster for cluster in clusters if len(set(cluster)) > 1)


def genre_of(id: str) -> str | None:
    """The OntoNotes genre that a document's name begins with ("nw/xinhua/00/..."), or None."""
    head = id.split("/")[0] if "/" in id else ""
    return head if head in GENRES else None


def from_words(
    id: str,
    sentences: Iterable[Sequence[str]],
    clusters: Iterable[Iterable[Sequence[int]]] = (),
    speakers: Sequence[str | None] | None = None,
    genre: str | None = None,
    shared: Shared = "merge",
) -> Document:
    """A document of sentences given as lists of words; empty ones are passed over.

    Raises:
        DataError: an empty word or document, a mention out of range, a wrong number of speakers.
    """
    kept = [list(sentence) for sentence in sentences if sentence]
    words = tuple(word for sentence in kept for word in sentence)
    numbers = tuple(number for number, sentence in enumerate(kept) for _ in sentence)
    speakers = None if speakers is None or not any(speakers) else tuple(speakers)
    return Document(id, words, numbers, speakers, genre, sorted_clusters(clusters, shared)[0])


def cut_sentences(words: Sequence[str]) -> list[list[str]]:
    """The sentences of a list of words, by the rules of `sentences`."""
    from spanbert_ext.tasks.coref.sentences import number_sentences

    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    spans = [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]
    sentences: list[list[str]] = []
    for word, number in zip(words, number_sentences(" ".join(words), spans), strict=True):
        if number == len(sentences):
            sentences.append([])
        sentences[-1].append(word)
    return sentences


def from_text(
    id: str,
    text: str,
    words: Callable[[str], Sequence[Span]] | None = None,
    sentences: Callable[[str, Sequence[Span]], Sequence[int]] | None = None,
    genre: str | None = None,
) -> Document:
    """A document of raw text.

    Args:
        words: from a text to the ranges of characters of its words, in order and disjoint; default
            by rule (`spanbert_ext.text.units`).
        sentences: from a text and its words to the number of each word's sentence, from 0; default
            `sentences.number_sentences`.

    Raises:
        DataError: no word in the text, or a callable returned something impossible.
    """
    if sentences is None:
        from spanbert_ext.tasks.coref.sentences import number_sentences as sentences
    split = units(text, treebank=True) if words is None else words(text)
    spans = tuple((int(start), int(end)) for start, end in split)
    at = 0
    for start, end in spans:
        if not at <= start < end <= len(text):
            raise DataError(
                f"document {id}: the word splitter returned {start}..{end} after {at}; words must "
                f"be ordered, disjoint, not empty and inside the {len(text)} characters"
            )
        at = end
    pieces = tuple(text[start:end] for start, end in spans)
    numbers = tuple(int(number) for number in sentences(text, spans))
    return Document(id, pieces, numbers, genre=genre, text=text, word_offsets=spans)
