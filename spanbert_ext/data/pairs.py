"""Pairs of segments for next sentence prediction: [CLS] A [SEP] B [SEP] (Devlin et al. 2019).

A document is cut into chunks as `sequences` cuts it, only a piece shorter, since a pair has one
[SEP] more. A is the sentences of a chunk up to one of its inner sentence ends, each equally likely.
B is, with equal chances, the rest of the chunk (label 0), or text of another document (label 1);
then the rest of the chunk begins the next one. A chunk without an inner sentence end is divided at
a word if the text goes on in mid-sentence, or leaves no room; else it is one sentence, A is all of
it, and B is random. So every piece of a document is in exactly one A or true B, and nothing has to
be cut off.

A random B begins at the start of a sentence that covers a uniformly drawn place of a uniformly
drawn document of the same part. It ends as a chunk does, if need be after some more draws: were it
cut in mid-sentence where a true B is not, the label could be read off its end.

The pairs are arithmetic on the corpus: draws are keyed by the number of the document alone.
"""

from __future__ import annotations

import array
import dataclasses

import numpy as np

from spanbert_ext.data.corpus import Corpus
from spanbert_ext.data.rows import PackedRows, RowBatch
from spanbert_ext.data.sampler import KeyedDraws
from spanbert_ext.data.sequences import (
    STARTS_WORD,
    SequenceIndex,
    next_cut,
    piece_classes,
    sentence_cuts,
)
from spanbert_ext.errors import DataError

# Special tokens of a pair.
_SPECIALS = 3
# Pairs, like the held-out part, do not change with the training seed.
_KEY = 0xA5B
# Places drawn for a random segment until one ends with its sentence.
_TRIES = 8
_CHANCES = 1 << 32


@dataclasses.dataclass(frozen=True, eq=False)
class Ranges:
    """Stretches of text, at most one of a document.

    Args:
        documents: [M] int64, ascending.
        starts, stops: [M] int64 positions in the corpus.
    """

    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, sequences: SequenceIndex, own: np.ndarray) -> Ranges:
        """The text of some sequences ([N] bool), which follow on each other inside a document."""
        ids = np.flatnonzero(own)
        documents, first, counts = np.unique(
            sequences.documents[ids], return_index=True, return_counts=True
        )
        first_ids = ids[first]
        return cls(documents, sequences.cuts[first_ids], sequences.cuts[first_ids + counts])


@dataclasses.dataclass(frozen=True, eq=False)
class PairIndex:
    """Pairs by number.

    Args:
        starts: [N, 2] int64 positions of the corpus where A and B begin.
        lengths: [N, 2] int32 pieces of A and B, each at least 1.
        labels: [N] int8, 1 where B is random.
    """

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return self.labels.size


def make_pairs(
    corpus: Corpus, own: Ranges, others: Ranges, max_pieces: int, short_prob: float
) -> PairIndex:
    """The pairs of a part of a corpus.

    Args:
        corpus: an open corpus.
        own: text that is divided into A and true B.
        others: where random B come from; must hold a document besides each of `own`.
        max_pieces: most pieces of A and B together, at least 2.
        short_prob: chance of a pair to be limited to fewer, uniformly 2 to max_pieces - 1.
    """
    maker = _PairMaker(corpus, others, max_pieces, round(short_prob * _CHANCES))
    for document, start, stop in zip(
        own.documents.tolist(), own.starts.tolist(), own.stops.tolist(), strict=True
    ):
        maker.divide(document, start, stop)
    tables = (np.asarray(maker.starts).reshape(-1, 2), np.asarray(maker.lengths).reshape(-1, 2))
    return PairIndex(*tables, np.asarray(maker.labels))


class _PairMaker:
    """Divides documents into pairs and collects them."""

    def __init__(self, corpus: Corpus, others: Ranges, max_pieces: int, short_chances: int):
        self._corpus, self._others = corpus, others
        self._classes = piece_classes(corpus.vocabulary)
        self._max_pieces, self._short_chances = max_pieces, short_chances
        # Not lists: a number in a list takes 40 bytes.
        self.starts, self.lengths = array.array("q"), array.array("i")
        self.labels = array.array("b")

    def divide(self, document: int, start: int, stop: int) -> None:
        """Add the pairs of positions [start, stop) of a document."""
        draws = KeyedDraws(_KEY, document)
        while start < stop:
            room = self._max_pieces
            if self._short_chances and draws.below(_CHANCES) < self._short_chances and room > 2:
                room = 2 + draws.below(room - 2)
            chunk, ends = self._chunk(start, stop, room)
            if ends.size:
                first = int(ends[draws.below(ends.size)])
                is_random = draws.below(2) == 1
            else:
                first, is_random = chunk, True
            second = start + first, chunk - first
            if is_random:
                second = self._random_segment(draws, document, room - first)
            self.starts.extend((start, second[0]))
            self.lengths.extend((first, second[1]))
            self.labels.append(is_random)
            start += first if is_random else chunk

    def _window(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] classes of the pieces at positions of one document."""
        return self._classes[self._corpus.read(start, stop)]

    def _chunk(self, start: int, stop: int, room: int) -> tuple[int, np.ndarray]:
        """(pieces of the next chunk, [n] offsets where its A may end; none if A is all of it)."""
        window = self._window(start, min(stop, start + room + 1))
        goes_on = window.size > room
        chunk = next_cut(window) if goes_on else window.size
        cuts = sentence_cuts(window)
        ends = cuts[cuts < chunk]
        in_sentence = goes_on and not (cuts == chunk).any()
        if not ends.size and (in_sentence or chunk == room):
            ends = np.flatnonzero(window[1:chunk] & STARTS_WORD) + 1
            if not ends.size:
                ends = np.arange(1, chunk)
        return chunk, ends

    def _random_segment(self, draws: KeyedDraws, document: int, room: int) -> tuple[int, int]:
        """(position, pieces) of a segment of another document, at most `room` pieces."""
        documents = self._others.documents
        place = int(np.searchsorted(documents, document))
        skip = place < documents.size and int(documents[place]) == document
        for _ in range(_TRIES):
            number = draws.below(documents.size - skip)
            number += skip and number >= place
            start, stop = int(self._others.starts[number]), int(self._others.stops[number])
            position, pieces, whole = self._sentences_at(
                start + draws.below(stop - start), start, stop, room
            )
            if whole:
                break
        return position, pieces

    def _sentences_at(self, place: int, start: int, stop: int, room: int) -> tuple[int, int, bool]:
        """(position, pieces, whether they end with a sentence) of at most `room` pieces from the
        start of the sentence, or failing that the word, that covers `place`."""
        before = max(start, place - self._max_pieces)
        window = self._window(before, min(stop, place + room + 1))
        cuts = sentence_cuts(window)
        begins = cuts[cuts <= place - before]
        if begins.size:
            begin = int(begins[-1])
        elif before == start:
            begin = 0
        else:
            words = np.flatnonzero(window[: place - before + 1] & STARTS_WORD)
            begin = int(words[-1]) if words.size else place - before
        position = before + begin
        if stop - position <= room:
            return position, stop - position, True
        pieces = next_cut(window[begin : begin + room + 1])
        return position, pieces, bool((cuts == begin + pieces).any())


class PairedRows(PackedRows):
    """The training or validation part of a corpus as rows of pairs, [CLS] A [SEP] B [SEP].

    Short pairs share a row. The parts are those of `PackedRows`; where the validation part is text
    of one document, its random segments come from the training part. Each segment is masked on its
    own: pair n has segment ids 2n and 2n + 1.

    Args:
        corpus, max_length, split, validation_fraction, candidates: as in `PackedRows`; max_length
            at least 5.
        short_prob: chance of a pair to be shorter than a row, in [0, 1].

    Raises:
        DataError: all the text to draw random segments from is one document; and as in
            `PackedRows`.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int = 512,
        split: str = "train",
        validation_fraction: float | None = None,
        candidates: str | None = None,
        short_prob: float = 0.0,
    ):
        if max_length < _SPECIALS + 2:
            raise ValueError(f"max_length must be at least {_SPECIALS + 2}; got {max_length}")
        if not 0 <= short_prob <= 1:
            raise ValueError(f"short_prob must lie in [0, 1]; got {short_prob}")
        self._short_prob = short_prob
        super().__init__(corpus, max_length, split, validation_fraction, candidates)

    def _samples(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mine = Ranges.of(self.sequences, own)
        others = mine
        if self.split == "validation" and mine.documents.size == 1:
            others = Ranges.of(self.sequences, ~own)
        if mine.documents.size and np.union1d(mine.documents, others.documents).size < 2:
            raise DataError(
                f"{self.corpus.path}: the {self.split} text is one document, and half of the time "
                "the second segment of a pair must come from another one; prepare more documents, "
                "or train on single sequences (batch.pairs false)"
            )
        self.pairs = make_pairs(
            self.corpus, mine, others, self.max_length - _SPECIALS, self._short_prob
        )
        # To `PackedRows` the [SEP] between the segments is a piece like the others.
        return np.arange(len(self.pairs)), self.pairs.lengths.sum(1, dtype=np.int64) + 1

    def _segments(self, sample: int) -> list[tuple[int, int]]:
        begins, lengths = self.pairs.starts[sample], self.pairs.lengths[sample]
        return list(zip(begins.tolist(), (begins + lengths).tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        """Pieces of this split's pairs, without [CLS] and [SEP]; random segments repeat some."""
        return int(self.pairs.lengths.sum())

    def _layout(self, first: int, stop: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError("pairs are laid out by `batch` alone, on the host")

    def batch(self, row_ids, pad: bool = False) -> RowBatch:
        """As in `PackedRows`, with the fields that describe pairs; M segments are 2N."""
        batch = super().batch(row_ids, pad)
        samples, starts = batch.sample_ids, batch.cu_seqlens[:-1]
        used = samples >= 0
        # Where B begins; padding is all A.
        splits = batch.cu_seqlens[1:].copy()
        splits[used] = starts[used] + self.pairs.lengths[samples[used], 0] + 2
        borders = np.append(np.stack([starts, splits], 1).reshape(-1), batch.cu_seqlens[-1])
        segment_ids = np.where(used, 2 * samples, -1)[:, None] + np.where(used[:, None], [0, 1], 0)
        types = np.tile(np.array([0, 1], dtype=np.int64), samples.size)
        labels = np.full(samples.size, -100, dtype=np.int64)
        labels[used] = self.pairs.labels[samples[used]]
        return dataclasses.replace(
            batch,
            segment_cu_seqlens=borders,
            segment_ids=segment_ids.reshape(-1),
            token_type_ids=np.repeat(types, np.diff(borders)),
            nsp_labels=labels,
        )
