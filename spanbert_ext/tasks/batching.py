"""Features to packed batches: in what order, and as which tensors. Nothing is padded but the end of
a stream for our own encoder, by less than `MULTIPLE` tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spanbert_ext.tasks.task import Feature, Head
from spanbert_ext.training.ranks import ALONE, Ranks

# A stream's length is rounded up to a multiple: libraries of matrix products prepare themselves
# anew for every shape (on a CPU with AMX a bf16 product of a new shape costs milliseconds).
MULTIPLE = 128
# Batches whose features are sorted by length together before they are cut.
_SORTED_BATCHES = 32


@dataclass(frozen=True)
class PackedBatch:
    """Some features as one stream; sequences of padding may follow them.

    Args:
        input_ids: [T] int64.
        cu_seqlens: [M + 1] int64, M the number of features and of sequences of padding.
        token_type_ids: [T] int64, None: all 0.
        max_seqlen: the longest sequence.
        rows: [R] int64, flat places of the tokens whose outputs are read (token-classification).
        labels: [M, 2], [R] or [M] as the head wants them, ignored ones marked; None without.
        lengths: tokens of every feature, in order.
        counts: rows of every feature, in order (token-classification).
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    token_type_ids: torch.Tensor | None
    max_seqlen: int
    rows: torch.Tensor | None
    labels: torch.Tensor | None
    lengths: tuple[int, ...]
    counts: tuple[int, ...] | None

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    def inputs(self) -> dict[str, torch.Tensor | int | None]:
        """Arguments of a model's forward."""
        named = {
            "input_ids": self.input_ids,
            "cu_seqlens": self.cu_seqlens,
            "token_type_ids": self.token_type_ids,
            "max_seqlen": self.max_seqlen,
        }
        return named if self.rows is None else named | {"rows": self.rows}


def pack(
    features: Sequence[Feature],
    head: Head,
    pad_id: int,
    device: torch.device | str = "cpu",
    ignored: bool = False,
    multiple: int = MULTIPLE,
) -> PackedBatch:
    """One stream of some features, in their order.

    Args:
        features: at least one; labels on all of them or on none.
        pad_id: id of the padding behind the last one.
        ignored: mark every label as one to ignore.
        multiple: the stream is padded to one of this number of tokens; 1: not at all.
    """
    lengths = [len(feature.input_ids) for feature in features]
    total = sum(lengths)
    padding = -total % multiple
    ids = np.full(total + padding, pad_id, np.int64)
    np.concatenate([feature.input_ids for feature in features], out=ids[:total])
    # No longer than the features, which fit into the model's positions.
    most = max(lengths)
    sequences = [*lengths, *(min(most, padding - i) for i in range(0, padding, most))]
    cu_seqlens = np.concatenate([[0], np.cumsum(sequences)]).astype(np.int64)
    types = None
    if any(feature.token_type_ids is not None for feature in features):
        types = np.zeros_like(ids)
        for start, feature in zip(cu_seqlens, features, strict=False):
            if feature.token_type_ids is not None:
                types[start : start + len(feature.input_ids)] = feature.token_type_ids
    rows, counts = None, None
    if head == "token-classification":
        counts = tuple(len(feature.rows) for feature in features)
        pairs = zip(features, cu_seqlens, strict=False)
        rows = np.concatenate([feature.rows + start for feature, start in pairs])
    labels = _labels(features, head, len(sequences), ignored)

    def tensor(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).to(device, non_blocking=True)

    return PackedBatch(
        tensor(ids),
        tensor(cu_seqlens),
        tensor(types),
        max(sequences),
        tensor(rows),
        tensor(labels),
        tuple(lengths),
        counts,
    )


def _labels(
    features: Sequence[Feature], head: Head, sequences: int, ignored: bool
) -> np.ndarray | None:
    """What the head's loss takes; padding is ignored."""
    if any(feature.labels is None for feature in features):
        return None
    gold = [feature.labels for feature in features]
    if head == "token-classification":
        labels = np.concatenate(gold).astype(np.int64)
    else:
        floating = np.issubdtype(gold[0].dtype, np.floating)
        kind, ignore = (np.float32, np.nan) if floating else (np.int64, -100)
        labels = np.full((sequences, *gold[0].shape), ignore, kind)
        labels[: len(gold)] = np.stack(gold)
    if ignored:
        labels[...] = np.nan if np.issubdtype(labels.dtype, np.floating) else -100
    return labels


def by_tokens(order: Sequence[int], lengths: np.ndarray, most: int) -> Iterator[list[int]]:
    """Cut a sequence of feature numbers into batches of at most `most` tokens, at least one feature
    each."""
    batch: list[int] = []
    tokens = 0
    for number in order:
        if batch and tokens + lengths[number] > most:
            yield batch
            batch, tokens = [], 0
        batch.append(int(number))
        tokens += int(lengths[number])
    if batch:
        yield batch


class TrainingOrder:
    """Which features the batches of a training hold: a function of (seed, step).

    Every epoch is a new permutation. Stretches of it, of 32 batches each, are sorted by length and
    cut into batches, and the batches of the epoch are shuffled: features of a batch have like
    lengths, batches come in random order.

    Args:
        lengths: [F] tokens of each feature.
        batch: features of a batch; the last one of an epoch may have fewer.
        seed: of the permutations.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int):
        self._lengths, self._batch, self._seed = np.asarray(lengths), batch, seed
        self.batches_per_epoch = -(-len(self._lengths) // batch)
        self._epoch, self._cut = -1, []

    def of_step(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, feature numbers) of a step's batch."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._cut = epoch, self._shuffled(epoch)
        return epoch, self._cut[place]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        draw = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        order = draw.permutation(len(self._lengths))
        stretch = self._batch * _SORTED_BATCHES
        batches = []
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch] for i in range(0, len(part), self._batch)]
        return [batches[i] for i in draw.permutation(len(batches))]


class FeatureBatches:
    """An `objective.Batches` of packed features.

    Args:
        features: of the training examples, with labels.
        head: which numbers the model gives.
        order: features of every step.
        micro_tokens: tokens of a micro-batch.
        pad_id: of the tokenizer.
        device: of the batches.
        ids: of the examples, to name a batch.
        ranks: who shares them.
        multiple: of a stream's tokens, as in `pack`.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        head: Head,
        order: TrainingOrder,
        micro_tokens: int,
        pad_id: int,
        device: torch.device,
        ids: Sequence[str],
        ranks: Ranks = ALONE,
        multiple: int = MULTIPLE,
    ):
        self._features, self._head, self._order = features, head, order
        self._micro_tokens, self._pad_id, self._device = micro_tokens, pad_id, device
        self._ids, self._ranks, self._multiple = ids, ranks, multiple
        self._lengths = np.array([len(feature.input_ids) for feature in features], np.int64)
        self.shift = 0

    def batches(self, step: int) -> list[PackedBatch]:
        """This rank's micro-batches of a step: a pure function of settings, shift and step."""
        _, indices = self._order.of_step(step + self.shift)
        indices = indices[np.argsort(self._lengths[indices], kind="stable")]
        # Every world-th one, so that all ranks have the same work.
        world = self._ranks.world
        parts = [
            list(by_tokens(indices[rank::world], self._lengths, self._micro_tokens))
            for rank in range(world)
        ]
        own = parts[self._ranks.rank]
        # Ranks that hold shares of the weights meet at every micro-batch, so all need as many.
        missing = max(map(len, parts)) - len(own)
        idle = [self._pack(indices[:1], ignored=True)] * missing if missing else []
        return [self._pack(part, ignored=False) for part in own] + idle

    def num_tokens(self, step: int) -> int:
        """Tokens of a step on all ranks that are not padding."""
        _, indices = self._order.of_step(step + self.shift)
        return int(self._lengths[indices].sum())

    def describe(self, step: int) -> dict[str, Any]:
        """What identifies a step's batch: epoch and example ids."""
        epoch, indices = self._order.of_step(step + self.shift)
        return {"epoch": epoch, "ids": [self._ids[self._features[i].example] for i in indices]}

    def _pack(self, indices: Sequence[int], ignored: bool) -> PackedBatch:
        features = [self._features[i] for i in indices]
        return pack(features, self._head, self._pad_id, self._device, ignored, self._multiple)
