"""The specification of masking: which pieces of a sequence are selected and what replaces them, as
`reference` is of the other operations.

One loop serves every scheme of the paper's section 6.1. A draw makes a span: some whole words, or
one of the candidate spans that an annotation marks. Pieces as such are selected by calling every
piece a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spanbert_ext.ops.reference.sbo import IGNORE, SPECIAL, WORD_START, philox4x32

# A piece's mark in an annotation: it begins a candidate span, or continues the one before it.
CANDIDATE_BEGINS = 1
CANDIDATE_CONTINUES = 2
# Draw numbers at and above this one belong to positions (replacement), those below to spans
# (sampling).
POSITION_DRAWS = 1 << 31


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
        max_span_targets: number of positions of a span that the SBO predicts; 0: no boundaries.
        candidate_threshold: 2**32 times the probability that a draw takes a candidate span, while
            there is one.
        internal_endpoints: the SBO reads a span's own first and last token instead of its
            neighbours.
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
    candidate_threshold: int
    internal_endpoints: bool
    seed: int


class SequenceDraws:
    """The random numbers of one sequence: a pure function of (seed, epoch, sample id, draw
    number)."""

    def __init__(self, seed: int, epoch: int, sample_id: int):
        self.key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self.tail = (epoch & 0xFFFFFFFF, sample_id & 0xFFFFFFFF, (sample_id >> 32) & 0xFFFFFFFF)

    def span(self, number: int) -> tuple[int, int]:
        """32-bit words for the kind or length and for the place of the span drawn as
        `number`-th."""
        return philox4x32((number, *self.tail), self.key)[:2]

    def position(self, place: int) -> tuple[int, int]:
        """32-bit words for the kind of replacement and for the random piece at a place of the
        sequence."""
        return philox4x32((POSITION_DRAWS + place, *self.tail), self.key)[:2]


def budget_of(eligible: int, ratio: tuple[int, int]) -> int:
    """ceil(ratio * eligible) in integers (SPEC 1.1; 510 pieces at 0.15 give 77)."""
    return -(-eligible * ratio[0] // ratio[1])


def candidate_spans(marks: Sequence[int], eligible: Sequence[bool]) -> list[tuple[int, int]]:
    """Candidate spans as (first, end) with end exclusive, ascending.

    A special token belongs to none and ends the one before it; a piece that continues a span whose
    beginning is not there (a sequence may be cut inside one) begins one.
    """
    spans: list[tuple[int, int]] = []
    for place, mark in enumerate(marks):
        if not eligible[place] or not mark & (CANDIDATE_BEGINS | CANDIDATE_CONTINUES):
            continue
        continues = not mark & CANDIDATE_BEGINS and spans and spans[-1][1] == place
        first = spans.pop()[0] if continues else place
        spans.append((first, place + 1))
    return spans


def word_span(
    anchor: int, words: int, eligible: Sequence[bool], starts: Sequence[bool]
) -> tuple[int, int]:
    """(first, end) of so many words, from the start of the anchor's on, ended by a special
    token."""
    first = anchor
    while not starts[first]:
        first -= 1
    end = first + 1
    while end < len(starts) and eligible[end]:
        words -= starts[end]
        if words == 0:
            break
        end += 1
    return first, end


def sample_mask(
    eligible: Sequence[bool],
    word_start: Sequence[bool],
    settings: SamplerSettings,
    draws: SequenceDraws,
    candidates: Sequence[int] = (),
) -> list[bool]:
    """Masking of one sequence (paper sections 3.1 and 6.1, as coded: SPEC 1.2 steps 1 to 4, 1.6).

    While the budget lasts, a draw takes a candidate span with the probability of
    `candidate_threshold`, uniformly among those that still have an unmasked piece; otherwise, and
    where there is none, whole words. In the old code a draw that finds only masked pieces is
    repeated, coin and all, so that the share of candidates shrinks as they are used up. Here every
    draw masks something and the share is the paper's 50 % until none is left; what a coin leads to
    is distributed as in the old code, since drawing again until something is masked is drawing
    uniformly among what can be masked.

    Args:
        eligible: n flags, False at special tokens.
        word_start: n flags of the pieces that begin a word; a piece behind a special token begins
            one anyway.
        candidates: n marks, CANDIDATE_BEGINS and CANDIDATE_CONTINUES, 0 outside; or nothing.

    Returns:
        n flags, exactly `budget_of(sum(eligible))` of them set. Merged spans are their maximal
        runs.
    """
    n = len(eligible)
    starts = [
        bool(eligible[i] and (word_start[i] or i == 0 or not eligible[i - 1])) for i in range(n)
    ]
    marked = candidate_spans(candidates, eligible)
    masked = [False] * n
    left = budget_of(sum(map(bool, eligible)), settings.ratio)
    number = 0
    while left > 0:
        kind_word, place_word = draws.span(number)
        number += 1
        marked = [(first, end) for first, end in marked if not all(masked[first:end])]
        if marked and kind_word < settings.candidate_threshold:
            first, end = marked[(place_word * len(marked)) >> 32]
        else:
            rank = sum(kind_word >= threshold for threshold in settings.length_thresholds)
            # Drawing again while the anchor is masked is drawing among the unmasked ones.
            free = [i for i in range(n) if eligible[i] and not masked[i]]
            anchor = free[(place_word * len(free)) >> 32]
            first, end = word_span(anchor, settings.min_words + rank, eligible, starts)
        for place in range(first, end):
            if left > 0:
                left -= not masked[place]
                masked[place] = True
    return masked


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Maximal runs of set flags as (first, end) with end exclusive."""
    edges = [
        i
        for i in range(len(flags) + 1)
        if (i < len(flags) and flags[i]) != (i > 0 and flags[i - 1])
    ]
    return list(zip(edges[0::2], edges[1::2], strict=True))


def boundaries_of(
    first: int, end: int, eligible: Sequence[bool], settings: SamplerSettings
) -> tuple[int, int] | None:
    """Places of the two tokens from which the SBO predicts a merged span; None if it does not.

    External (SPEC 1.4): the neighbours, where both are eligible. Internal: the span's own first and
    last token, but for a span of one token at the start of its sequence, as in a batch's first
    sequence its boundaries would be (0, 0), which means none. With a [CLS] in front there is no
    such span.
    """
    if settings.max_span_targets == 0:
        return None
    if settings.internal_endpoints:
        return (first, end - 1) if end > 1 else None
    inside = first > 0 and eligible[first - 1] and end < len(eligible) and eligible[end]
    return (first - 1, end) if inside else None


def replacements(
    ids: Sequence[int],
    span: tuple[int, int],
    settings: SamplerSettings,
    draws: SequenceDraws,
    pool: Sequence[int],
) -> list[int]:
    """Ids that stand for those of a merged span: [MASK], random ones of the pool, or the same."""
    first, end = span
    kind = draws.position(first)[0]
    shown = []
    for place in range(first, end):
        own_kind, piece = draws.position(place)
        kind = own_kind if settings.per_piece else kind
        if kind < settings.mask_threshold:
            shown.append(settings.mask_id)
        elif kind < settings.random_threshold:
            shown.append(pool[(piece * len(pool)) >> 32])
        else:
            shown.append(ids[place])
    return shown


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
    candidates: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Mask every sequence of a flat batch; shapes and meaning of the results as in `MaskedBatch`.

    Args:
        tokens: [T] int32 or int64, the flat batch.
        starts, ends: [N] int64, sequence i is tokens[starts[i]:ends[i]]; ascending and disjoint.
        sample_ids: [N] int64.  epoch: [1] int64.
        vocabulary: [V] uint8, WORD_START and SPECIAL bits.  random_tokens: [R] int64.
        candidates: [T] uint8 marks of candidate spans, or None.

    Returns:
        input_ids [T], labels [T], target_positions, target_ids, target_spans, target_offsets,
        sbo_ids [K], span_left, span_right [S], dropped_spans [1].
    """
    ids, flags, pool = tokens.tolist(), vocabulary.tolist(), random_tokens.tolist()
    marks = [] if candidates is None else candidates.tolist()
    corrupted, labels = list(ids), [IGNORE] * len(ids)
    targets: list[tuple[int, int, int, int, int]] = []
    pairs: list[tuple[int, int]] = []
    for start, end, sample in zip(starts.tolist(), ends.tolist(), sample_ids.tolist(), strict=True):
        own = ids[start:end]
        eligible = [not flags[i] & SPECIAL for i in own]
        begins = [bool(flags[i] & WORD_START) for i in own]
        draws = SequenceDraws(settings.seed, int(epoch), sample)
        masked = sample_mask(eligible, begins, settings, draws, marks[start:end])
        for first, stop in runs_of(masked):
            pair = boundaries_of(first, stop, eligible, settings)
            number, fits = len(pairs), len(pairs) < span_capacity
            pairs.append((start + pair[0], start + pair[1]) if pair else (0, 0))
            corrupted[start + first : start + stop] = replacements(
                own, (first, stop), settings, draws, pool
            )
            for place in range(first, stop):
                flat, offset, original = start + place, place - first, own[place]
                labels[flat] = original
                in_sbo = pair and fits and offset < settings.max_span_targets
                targets.append(
                    (
                        flat,
                        original,
                        min(number, span_capacity - 1),
                        offset,
                        original if in_sbo else IGNORE,
                    )
                )

    def column(values, size, fill):
        full = list(values) + [fill] * (size - len(values))
        return torch.tensor(full, dtype=torch.int64, device=tokens.device)

    columns = list(zip(*targets, strict=True)) or [()] * 5
    fills = (0, IGNORE, 0, 0, IGNORE)
    kept = pairs[:span_capacity]
    return (
        torch.tensor(corrupted, dtype=tokens.dtype, device=tokens.device),
        column(labels, len(ids), IGNORE),
        *(column(c, target_capacity, f) for c, f in zip(columns, fills, strict=True)),
        column([left for left, _ in kept], span_capacity, 0),
        column([right for _, right in kept], span_capacity, 0),
        column([len(pairs) - len(kept)], 1, 0),
    )
