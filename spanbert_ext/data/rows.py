"""Rows of a corpus by number: sequences with [CLS] and [SEP], packed to a fixed length."""

from __future__ import annotations

import dataclasses

import numpy as np

from spanbert_ext.data.candidates import BEGIN, INSIDE
from spanbert_ext.data.corpus import Corpus
from spanbert_ext.data.packing import Packing, pack
from spanbert_ext.data.sampler import KeyedPermutation, RowOrder
from spanbert_ext.data.sequences import SequenceIndex, cut_corpus
from spanbert_ext.data.token_files import token_dtype

# Below this many documents the last sequences are held out instead of whole documents.
_MIN_DOCUMENTS = 20
# The held-out part must not change with the training seed.
_SPLIT_SEED = 0x5EED


@dataclasses.dataclass(frozen=True)
class RowBatch:
    """Packed sequences of some rows.

    Args:
        tokens: [T] int64 ids.
        cu_seqlens: [N + 1] int64, sequence n is tokens[cu_seqlens[n] : cu_seqlens[n + 1]].
        sample_ids: [N] int64 number of the sequence in the corpus; -1 for padding and unused slots.
        candidates: [T] uint8 candidate spans, 0 outside (as all special tokens are), 1 begins a
            span, 2 continues it; None where the rows have none.
        segment_cu_seqlens: [2N + 1] int64, what is masked on its own where sequences are pairs:
            segments 2n and 2n + 1 are sequence n, the second one empty for padding; None where a
            sequence is one segment.
        segment_ids: [2N] int64 sample ids of the segments.
        token_type_ids: [T] int64, 1 in the second segment of a pair.
        nsp_labels: [N] int64, whether the second segment is a random one (1) or the first one's
            continuation (0); -100 for padding and unused slots.
    """

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    sample_ids: np.ndarray
    candidates: np.ndarray | None = None
    segment_cu_seqlens: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    token_type_ids: np.ndarray | None = None
    nsp_labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RowSlots:
    """The sequences of padded rows, row by row: what `PackedRows.batch(ids, pad=True)` looks up.

    Args:
        offsets: [R + 1] int64; row r holds slots offsets[r] to offsets[r + 1].
        lengths: [M] int64 tokens of each, [CLS] and [SEP] or the [PAD]s included.
        sample_ids: [M] int64 number of the sequence in the corpus, -1 for padding.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    sample_ids: np.ndarray


class PackedRows:
    """The training or validation part of a corpus as rows of `max_length` tokens.

    Args:
        corpus: an open corpus.
        max_length: tokens of a row; a sequence has at most max_length - 2 pieces.
        split: "train" or "validation".
        validation_fraction: share held out, in [0, 0.5]; default as the corpus was prepared. Whole
            documents, at least one, chosen by a fixed key; the last sequences where there are fewer
            than 20 documents. A corpus of one sequence has no validation part.
        candidates: kind of the candidate spans that batches carry, `entity` or `phrase`; None for
            none.

    Raises:
        DataError: the corpus has no such candidates, or a token file is damaged.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int = 512,
        split: str = "train",
        validation_fraction: float | None = None,
        candidates: str | None = None,
    ):
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3; got {max_length}")
        if split not in ("train", "validation"):
            raise ValueError(f"split must be train or validation; got {split!r}")
        if validation_fraction is not None and not 0 <= validation_fraction <= 0.5:
            raise ValueError(f"validation_fraction must lie in [0, 0.5]; got {validation_fraction}")
        self.corpus = corpus
        self.max_length = max_length
        self.split = split
        self._marks = None if candidates is None else corpus.annotation(candidates)
        self.sequences = cut_corpus(corpus, max_length - 2)
        self._sample_ids, self._lengths, self._packing = self._lay_out(validation_fraction)
        offsets = self._packing.offsets
        self._row_tokens = np.diff(
            np.concatenate([[0], np.cumsum((self._lengths + 2)[self._packing.members])])[offsets]
        )
        # A padded batch has one more sequence for every row that is not full.
        slots = np.diff(offsets) + (self._row_tokens < max_length)
        self._max_slots = np.cumsum(np.sort(np.repeat(slots, self._most_visits()))[::-1])

    def _lay_out(self, validation_fraction: float | None) -> tuple[np.ndarray, np.ndarray, Packing]:
        """([N] sample ids of this split, ascending; [N] pieces of each; which share a row)."""
        if validation_fraction is None:
            validation_fraction = self.corpus.validation_fraction
        held_out = held_out_sequences(
            self.sequences, self.corpus.num_documents, validation_fraction
        )
        sample_ids, lengths = self._samples(held_out == (self.split == "validation"))
        return sample_ids, lengths, pack(lengths + 2, self.max_length)

    def _most_visits(self) -> int | np.ndarray:
        """How often a row can be seen in one step."""
        return 1

    def _samples(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([M] sample ids, [M] pieces of each) of this part, whose sequences `own` [N] marks."""
        ids = np.flatnonzero(own)
        return ids, self.sequences.lengths[ids]

    def _segments(self, sample: int) -> list[tuple[int, int]]:
        """What of the corpus a sample shows, as positions (start, stop)."""
        return [(int(self.sequences.cuts[sample]), int(self.sequences.cuts[sample + 1]))]

    def __len__(self) -> int:
        return len(self._packing)

    @property
    def has_candidates(self) -> bool:
        """Whether batches carry candidate spans."""
        return self._marks is not None

    @property
    def num_sequences(self) -> int:
        """Sequences of this split."""
        return self._sample_ids.size

    @property
    def num_tokens(self) -> int:
        """Pieces of this split, without [CLS] and [SEP]."""
        return int(self._lengths.sum())

    def max_sequences(self, batch_rows: int) -> int:
        """Most sequences, padding included, that any `batch_rows` different rows hold."""
        if not 0 <= batch_rows <= len(self):
            raise ValueError(f"batch_rows must lie in [0, {len(self)}]; got {batch_rows}")
        return int(self._max_slots[batch_rows - 1]) if batch_rows else 0

    def order(self, batch_rows: int, seed: int) -> RowOrder:
        """Which rows every step sees."""
        return RowOrder(len(self), batch_rows, seed)

    def selection(self, count: int) -> np.ndarray:
        """[count] int64 rows that stand for all of them: the first ones."""
        return np.arange(count, dtype=np.int64)

    def batch(self, row_ids, pad: bool = False) -> RowBatch:
        """The sequences of some rows, laid end to end.

        Args:
            row_ids: [B] different integers in [0, len(self)).
            pad: fixed shapes: T = B * max_length, the free tail of a row being one sequence of
                [PAD] with sample id -1, and N = max_sequences(B), unused slots being empty
                sequences at the end.

        Raises:
            TypeError, IndexError: row_ids are not integers, or out of range.
            ValueError: a row is named twice.
            DataError: a token file is damaged.
        """
        row_ids = self._checked(row_ids)
        members, lengths, pads = self._sequences_of(row_ids, pad)
        ends = np.cumsum(lengths)
        info = self.corpus.vocabulary
        tokens = np.full(int(ends[-1]) if ends.size else 0, info.pad_id, dtype=np.int64)
        candidates = np.zeros(tokens.size, dtype=np.uint8) if self.has_candidates else None
        sample_ids = np.where(pads, -1, self._sample_ids[members] if members.size else -1)
        for sample, begin in zip(
            sample_ids[~pads].tolist(), (ends - lengths)[~pads].tolist(), strict=True
        ):
            tokens[begin] = info.cls_id
            for start, stop in self._segments(sample):
                end = begin + 1 + stop - start
                tokens[begin + 1 : end] = self.corpus.read(start, stop)
                tokens[end] = info.sep_id
                if candidates is not None:
                    candidates[begin + 1 : end] = self._marks.read(start, stop)
                    _begin_spans(candidates, begin + 1)
                begin = end
        self.corpus.check_ids(tokens)
        cu_seqlens = np.concatenate([[0], ends]).astype(np.int64)
        if pad:
            unused = self.max_sequences(row_ids.size) - sample_ids.size
            cu_seqlens = np.concatenate([cu_seqlens, np.full(unused, cu_seqlens[-1])])
            sample_ids = np.concatenate([sample_ids, np.full(unused, -1)])
        return RowBatch(tokens, cu_seqlens, sample_ids.astype(np.int64), candidates)

    def row_tokens(self, row_ids) -> np.ndarray:
        """[B] int64, tokens of some rows that are not padding."""
        return self._row_tokens[row_ids]

    def slots(self) -> RowSlots:
        """The sequences of all rows, padding included."""
        offsets, members = self._packing.offsets, self._packing.members
        free = self.max_length - self._row_tokens
        padded = free > 0
        behind = offsets[1:][padded]  # a row's padding follows its sequences
        lengths = np.insert(self._lengths[members] + 2, behind, free[padded])
        samples = np.insert(self._sample_ids[members], behind, -1)
        padded_offsets = offsets + np.concatenate([[0], np.cumsum(padded)])
        return RowSlots(padded_offsets.astype(np.int64), lengths, samples)

    def padded_tokens(self, first: int, stop: int) -> np.ndarray:
        """Rows first to stop - 1 as `batch` pads them: [stop - first, max_length], the corpus's
        dtype."""
        begins, lengths, places, positions = self._layout(first, stop)
        info = self.corpus.vocabulary
        dtype = token_dtype(self.corpus.vocab_size)
        tokens = np.full((stop - first) * self.max_length, info.pad_id, dtype=dtype)
        tokens[begins] = info.cls_id
        tokens[begins + lengths - 1] = info.sep_id
        tokens[places] = self.corpus.gather(positions)
        self.corpus.check_ids(tokens)
        return tokens.reshape(-1, self.max_length)

    def padded_candidates(self, first: int, stop: int) -> np.ndarray:
        """The candidate spans of `padded_tokens`: [stop - first, max_length] uint8."""
        begins, _, places, positions = self._layout(first, stop)
        candidates = np.zeros((stop - first) * self.max_length, dtype=np.uint8)
        candidates[places] = self._marks.gather(positions)
        _begin_spans(candidates, begins + 1)
        return candidates.reshape(-1, self.max_length)

    def _layout(self, first: int, stop: int) -> tuple[np.ndarray, ...]:
        """Where the sequences of padded rows lie: ([N] place of each [CLS], [N] lengths with [CLS]
        and [SEP], [P] place of each piece, [P] its position in the corpus)."""
        offsets = self._packing.offsets[first : stop + 1]
        members = self._packing.members[offsets[0] : offsets[-1]]
        pieces = self._lengths[members]
        # Where each sequence begins: its row, and in it what came before.
        before = np.cumsum(pieces + 2) - (pieces + 2)
        counts = np.diff(offsets)
        row_starts = np.arange(stop - first) * self.max_length - before[offsets[:-1] - offsets[0]]
        begins = before + np.repeat(row_starts, counts)
        inner = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = self.sequences.cuts[self._sample_ids[members]]
        places = np.repeat(begins + 1, pieces) + inner
        return begins, pieces + 2, places, np.repeat(starts, pieces) + inner

    def _checked(self, row_ids) -> np.ndarray:
        return self._checked_below(row_ids, len(self))

    def _checked_below(self, row_ids, limit: int) -> np.ndarray:
        row_ids = np.asarray(row_ids)
        if row_ids.size == 0:
            return np.empty(0, dtype=np.int64)
        if row_ids.ndim != 1 or row_ids.dtype.kind not in "iu":
            raise TypeError(f"row_ids must be [B] integers; got {row_ids.dtype} {row_ids.shape}")
        if row_ids.min() < 0 or row_ids.max() >= limit:
            raise IndexError(
                f"row_ids must lie in [0, {limit}); got {row_ids.min()}..{row_ids.max()}"
            )
        if np.unique(row_ids).size != row_ids.size:
            raise ValueError("row_ids must differ from each other; a row is named twice")
        return row_ids.astype(np.int64)

    def _sequences_of(self, row_ids, pad: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([N] members or 0, [N] tokens of each, [N] whether it is padding), row by row."""
        offsets = self._packing.offsets
        members, lengths, pads = [], [], []
        for row in row_ids.tolist():
            inside = self._packing.members[offsets[row] : offsets[row + 1]]
            free = self.max_length - int(self._row_tokens[row])
            members.append(inside)
            lengths.append(self._lengths[inside] + 2)
            pads.append(np.zeros(inside.size, dtype=np.bool_))
            if pad and free:
                members.append(np.zeros(1, dtype=np.int64))
                lengths.append(np.full(1, free, dtype=np.int64))
                pads.append(np.ones(1, dtype=np.bool_))
        if not members:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_)
        return np.concatenate(members), np.concatenate(lengths), np.concatenate(pads)


def _begin_spans(candidates: np.ndarray, places) -> None:
    """Let a span that was cut in two begin again where its sequence does; in place."""
    candidates[places] = np.where(candidates[places] == INSIDE, BEGIN, candidates[places])


def held_out_sequences(sequences: SequenceIndex, num_documents: int, fraction: float) -> np.ndarray:
    """[N] bool, whether a sequence belongs to validation."""
    held_out = np.zeros(len(sequences), dtype=np.bool_)
    if fraction == 0 or len(sequences) < 2:
        return held_out
    if num_documents < _MIN_DOCUMENTS:
        held_out[-max(1, round(fraction * len(sequences))) :] = True
        return held_out
    count = max(1, round(fraction * num_documents))
    chosen = KeyedPermutation(num_documents, _SPLIT_SEED, 0)(np.arange(count))
    return np.isin(sequences.documents, chosen)
