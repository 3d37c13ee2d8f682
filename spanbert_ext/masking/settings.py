"""What a masker's options come to: checked, and turned into the integers the sampler works with."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from fractions import Fraction

import torch

from spanbert_ext.ops.reference.sbo import SPECIAL, WORD_START
from spanbert_ext.ops.reference.span_mask import SamplerSettings

SCHEMES = ("span", "piece", "word", "entity", "phrase")
# The schemes that need to be told where candidate spans are.
CANDIDATE_SCHEMES = ("entity", "phrase")
_DRAWS = 1 << 32
_MAX_LENGTHS = 256  # span lengths that fit a kernel's arguments


def span_lengths(
    scheme: str, geometric_p: float, min_words: int, max_words: int
) -> tuple[int, list[float]]:
    """The shortest span in words and the weights of the lengths from there on; what every scheme
    but span draws is one word long."""
    if not 1 <= min_words <= max_words:
        raise ValueError(f"expected 1 <= min_words <= max_words; got {min_words} and {max_words}")
    if max_words - min_words >= _MAX_LENGTHS:
        raise ValueError(
            f"max_words - min_words must be below {_MAX_LENGTHS}; got {max_words} and {min_words}"
        )
    if scheme != "span":
        return 1, [1.0]
    return min_words, [
        geometric_p * (1 - geometric_p) ** i for i in range(max_words - min_words + 1)
    ]


def sampler_settings(
    scheme: str,
    lengths: tuple[int, list[float]],
    mask_id: int,
    seed: int,
    mask_ratio: float,
    replacement: str,
    mask_prob: float,
    random_prob: float,
    max_span_targets: int,
    candidate_prob: float,
    endpoints: str,
) -> SamplerSettings:
    """The options of `SpanMasker` of the same names, `lengths` as `span_lengths` gives them.

    Raises:
        ValueError, TypeError: an option outside its range.
    """
    check_choice("replacement", replacement, ("span", "piece"))
    check_choice("endpoints", endpoints, ("external", "internal"))
    check_probability("mask_ratio", mask_ratio, allow_zero=False)
    check_probability("mask_prob", mask_prob)
    check_probability("random_prob", random_prob)
    check_probability("mask_prob + random_prob", mask_prob + random_prob)
    check_probability("candidate_prob", candidate_prob)
    if max_span_targets < 1:
        raise ValueError(f"max_span_targets must be at least 1; got {max_span_targets}")
    if not isinstance(mask_id, numbers.Integral):
        raise TypeError(f"mask_id must be an integer; got {mask_id!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must lie in [-2**63, 2**64); got {seed}")
    ratio = Fraction(repr(float(mask_ratio))).limit_denominator(10**6)
    if ratio <= 0:
        raise ValueError(f"mask_ratio must be at least 1e-6; got {mask_ratio}")
    pieces = scheme == "piece"
    shortest, weights = lengths
    return SamplerSettings(
        mask_id=int(mask_id),
        ratio=(ratio.numerator, ratio.denominator),
        min_words=shortest,
        length_thresholds=_thresholds(weights),
        mask_threshold=round(mask_prob * _DRAWS),
        random_threshold=round(min(mask_prob + random_prob, 1.0) * _DRAWS),
        per_piece=pieces or replacement == "piece",
        max_span_targets=0 if pieces else max_span_targets,
        candidate_threshold=(
            round(min(candidate_prob, 1.0) * _DRAWS) if scheme in CANDIDATE_SCHEMES else 0
        ),
        internal_endpoints=endpoints == "internal",
        seed=int(seed) & (2**64 - 1),
    )


def _thresholds(weights: Sequence[float]) -> tuple[int, ...]:
    """Cumulative shares of `weights` in units of 2**-32; the last is 2**32, so every draw finds a
    length."""
    total, sums = math.fsum(weights), []
    for i in range(len(weights)):
        sums.append(round(math.fsum(weights[: i + 1]) / total * _DRAWS))
    sums[-1] = _DRAWS
    return tuple(sums)


def length_moments(shortest: int, weights: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of the lengths shortest, shortest + 1 ... of the given weights."""
    total = math.fsum(weights)
    mean = math.fsum(w * (shortest + i) for i, w in enumerate(weights)) / total
    square = math.fsum(w * (shortest + i) ** 2 for i, w in enumerate(weights)) / total
    return mean, square - mean * mean


def lookup_tables(
    scheme: str, word_starts, special_ids, mask_id, random_tokens
) -> tuple[torch.Tensor, torch.Tensor]:
    """[V] uint8 flags and the [R] int64 pool of random pieces."""
    starts = torch.as_tensor(word_starts)
    if starts.dim() != 1 or starts.dtype != torch.bool:
        raise TypeError(f"word_starts must be [V] bool; got {starts.dtype} {tuple(starts.shape)}")
    if scheme == "piece":
        starts = torch.ones_like(starts)  # every piece is a word
    size = starts.numel()
    special = sorted({int(i) for i in special_ids} | {int(mask_id)})
    for i in special:
        if not 0 <= i < size:
            raise IndexError(f"special id {i} is outside the vocabulary of {size}")
    flags = starts.to("cpu", torch.uint8) * WORD_START
    flags[special] |= SPECIAL
    if random_tokens is None:
        pool = (flags & SPECIAL == 0).nonzero().squeeze(1)
    else:
        pool = torch.as_tensor(random_tokens)
        if pool.numel() and (pool.is_floating_point() or pool.dtype == torch.bool):
            raise TypeError(f"random_tokens must be integers; got {pool.dtype}")
        pool = pool.to("cpu", torch.int64).reshape(-1)
    if pool.numel() == 0:
        raise ValueError("random_tokens is empty: there is no ordinary id to draw")
    low, high = int(pool.min()), int(pool.max())
    if low < 0 or high >= size:
        raise IndexError(f"random_tokens must lie in [0, {size}); got {low}..{high}")
    return flags, pool


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_probability(name: str, value: float, allow_zero: bool = True) -> None:
    """ValueError unless `value` is a probability."""
    if not (0 <= value <= 1 + 1e-9) or (value == 0 and not allow_zero):
        raise ValueError(f"{name} must lie in {'[0' if allow_zero else '(0'}, 1]; got {value}")
