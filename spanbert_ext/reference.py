"""The specification: every operation of the native core in plain Python and torch.

Nothing here is fast and nothing here is native. A kernel is an optimisation of a function of this
file and
must agree with it: integers bit for bit, floats within twice the error torch itself makes in that
    dtype.
The functions run on any device; the differentiable ones get their gradients from autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

IGNORE = -100
WORD_START = 1
SPECIAL = 2
# Draw numbers at and above this one belong to positions (replacement), those below to spans
# (sampling).
POSITION_DRAWS = 1 << 31
_LOW = 0xFFFFFFFF
Word = TypeVar("Word", int, torch.Tensor)


@dataclass(frozen=True)
class SamplerSettings:
    """What the sampler needs besides tokens, as integers only, so that no rounding decides a mask.

    Args:
        mask_id: id written for a masked piece.
        ratio: (numerator, denominator) of the masking budget.
        min_words: shortest span, in words.
        length_thresholds: entry i is 2**32 times the probability of a length <= min_words + i; the
            last is 2**32.
        mask_threshold: 2**32 times the probability of [MASK].
        random_threshold: 2**32 times the probability of [MASK] or random pieces.
        per_piece: draw the replacement for every piece (BERT) instead of once for a merged span
            (SpanBERT).
        max_span_targets: number of positions of a span that the SBO predicts.
        seed: 64-bit key of the generator.
    """

    mask_id: int
    ratio: tuple[int, int]
    min_words: int
    length_thresholds: tuple[int, ...]
    mask_threshold: int
    random_threshold: int
    per_piece: bool
    max_span_targets: int
    seed: int


def philox4x32(counter: Sequence[Word], key: Sequence[Word]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of Salmon et al. (SC 2011): four 32-bit counter words and two key words to four
    words, each an int or an int64 tensor."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # In int64 tensors the products wrap around as unsigned ones would; the masks undo the sign.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        high0, high1 = (p0 >> 32) & _LOW, (p1 >> 32) & _LOW
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _LOW, high0 ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


class SequenceDraws:
    """The random numbers of one sequence: a pure function of (seed, epoch, sample id, draw
    number)."""

    def __init__(self, seed: int, epoch: int, sample_id: int):
        self.key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self.tail = (epoch & 0xFFFFFFFF, sample_id & 0xFFFFFFFF, (sample_id >> 32) & 0xFFFFFFFF)

    def span(self, number: int) -> tuple[int, int]:
        """32-bit words for the length and the anchor of the span drawn as `number`-th."""
        return philox4x32((number, *self.tail), self.key)[:2]

    def position(self, place: int) -> tuple[int, int]:
        """32-bit words for the kind of replacement and for the random piece at a place of the
        sequence."""
        return philox4x32((POSITION_DRAWS + place, *self.tail), self.key)[:2]


def budget_of(eligible: int, ratio: tuple[int, int]) -> int:
    """ceil(ratio * eligible) in integers (SPEC 1.1; 510 pieces at 0.15 give 77)."""
    return -(-eligible * ratio[0] // ratio[1])


def sample_mask(
    eligible: Sequence[bool],
    word_start: Sequence[bool],
    settings: SamplerSettings,
    draws: SequenceDraws,
) -> list[bool]:
    """Span masking of one sequence (paper section 3.1, as coded: SPEC 1.2 steps 1 to 4).

    Args:
        eligible: n flags, False at special tokens.
        word_start: n flags of the pieces that begin a word; a piece behind a special token begins
            one anyway.

    Returns:
        n flags, exactly `budget_of(sum(eligible))` of them set. Merged spans are their maximal
        runs.
    """
    n = len(eligible)
    starts = [
        bool(eligible[i] and (word_start[i] or i == 0 or not eligible[i - 1])) for i in range(n)
    ]
    masked = [False] * n
    left = budget_of(sum(map(bool, eligible)), settings.ratio)
    number = 0
    while left > 0:
        length_word, anchor_word = draws.span(number)
        number += 1
        rank = sum(length_word >= threshold for threshold in settings.length_thresholds)
        words = settings.min_words + rank
        # Drawing again while the anchor is masked is drawing among the unmasked ones.
        free = [i for i in range(n) if eligible[i] and not masked[i]]
        place = free[(anchor_word * len(free)) >> 32]
        while not starts[place]:
            place -= 1
        taken = 0
        while place < n and eligible[place] and left > 0:
            taken += starts[place]
            if taken > words:
                break
            left -= not masked[place]
            masked[place] = True
            place += 1
    return masked


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Maximal runs of set flags as (first, end) with end exclusive."""
    edges = [
        i
        for i in range(len(flags) + 1)
        if (i < len(flags) and flags[i]) != (i > 0 and flags[i - 1])
    ]
    return list(zip(edges[0::2], edges[1::2], strict=True))


def span_mask(
    tokens: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    sample_ids: torch.Tensor,
    epoch: torch.Tensor,
    vocabulary: torch.Tensor,
    random_tokens: torch.Tensor,
    settings: SamplerSettings,
    target_capacity: int,
    span_capacity: int,
) -> tuple[torch.Tensor, ...]:
    """Mask every sequence of a flat batch; shapes and meaning of the results as in `MaskedBatch`.

    Args:
        tokens: [T] int32 or int64, the flat batch.
        starts, ends: [N] int64, sequence i is tokens[starts[i]:ends[i]]; ascending and disjoint.
        sample_ids: [N] int64.  epoch: [1] int64.
        vocabulary: [V] uint8, WORD_START and SPECIAL bits.  random_tokens: [R] int64.

    Returns:
        input_ids [T], labels [T], target_positions, target_ids, target_spans, target_offsets,
        sbo_ids [K], span_left, span_right [S], dropped_spans [1].
    """
    ids, flags, pool = tokens.tolist(), vocabulary.tolist(), random_tokens.tolist()
    corrupted, labels = list(ids), [IGNORE] * len(ids)
    targets: list[tuple[int, int, int, int, int]] = []
    boundaries: list[tuple[int, int]] = []
    found = 0
    for start, end, sample in zip(starts.tolist(), ends.tolist(), sample_ids.tolist(), strict=True):
        piece_flags = [flags[i] for i in ids[start:end]]
        eligible = [not f & SPECIAL for f in piece_flags]
        draws = SequenceDraws(settings.seed, int(epoch), sample)
        masked = sample_mask(eligible, [bool(f & WORD_START) for f in piece_flags], settings, draws)
        for first, stop in runs_of(masked):
            has_sbo = first > 0 and eligible[first - 1] and stop < len(masked) and eligible[stop]
            if found < span_capacity:
                boundaries.append((start + first - 1, start + stop) if has_sbo else (0, 0))
            kind = draws.position(first)[0]
            for place in range(first, stop):
                own_kind, piece = draws.position(place)
                kind = own_kind if settings.per_piece else kind
                original = ids[start + place]
                if kind < settings.mask_threshold:
                    corrupted[start + place] = settings.mask_id
                elif kind < settings.random_threshold:
                    corrupted[start + place] = pool[(piece * len(pool)) >> 32]
                labels[start + place] = original
                in_sbo = (
                    has_sbo and place - first < settings.max_span_targets and found < span_capacity
                )
                span = min(found, span_capacity - 1)
                targets.append(
                    (start + place, original, span, place - first, original if in_sbo else IGNORE)
                )
            found += 1

    def column(values, size, fill):
        full = list(values) + [fill] * (size - len(values))
        return torch.tensor(full, dtype=torch.int64, device=tokens.device)

    columns = list(zip(*targets, strict=True)) or [()] * 5
    fills = (0, IGNORE, 0, 0, IGNORE)
    return (
        torch.tensor(corrupted, dtype=tokens.dtype, device=tokens.device),
        column(labels, len(ids), IGNORE),
        *(column(c, target_capacity, f) for c, f in zip(columns, fills, strict=True)),
        column([b[0] for b in boundaries], span_capacity, 0),
        column([b[1] for b in boundaries], span_capacity, 0),
        column([max(0, found - span_capacity)], 1, 0),
    )


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x * Phi(x) with the exact normal distribution function (BERT's erf form)."""
    return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


def gelu_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """LayerNorm(GELU(x)) over the last dimension: [R, H] to [R, H]; computed in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = F.layer_norm(gelu(x.to(wide)), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return rows.to(x.dtype)


def gather_boundaries(
    hidden: torch.Tensor, span_left: torch.Tensor, span_right: torch.Tensor
) -> torch.Tensor:
    """[T, H] to [S, 2H]: the two boundary tokens of every span side by side; zeros where a span has
    none."""
    used = (span_right > span_left).unsqueeze(1)
    pair = torch.cat([hidden[span_left], hidden[span_right]], dim=1)
    return pair * used.to(hidden.dtype)


def sbo_first_layer(
    span_rows: torch.Tensor,
    position_rows: torch.Tensor,
    target_spans: torch.Tensor,
    target_offsets: torch.Tensor,
    sbo_ids: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LN(GELU(W1 [x_left; x_right; p_i] + b1)) from its two parts (paper eq. 1, first layer).

    Args:
        span_rows: [S, H], W1's boundary columns times the boundary tokens.
        position_rows: [P, H], W1's position columns times the position embeddings, plus b1.
        target_spans, target_offsets, sbo_ids: [K] as in `MaskedBatch`.

    Returns:
        [K, H]; rows whose `sbo_ids` is -100 are zero.
    """
    used = sbo_ids != IGNORE
    span = torch.where(used, target_spans, 0)
    offset = torch.where(used, target_offsets, 0)
    wide = torch.promote_types(span_rows.dtype, torch.float32)
    x = span_rows.to(wide)[span] + position_rows.to(wide)[offset]
    rows = F.layer_norm(gelu(x), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return (rows * used.unsqueeze(1)).to(span_rows.dtype)


def sbo_forward(
    hidden: torch.Tensor,
    span_left: torch.Tensor,
    span_right: torch.Tensor,
    target_spans: torch.Tensor,
    target_offsets: torch.Tensor,
    sbo_ids: torch.Tensor,
    parameters: dict[str, torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """The span boundary objective's two layers as the paper writes them (section 3.2, eq. 1),
    nothing split.

    hidden is [T, H]; `parameters` holds position_embeddings.weight [P, E], linear1 and linear2
    (weight, bias) and layer_norm1 and layer_norm2 (weight, bias) under torch's dotted names.
    Returns [K, H].
    """
    used = sbo_ids != IGNORE
    span = torch.where(used, target_spans, 0)
    offset = torch.where(used, target_offsets, 0)
    p = parameters
    pair = gather_boundaries(hidden, span_left, span_right)[span]
    x = torch.cat([pair, p["position_embeddings.weight"][offset].to(pair.dtype)], dim=1)
    x = F.linear(x, p["linear1.weight"], p["linear1.bias"])
    x = gelu_layer_norm(x, p["layer_norm1.weight"], p["layer_norm1.bias"], eps)
    x = F.linear(x, p["linear2.weight"], p["linear2.bias"])
    x = gelu_layer_norm(x, p["layer_norm2.weight"], p["layer_norm2.bias"], eps)
    return x * used.unsqueeze(1).to(x.dtype)


def cross_entropy_rows(
    logits: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    head: torch.Tensor | None,
) -> torch.Tensor:
    """Negative log-likelihood of every row, [R] fp32 or wider; 0 where the target is -100.

    logits is [R, V] without bias, bias [heads, V], head [R] int64 (None: all rows belong to head
    0).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        row_bias = bias[0] if head is None else bias[head]
        logits = logits + row_bias.to(logits.dtype)
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def linear_cross_entropy_rows(
    rows: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    head: torch.Tensor | None,
) -> torch.Tensor:
    """`cross_entropy_rows` of rows [N, H] times the vocabulary weight [V, H]; the whole [N, V] is
    in memory."""
    return cross_entropy_rows(F.linear(rows, weight), targets, bias, head)
