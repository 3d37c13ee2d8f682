"""A document cut into segments that the encoder reads one by one (the independent variant).

Words become pieces; a segment holds at most `max_segment_len` of them between its [CLS] and [SEP],
ends with a sentence where it can, else with a word, and inside a word only where that word alone is
longer than a segment (Joshi et al. 2019, "independent"). Nothing overlaps and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.coref.data import Document, Span, without_singletons
from spanbert_ext.text import tokenise_words

# Between [CLS] and [SEP] at least one piece must fit.
SHORTEST_SEGMENT = 3


@dataclass(frozen=True, slots=True, eq=False)
class SegmentedDocument:
    """What a coreference model reads: T tokens in N segments, M gold mentions.

    Args:
        document: the words it was made of.
        tokens: [T] int64, ids of the pieces, with the [CLS] and [SEP] of every segment.
        cu_seqlens: [N + 1] int64, where each segment begins, and T.
        sentence_map: [T] int64, number of the sentence, -1 at [CLS] and [SEP].
        word_of_piece: [T] int64, place of the word in the document, -1 at [CLS] and [SEP].
        last_word_of_piece: [T] int64, alike, the last word of a piece that holds several, as pieces
            of scripts without blanks do; elsewhere the same.
        segment_of: [T] int64, number of the segment, from 0.
        speakers: [T] int64; 0 where none is known and at [CLS] and [SEP], else 1, 2, ... in the
            order in which speakers first appear in the document. All from the `max_speakers`-th on
            share that last number.
        gold_starts: [M] int64, first piece of each gold mention, ascending.
        gold_ends: [M] int64, its last piece, inclusive.
        gold_clusters: [M] int64, number of its cluster; equal where two mentions corefer.
    """

    document: Document
    tokens: np.ndarray
    cu_seqlens: np.ndarray
    sentence_map: np.ndarray
    word_of_piece: np.ndarray
    last_word_of_piece: np.ndarray
    segment_of: np.ndarray
    speakers: np.ndarray
    gold_starts: np.ndarray
    gold_ends: np.ndarray
    gold_clusters: np.ndarray

    @property
    def id(self) -> str:
        """Of the document."""
        return self.document.id

    @property
    def genre(self) -> str | None:
        """Of the document."""
        return self.document.genre

    @property
    def segments(self) -> int:
        """N."""
        return len(self.cu_seqlens) - 1

    @property
    def longest(self) -> int:
        """Pieces of the longest segment, special ones included."""
        return int(np.diff(self.cu_seqlens).max())

    def word_span(self, start: int, end: int) -> Span:
        """First and last word of a span of pieces, both inclusive; part of a word counts as all.

        Raises:
            DataError: the span is out of range, or begins or ends at [CLS] or [SEP].
        """
        if not 0 <= start <= end < len(self.tokens):
            raise DataError(f"{self.id}: no span {start}..{end} in {len(self.tokens)} pieces")
        first, last = int(self.word_of_piece[start]), int(self.last_word_of_piece[end])
        if min(first, last) < 0:
            raise DataError(f"{self.id}: span {start}..{end} begins or ends at a special token")
        return first, last

    def word_clusters(self, clusters: Iterable[Iterable[Sequence[int]]]) -> tuple:
        """Clusters of words from clusters of spans of pieces.

        Two spans of pieces can stand for the same words. Such a mention is kept once, in the first
        of the clusters as they are given: the reference scorer does not want it twice. Clusters
        that lose all mentions vanish.
        """
        seen: set[Span] = set()
        found = []
        for cluster in clusters:
            spans = {self.word_span(int(start), int(end)) for start, end in cluster} - seen
            seen |= spans
            if spans:
                found.append(tuple(sorted(spans)))
        return tuple(sorted(found))

    def part(self, first: int, last: int) -> SegmentedDocument:
        """Segments first..last - 1; mentions that are not wholly inside are dropped.

        Sentence and word numbers stay those of the whole document, so that spans still map back.
        """
        if not 0 <= first < last <= self.segments:
            raise DataError(f"{self.id}: no segments {first}..{last - 1}, it has {self.segments}")
        begin, end = int(self.cu_seqlens[first]), int(self.cu_seqlens[last])
        inside = (self.gold_starts >= begin) & (self.gold_ends < end)
        return replace(
            self,
            tokens=self.tokens[begin:end],
            cu_seqlens=self.cu_seqlens[first : last + 1] - begin,
            sentence_map=self.sentence_map[begin:end],
            word_of_piece=self.word_of_piece[begin:end],
            last_word_of_piece=self.last_word_of_piece[begin:end],
            segment_of=self.segment_of[begin:end] - first,
            speakers=self.speakers[begin:end],
            gold_starts=self.gold_starts[inside] - begin,
            gold_ends=self.gold_ends[inside] - begin,
            gold_clusters=self.gold_clusters[inside],
        )


def window(
    document: SegmentedDocument, rng: np.random.Generator, max_segments: int
) -> SegmentedDocument:
    """At most `max_segments` segments in a row, the first drawn uniformly; for training."""
    if max_segments < 1:
        raise ConfigError(f"max_segments: must be at least 1; got {max_segments}")
    spare = document.segments - max_segments
    if spare <= 0:
        return document
    first = int(rng.integers(spare + 1))
    return document.part(first, first + max_segments)


def segment(
    documents: Sequence[Document],
    tokenizer: Any,
    max_segment_len: int = 384,
    singletons: bool = True,
    max_speakers: int = 20,
    blanks: bool = True,
) -> list[SegmentedDocument]:
    """Cut documents into segments.

    A word that the tokenizer makes nothing of, such as a control character, becomes its unknown
    piece: no word is without a piece.

    Args:
        tokenizer: a fast Hugging Face tokenizer with [CLS], [SEP] and [UNK], or others in their
            roles.
        max_segment_len: most pieces of a segment, [CLS] and [SEP] included.
        singletons: keep gold mentions that corefer with no other.
        max_speakers: largest speaker number.
        blanks: whether words are read with the blanks between them, as `text.tokenise_words`.

    Raises:
        ConfigError: a number is too small, or the tokenizer lacks a special token.
    """
    if max_segment_len < SHORTEST_SEGMENT:
        raise ConfigError(
            f"max_segment_len: must be at least {SHORTEST_SEGMENT}; got {max_segment_len}"
        )
    if max_speakers < 1:
        raise ConfigError(f"max_speakers: must be at least 1; got {max_speakers}")
    specials = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    for name, id in zip(
        ("[CLS]", "[SEP]", "[UNK]"), (*specials, tokenizer.unk_token_id), strict=True
    ):
        if id is None:
            raise ConfigError(f"tokenizer: it has no {name}, which coreference needs")
    pieces = tokenise_words(
        [(document.words, document.text, document.word_offsets) for document in documents],
        tokenizer,
        blanks,
        split_special_tokens=True,  # a word that reads "[SEP]" is no end of a segment
    )
    room = max_segment_len - 2
    found = []
    for document, own in zip(documents, pieces, strict=True):
        ends = own.bounds[1:]
        sentences = np.array(document.sentence_of_word, dtype=np.int64)
        closes = np.append(sentences[1:] != sentences[:-1], True)
        cuts = segment_ends(ends, closes, room)
        found.append(
            lay_out(
                document,
                own.ids,
                np.diff(own.bounds),
                cuts,
                specials,
                singletons,
                max_speakers,
                own.first,
            )
        )
    return found


def segment_ends(word_ends: np.ndarray, closes: np.ndarray, room: int) -> list[int]:
    """Where segments end, in pieces without specials.

    Args:
        word_ends: [W] int64, ascending, the piece behind the last of each word.
        closes: [W] bool, the word ends its sentence.
        room: most pieces of a segment.
    """
    total = int(word_ends[-1])
    sentence_ends = word_ends[closes]
    cuts, begin = [], 0
    while begin < total:
        limit = begin + room
        for ends in (sentence_ends, word_ends):
            place = int(np.searchsorted(ends, limit, side="right"))
            if place and ends[place - 1] > begin:
                limit = int(ends[place - 1])
                break
        cuts.append(min(limit, total))
        begin = cuts[-1]
    return cuts


def lay_out(
    document: Document,
    pieces: np.ndarray,
    sizes: np.ndarray,
    cuts: Sequence[int],
    specials: tuple[int, int],
    singletons: bool,
    max_speakers: int,
    firsts: np.ndarray | None = None,
) -> SegmentedDocument:
    """The arrays of a document whose pieces and segments are known.

    Args:
        pieces: [P] int64, ids of all words' pieces, without specials.
        sizes: [W] int64, pieces of each word; 0 where it lies in the last piece of the word before.
        cuts: the end of each segment in `pieces`, ascending, the last one P.
        specials: ids of [CLS] and [SEP].
        firsts: [W] int64, the piece that each word's characters begin in; None: its first one.
    """
    bounds = np.array([0, *cuts], dtype=np.int64)
    lengths = np.diff(bounds) + 2
    segment_of_piece = np.repeat(np.arange(len(cuts)), np.diff(bounds))
    # Every segment before adds two specials, the own one its [CLS].
    places = np.arange(len(pieces)) + 2 * segment_of_piece + 1
    cu_seqlens = np.append(0, np.cumsum(lengths))
    total = int(cu_seqlens[-1])

    def spread(values: np.ndarray, at_specials: int) -> np.ndarray:
        whole = np.full(total, at_specials, dtype=np.int64)
        whole[places] = values
        return whole

    tokens = spread(pieces, specials[1])
    tokens[cu_seqlens[:-1]] = specials[0]
    word_of_piece = np.repeat(np.arange(len(sizes)), sizes)
    word_ends = np.cumsum(sizes)
    last_word_of_piece = np.maximum(
        word_of_piece, np.searchsorted(word_ends, np.arange(len(pieces)) + 1, side="right") - 1
    )
    speakers = speaker_numbers(document.speakers, len(sizes), max_speakers)
    firsts = word_ends - sizes if firsts is None else firsts
    clusters = document.clusters if singletons else without_singletons(document.clusters)
    gold = sorted((span, number) for number, cluster in enumerate(clusters) for span in cluster)
    first, last = (np.array([span[i] for span, _ in gold], dtype=np.int64) for i in (0, 1))
    return SegmentedDocument(
        document,
        tokens,
        cu_seqlens,
        spread(np.array(document.sentence_of_word)[word_of_piece], -1),
        spread(word_of_piece, -1),
        spread(last_word_of_piece, -1),
        np.repeat(np.arange(len(cuts)), lengths),
        spread(speakers[word_of_piece], 0),
        places[firsts[first]],
        places[word_ends[last] - 1],
        np.array([number for _, number in gold], dtype=np.int64),
    )


def speaker_numbers(
    speakers: Sequence[str | None] | None, words: int, max_speakers: int
) -> np.ndarray:
    """[W] int64, see `SegmentedDocument.speakers`."""
    numbers = np.zeros(words, dtype=np.int64)
    known: dict[str, int] = {}
    for place, speaker in enumerate(speakers or ()):
        if speaker is not None:
            numbers[place] = known.setdefault(speaker, min(len(known) + 1, max_speakers))
    return numbers
