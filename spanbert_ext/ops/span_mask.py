"""The boundary of span masking: schema and fake of the one operation that is not differentiable.

As in `_ops`: inputs must already be right, and anything else raises with the argument's name.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.reference import span_mask as mask_reference
from spanbert_ext.ops.reference.span_mask import SamplerSettings
from spanbert_ext.ops.registration import check, define, place, readable
from spanbert_ext.ops.torch_private import assert_later

_C = backend.native_module


@lru_cache(maxsize=64)
def _native_settings(
    seed, mask_id, ratio, min_words, lengths, mask, random, per_piece, slots, candidate, internal
):
    return _C.SamplerSettings(
        seed, mask_id, ratio, min_words, list(lengths), mask, random, per_piece, slots, candidate,
        internal,
    )  # fmt: skip


def _signed(seed: int) -> int:
    """The 64-bit key as the signed integer that an operation's argument can hold."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def span_mask(
    tokens: Tensor,
    starts: Tensor,
    ends: Tensor,
    sample_ids: Tensor,
    epoch: Tensor,
    vocabulary: Tensor,
    random_tokens: Tensor,
    settings: SamplerSettings,
    target_capacity: int,
    span_capacity: int,
    candidates: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`mask_reference.span_mask`, natively where the back end allows."""
    if not backend.use_native(tokens.device):
        _check_inputs(
            tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates
        )
        _check_order(starts, ends, tokens.numel())
        # Steps of +1 at a start and -1 at an end add up to 1 inside a sequence.
        steps = tokens.new_zeros(tokens.numel() + 1, dtype=torch.int64)
        steps.index_add_(0, starts, torch.ones_like(starts)).index_add_(
            0, ends, -torch.ones_like(ends)
        )
        inside = steps.cumsum(0)[:-1] > 0
        bad = (inside & ((tokens < 0) | (tokens >= vocabulary.numel()))).nonzero()
        if bad.numel():
            _raise_bad_id(tokens, int(bad[0]), vocabulary.numel())
        return mask_reference.span_mask(
            tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, settings,
            target_capacity, span_capacity, candidates,
        )  # fmt: skip
    return torch.ops.spanbert_ext.span_mask(
        tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates,
        _signed(settings.seed), settings.mask_id, settings.ratio, settings.min_words,
        settings.length_thresholds, settings.mask_threshold, settings.random_threshold,
        settings.per_piece, settings.max_span_targets, settings.candidate_threshold,
        settings.internal_endpoints, target_capacity, span_capacity,
    )  # fmt: skip


def _check_inputs(
    tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates
) -> None:
    if tokens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"tokens must be int32 or int64; got {tokens.dtype}")
    check("tokens", tokens, (None,), tokens.dtype, tokens)
    check("starts", starts, (None,), torch.int64, tokens)
    check("ends", ends, (starts.numel(),), torch.int64, tokens)
    check("sample_ids", sample_ids, (starts.numel(),), torch.int64, tokens)
    check("epoch", epoch, (1,), torch.int64, tokens)
    check("vocabulary", vocabulary, (None,), torch.uint8, tokens)
    check("random_tokens", random_tokens, (None,), torch.int64, tokens)
    if random_tokens.numel() == 0:
        raise ValueError("random_tokens must hold at least one id")
    if candidates is not None:
        check("candidates", candidates, (tokens.numel(),), torch.uint8, tokens)


def _check_order(starts: Tensor, ends: Tensor, total: int) -> None:
    if not starts.numel():
        return
    bounds = torch.stack([starts, ends], dim=1).view(-1)
    if int(bounds[0]) < 0 or int(bounds[-1]) > total or bool((bounds.diff() < 0).any()):
        _raise_out_of_order(total)


def _raise_out_of_order(total: int) -> None:
    raise ValueError(f"starts and ends must ascend inside [0, {total}] without overlap")


def _raise_bad_id(tokens: Tensor, place: int, size: int) -> None:
    raise IndexError(
        f"token {place} of the flat batch has id {int(tokens[place])}; expected 0 <= id < {size}"
    )


def _span_mask(
    tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates, seed, mask_id,
    ratio, min_words, length_thresholds, mask_threshold, random_threshold, per_piece,
    max_span_targets, candidate_threshold, internal_endpoints, target_capacity, span_capacity,
):  # fmt: skip
    _check_inputs(tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates)
    total, sequences = tokens.numel(), starts.numel()
    outputs = _empty_masks(tokens, target_capacity, span_capacity)
    maps = 3 if candidates is None else 5
    bitmaps = tokens.new_empty((maps, total // 64 + sequences + 1), dtype=torch.int64)
    row_counts = tokens.new_empty((2, sequences + 1), dtype=torch.int64)
    settings = _native_settings(
        seed & (2**64 - 1), mask_id, tuple(ratio), min_words, tuple(length_thresholds),
        mask_threshold, random_threshold, per_piece, max_span_targets, candidate_threshold,
        internal_endpoints,
    )  # fmt: skip
    inputs = (tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, candidates)
    sizes = [total, sequences, vocabulary.numel(), random_tokens.numel()]
    bad = _C.span_mask(
        place(tokens), settings, tokens.dtype == torch.int64,
        *(0 if t is None else t.data_ptr() for t in inputs), [t.data_ptr() for t in outputs],
        bitmaps.data_ptr(), row_counts.data_ptr(), [*sizes, target_capacity, span_capacity],
    )  # fmt: skip
    if bad >= 0:
        _raise_bad_id(tokens, bad, vocabulary.numel())
    if bad == _C.out_of_order:
        _raise_out_of_order(total)
    if bad == _C.capacity_exceeded:
        raise ValueError(f"target_capacity {target_capacity} is below the budget of the sequences")
    return outputs


def _empty_masks(tokens: Tensor, target_capacity: int, span_capacity: int) -> tuple[Tensor, ...]:
    sizes = [target_capacity] * 5 + [span_capacity] * 2 + [1]
    columns = (tokens.new_empty((size,), dtype=torch.int64) for size in sizes)
    return torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.int64), *columns


def _span_mask_fake(tokens, *arguments):
    return _empty_masks(tokens, *arguments[-2:])


define(
    "span_mask(Tensor tokens, Tensor starts, Tensor ends, Tensor sample_ids, Tensor epoch, "
    "Tensor vocabulary, Tensor random_tokens, Tensor? candidates, int seed, int mask_id, "
    "int[] ratio, int min_words, int[] length_thresholds, int mask_threshold, "
    "int random_threshold, bool per_piece, int max_span_targets, int candidate_threshold, "
    "bool internal_endpoints, SymInt target_capacity, SymInt span_capacity) -> (Tensor input_ids, "
    "Tensor labels, Tensor target_positions, Tensor target_ids, Tensor target_spans, "
    "Tensor target_offsets, Tensor sbo_ids, Tensor span_left, Tensor span_right, "
    "Tensor dropped_spans)",
    _span_mask,
    _span_mask_fake,
)


def check_cu_seqlens(cu_seqlens: Tensor, total: int) -> None:
    """Raises ValueError unless [N + 1] offsets run from 0 to `total` without falling. Where their
    numbers cannot be read without a sync, the ends are a device assertion here; that they do not
    fall is one of the kernel."""
    if not readable(cu_seqlens):
        fine = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == total)
        assert_later(fine, f"cu_seqlens must start at 0 and end at {total}")
        return
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != total:
        ends = int(cu_seqlens[0]), int(cu_seqlens[-1])
        raise ValueError(
            f"cu_seqlens must start at 0 and end at {total}; got {ends[0]} and {ends[1]}"
        )
    falls = (cu_seqlens[1:] < cu_seqlens[:-1]).nonzero()
    if falls.numel():
        at = int(falls[0])
        pair = int(cu_seqlens[at]), int(cu_seqlens[at + 1])
        raise ValueError(f"cu_seqlens falls from {pair[0]} to {pair[1]} at entry {at + 1}")
