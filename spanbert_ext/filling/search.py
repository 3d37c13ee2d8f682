"""Behind `SpanFiller`: masked spans as a batch, and the search for the best sequences of pieces."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.ops.reference.sbo import IGNORE


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedSpan:
    """A sequence with one masked span.

    Args:
        tokens: [L] ids, special tokens and [MASK]s included.
        first, stop: the span is tokens[first:stop].
        sbo_pieces: how many of its positions the SBO head predicts.
    """

    tokens: list[int]
    first: int
    stop: int
    sbo_pieces: int


def batch_of_spans(spans: Sequence[MaskedSpan]) -> tuple[MaskedBatch, torch.Tensor]:
    """(batch of the sequences laid end to end, cu_seqlens [N + 1] int64). What is masked is not
    known: ids that say so much as that there is a target are 0."""
    sizes = torch.tensor([len(span.tokens) for span in spans])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    widths = torch.tensor([span.stop - span.first for span in spans])
    numbers = torch.repeat_interleave(torch.arange(len(spans)), widths)
    offsets = torch.arange(numbers.numel()) - (widths.cumsum(0) - widths)[numbers]
    firsts = cu_seqlens[:-1] + torch.tensor([span.first for span in spans])
    predicted = torch.tensor([span.sbo_pieces for span in spans])
    has_sides = predicted > 0
    tokens = torch.tensor([token for span in spans for token in span.tokens])
    batch = MaskedBatch(
        input_ids=tokens,
        labels=torch.full_like(tokens, IGNORE),
        target_positions=firsts[numbers] + offsets,
        target_ids=torch.zeros_like(numbers),
        target_spans=numbers,
        target_offsets=offsets,
        sbo_ids=torch.where(offsets < predicted[numbers], 0, IGNORE),
        span_left=torch.where(has_sides, firsts - 1, 0),
        span_right=torch.where(has_sides, firsts + widths, 0),
        dropped_spans=torch.zeros(1, dtype=torch.int64),
    )
    return batch, cu_seqlens


@dataclasses.dataclass(frozen=True)
class Found:
    """A sequence of pieces with its sums over positions: log-probabilities as they count, by the
    MLM head, by the SBO head, and how many of its pieces the SBO head predicts."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    mlm: float = 0.0
    sbo: float = 0.0
    sbo_pieces: int = 0

    @property
    def score(self) -> float:
        return self.total / len(self.ids)

    def followed_by(self, piece: Found) -> Found:
        """This sequence and one more."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(piece), strict=True)
        return Found(*(mine + other for mine, other in pairs))


def k_best(columns: Sequence[Sequence[float]]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All choices of one entry from each column, best sum first: (sum, indices).

    Args:
        columns: scores, each column in descending order.
    """
    start = (0,) * len(columns)
    if not all(len(column) for column in columns):
        return
    total = sum(column[0] for column in columns)
    queue = [(-total, start, 0)]
    while queue:
        negative, choice, moved = heapq.heappop(queue)
        yield -negative, choice
        # Only the last column that moved, or one behind it, moves on: each choice comes once, and
        # never before one that is better.
        for place in range(moved, len(columns)):
            column, index = columns[place], choice[place] + 1
            if index < len(column):
                moved_on = (*choice[:place], index, *choice[place + 1 :])
                worse = negative + column[index - 1] - column[index]
                heapq.heappush(queue, (worse, moved_on, place))


def best_pieces(
    mlm: torch.Tensor, sbo: torch.Tensor, mix: tuple, allowed: list[np.ndarray], limit: int
) -> list[list[Found]]:
    """The best pieces of every position, best first.

    Args:
        mlm, sbo: [n, V] and [at most n, V] log-probabilities.
        mix: (by, weight of the MLM, weight of the SBO).
        allowed: n times [at most V] bool.
        limit: most pieces of a position.
    """
    by, mlm_weight, sbo_weight = mix
    rows = sbo.shape[0] if by != "mlm" else 0
    head = sbo[:rows]
    if by == "combined":
        head = (mlm_weight * mlm[:rows] + sbo_weight * head).log_softmax(-1)
    total = torch.cat([head, mlm[rows:]])
    mask = torch.zeros(total.shape, dtype=torch.bool)
    mask[:, : allowed[0].size] = torch.from_numpy(np.stack(allowed))
    total = total.masked_fill(~mask.to(total.device), -torch.inf)
    best = total.topk(min(limit, total.shape[1]))
    by_mlm = mlm.gather(1, best.indices).tolist()
    by_sbo = sbo.gather(1, best.indices[: sbo.shape[0]]).tolist()
    ids, totals = best.indices.tolist(), best.values.tolist()
    columns = []
    for place in range(len(ids)):
        predicted = int(place < len(by_sbo))
        third = by_sbo[place] if predicted else [0.0] * len(ids[place])
        entries = zip(ids[place], totals[place], by_mlm[place], third, strict=True)
        columns.append([Found((i,), t, *s, predicted) for i, t, *s in entries if t > -torch.inf])
    return columns


def sequences(columns: list[list[Found]]) -> Iterator[Found]:
    """Sequences of one piece from each column, best first."""
    for _, choice in k_best([[piece.total for piece in column] for column in columns]):
        sequence = Found()
        for column, index in zip(columns, choice, strict=True):
            sequence = sequence.followed_by(column[index])
        yield sequence


def begun_span(span: MaskedSpan, ids: tuple[int, ...]) -> MaskedSpan:
    """The span with its first pieces filled in; of the others, the next is asked for."""
    place = span.first + len(ids)
    tokens = [*span.tokens[: span.first], *ids, *span.tokens[place:]]
    return MaskedSpan(tokens, place, place + 1, 0)
