"""Several corpora with weights, as one.

`MixedCorpus` numbers the pieces and documents of its members one after another. `MixedRows` packs
every member by itself, so that a row belongs to one member, and numbers their rows and sequences
likewise. `MixtureOrder` says which rows a step sees:

* Place t of the whole run belongs to the member that stands at t modulo W in a fixed pattern, W
  being the sum of the weights (whole numbers without a common divisor). Each member stands there as
  often as its weight says, evenly spread: shares are exact over every W places, and close to it in
  every batch.
* The k-th place of a member with R rows is row k mod R of its epoch k // R, in the order of a
  permutation of that epoch: all its rows are seen before any is seen again.

So the rows of a step are a function of (seed, step), as with one corpus. A small corpus is seen
many times while a large one is seen once; every visit of a row has masks of its own (`MixedRows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spanbert_ext.data.corpus import Corpus
from spanbert_ext.data.corpus_choice import FORM, ChosenCorpus, parse_corpora
from spanbert_ext.data.packing import Packing, pack
from spanbert_ext.data.rows import PackedRows, RowBatch, held_out_sequences
from spanbert_ext.data.sampler import KeyedPermutation, StepOrder
from spanbert_ext.data.sequences import SequenceIndex
from spanbert_ext.errors import ConfigError, DataError

# Members of equal size must not walk through their rows in step.
_SEED_STRIDE = 0x9E3779B97F4A7C15


def open_corpus(text: str) -> Corpus:
    """The corpus, or the mixture, that the setting `corpus` names.

    Raises:
        ConfigError: impossible weights, or tokenizers that differ.
        DataError: as `Corpus.open`.
    """
    chosen = parse_corpora(text)
    if len(chosen) > 1:
        return MixedCorpus.open(chosen)
    if not Path(text).exists() and ("=" in text or "," in text):
        raise ConfigError(f"corpus: {text!r} is neither a directory nor of the form {FORM}")
    return Corpus.open(text)


class MixedCorpus(Corpus):
    """Corpora laid end to end, with weights.

    Args:
        members: open corpora with the same vocabulary, at least two.
        weights: whole numbers without a common divisor, one for each.

    Raises:
        ConfigError: two members have different vocabularies.
    """

    def __init__(self, members: Sequence[Corpus], weights: Sequence[int]):
        first = members[0]
        for member in members[1:]:
            if member.vocab_hash != first.vocab_hash:
                raise ConfigError(
                    f"corpus: {member.path} was prepared with another tokenizer than {first.path} "
                    f"(vocabularies {member.vocab_hash} and {first.vocab_hash}); prepare it again "
                    f"with `--tokenizer {first.tokenizer_dir}`"
                )
        documents = [member.num_documents for member in members]
        held_out = np.dot([m.validation_fraction for m in members], documents) / sum(documents)
        parts = zip(weights, members, strict=True)
        sidecar = {
            "vocab_size": first.vocab_size,
            "vocab_hash": first.vocab_hash,
            "fingerprint": " + ".join(f"{weight} * {m.fingerprint}" for weight, m in parts),
            "counts": {"documents": sum(documents)},
            "annotations": _common_annotations(members),
            "settings": {"validation_fraction": float(held_out)},
        }
        super().__init__(first.path, sidecar, [shard for m in members for shard in m.shards])
        self.members = tuple(members)
        self.weights = tuple(weights)

    @classmethod
    def open(cls, chosen: Sequence[ChosenCorpus]) -> MixedCorpus:
        """Open every member.

        Raises:
            ConfigError: two have different vocabularies.
            DataError: as `Corpus.open`.
        """
        return cls([Corpus.open(c.path) for c in chosen], [c.weight for c in chosen])

    def verify(self) -> None:
        """As `Corpus.verify`, for every member."""
        for member in self.members:
            member.verify()

    def summary(self) -> str:
        """The members' summaries with their weights."""
        parts = zip(self.weights, self.members, strict=True)
        return "\n".join(f"weight {w}, {m.path}: {m.summary()}" for w, m in parts)


class MixedRows(PackedRows):
    """The training or validation rows of a mixture, member after member.

    A row may be seen again before all others are: number v * len(self) + r is row r at its visit v.
    The sample ids of that visit are moved by v times the sequences there are, so that its masks
    are new.

    Args:
        corpus, max_length, split, candidates: as in `PackedRows`; each member is split as it was
            prepared.
        step_rows: most rows of a step, in the order of `order`.

    Raises:
        DataError: a member has no row to train on.
    """

    def __init__(
        self,
        corpus: MixedCorpus,
        max_length: int,
        split: str,
        step_rows: int,
        candidates: str | None = None,
    ):
        self._step_rows = step_rows
        super().__init__(corpus, max_length, split, candidates=candidates)

    def _lay_out(self, validation_fraction: None) -> tuple[np.ndarray, np.ndarray, Packing]:
        """Members packed one by one; each held out as it was prepared."""
        sample_ids, members, counts, sizes = [], [], [], []
        first_document = first_sequence = packed = 0
        for corpus in self.corpus.members:
            stop_document = first_document + corpus.num_documents
            stop_sequence = int(np.searchsorted(self.sequences.documents, stop_document))
            own = SequenceIndex(
                self.sequences.cuts[first_sequence : stop_sequence + 1],
                self.sequences.documents[first_sequence:stop_sequence] - first_document,
            )
            held_out = held_out_sequences(own, corpus.num_documents, corpus.validation_fraction)
            chosen = np.flatnonzero(held_out == (self.split == "validation"))
            packing = pack(own.lengths[chosen] + 2, self.max_length)
            sample_ids.append(chosen + first_sequence)
            members.append(packing.members + packed)
            counts.append(np.diff(packing.offsets))
            sizes.append(len(packing))
            first_document, first_sequence = stop_document, stop_sequence
            packed += chosen.size
            if self.split == "train" and not len(packing):
                raise DataError(f"{corpus.path} holds nothing to train on; leave it out")
        self._sizes = np.asarray(sizes, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        ids = np.concatenate(sample_ids)
        return ids, self.sequences.lengths[ids], Packing(offsets, np.concatenate(members))

    def _most_visits(self) -> np.ndarray:
        """[R] how often a row can be seen in one step."""
        if self.split == "validation":
            return np.ones(len(self), dtype=np.int64)
        weights = np.asarray(self.corpus.weights, dtype=np.int64)
        # In so many places of the pattern a member stands at most so often; and its draws in a row
        # reach into so many of its epochs.
        rounds = -(-self._step_rows // weights.sum())
        draws = np.minimum(self._step_rows, rounds * weights)
        epochs = -(-(draws - 1) // self._sizes) + 1
        return np.repeat(epochs, self._sizes)

    def order(self, batch_rows: int, seed: int) -> MixtureOrder:
        """Which rows, at which visits, every step sees."""
        return MixtureOrder(self._sizes, self.corpus.weights, batch_rows, seed)

    def selection(self, count: int) -> np.ndarray:
        """[count] rows, every member in proportion to the rows it has."""
        members, numbers = interleave(self._sizes)
        return ((np.cumsum(self._sizes) - self._sizes)[members] + numbers)[:count]

    def batch(self, row_ids, pad: bool = False) -> RowBatch:
        """As `PackedRows.batch`, for different numbers of visits in [0, 2**62)."""
        found = super().batch(row_ids, pad)
        visits, rows = np.divmod(np.asarray(row_ids, dtype=np.int64), len(self))
        slots = np.diff(self._packing.offsets)[rows]
        if pad:
            slots = slots + (self._row_tokens[rows] < self.max_length)
        moved = np.zeros_like(found.sample_ids)
        moved[: slots.sum()] = np.repeat(visits * len(self.sequences), slots)
        real = found.sample_ids >= 0
        found.sample_ids[real] += moved[real]
        return found

    def row_tokens(self, row_ids) -> np.ndarray:
        """[B] int64, tokens of some rows that are not padding."""
        return super().row_tokens(np.asarray(row_ids) % len(self))

    def _checked(self, row_ids) -> np.ndarray:
        return self._checked_below(row_ids, 1 << 62) % max(len(self), 1)


class MixtureOrder(StepOrder):
    """Which rows of a mixture a step sees: arithmetic on (seed, step).

    An epoch is as many steps as all rows fill; nothing restarts there.

    Args:
        sizes: rows of each member, at least 1.
        weights: of each member, whole numbers.
        batch_rows: rows of a step, at most all of them.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[int], batch_rows: int, seed: int):
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._total = int(self._sizes.sum())
        super().__init__(self._total, batch_rows)
        self._weights = np.asarray(weights, dtype=np.int64)
        self._pattern, self._ranks = interleave(self._weights)
        self._seed = seed

    def _at(self, epoch: int, first: int, count: int) -> np.ndarray:
        """[count] numbers of rows at their visits, as `MixedRows` has them."""
        first += epoch * self.steps_per_epoch * self._batch_rows
        rounds, within = np.divmod(np.arange(first, first + count), self._pattern.size)
        members = self._pattern[within]
        draws = rounds * self._weights[members] + self._ranks[within]
        ids = np.empty(count, dtype=np.int64)
        for member, size in enumerate(self._sizes.tolist()):
            places = np.flatnonzero(members == member)
            visits, numbers = np.divmod(draws[places], size)
            seed = self._seed + member * _SEED_STRIDE
            for visit in range(int(visits[0]), int(visits[-1]) + 1) if places.size else ():
                begin, stop = np.searchsorted(visits, [visit, visit + 1])
                rows = KeyedPermutation(size, seed, visit)(numbers[begin:stop])
                ids[places[begin:stop]] = visit * self._total + self._firsts[member] + rows
        return ids


def interleave(counts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members spread evenly: [n] member of each place and [n] how often it stood before, n being
    the sum of the counts."""
    counts = np.asarray(counts, dtype=np.int64)
    members = np.repeat(np.arange(counts.size), counts)
    ranks = np.arange(members.size) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort((2 * ranks + 1) / counts[members], kind="stable")
    return members[order], ranks[order]


def _common_annotations(members: Sequence[Corpus]) -> dict[str, list]:
    """Kinds of candidate spans that every member has -> what each says of them."""
    said = [member.sidecar.get("annotations", {}) for member in members]
    return {kind: [own[kind] for own in said] for kind in said[0] if all(kind in s for s in said)}


def open_rows(
    corpus: Corpus, max_length: int, split: str, step_rows: int, candidates: str | None = None
) -> PackedRows:
    """The rows of a corpus or of a mixture; arguments as in `MixedRows`."""
    if isinstance(corpus, MixedCorpus):
        return MixedRows(corpus, max_length, split, step_rows, candidates)
    return PackedRows(corpus, max_length, split, candidates=candidates)
