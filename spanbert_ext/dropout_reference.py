"""The specification of dropout by counter and of the residual connection that uses it, as
`reference` is of the other operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_ext.reference import philox4x32

# A column is dropped when its 16-bit draw lies below a threshold of this many.
DRAWS = 1 << 16
_COLUMNS = 8  # that one call of the generator serves
_LOW = 0xFFFFFFFF


def mask_threshold(p: float) -> int:
    """Draws of 65536 that drop a column: round(65536 p). The probability is exact to 2^-17; below
    2^-17 nothing is dropped."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability must lie in [0, 1]; got {p}")
    return round(p * DRAWS)


def keep_scale(threshold: int) -> float:
    """1 / the probability of keeping a column; 0 if none is kept."""
    return DRAWS / (DRAWS - threshold) if threshold < DRAWS else 0.0


def dropout_draws(rows: int, size: int, seed: Tensor, site: int) -> Tensor:
    """16-bit draws [rows, size] int64, a pure function of (seed, site, row, column).

    Key: the low and high half of seed [1] int64. Counter: (column // 8, row, site, row >> 32).
    Column 8 b + j takes bits 16 (j % 2) .. + 15 of word j // 2.
    """
    blocks = torch.arange(-(-size // _COLUMNS), device=seed.device)
    row = torch.arange(rows, device=seed.device).unsqueeze(1)
    key = [seed & _LOW, (seed >> 32) & _LOW]
    counter = torch.broadcast_tensors(blocks, row & _LOW, torch.full_like(row, site), row >> 32)
    words = torch.stack(philox4x32(counter, key), dim=-1)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1)
    return halves.flatten(1)[:, :size]


def dropout_factors(
    rows: int, size: int, threshold: int, seed: Tensor, site: int, dtype: torch.dtype
) -> Tensor:
    """[rows, size]: 0 where the column is dropped, `keep_scale` elsewhere."""
    kept = dropout_draws(rows, size, seed, site) >= threshold
    return kept.to(dtype) * keep_scale(threshold)


def dropout_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    threshold: int = 0,
    seed: Tensor | None = None,
    site: int = 0,
    drop_output: bool = False,
) -> Tensor:
    """LN(dropout(x) + residual), or dropout(LN(x + residual)) with `drop_output`.

    Args:
        x: [R, H], the residual's dtype, or bf16 or fp16 beside an fp32 residual.
        residual: [R, H]; its dtype is that of the result.
        weight, bias: [H] fp32 (double for double).
        eps: added to the variance.
        threshold: of `mask_threshold`; 0 drops nothing and needs no seed.
        seed: [1] int64, the generator's key.
        site: 32-bit number of this place in the model: another site has other draws.

    Returns:
        [R, H] in the residual's dtype. All is computed in fp32 (double for double), rounded once.
    """
    rows, size = x.shape
    wide = weight.dtype
    sums, factors = x.to(wide), None
    if threshold > 0:
        factors = dropout_factors(rows, size, threshold, seed, site, wide)
    if factors is not None and not drop_output:
        sums = sums * factors
    out = F.layer_norm(sums + residual.to(wide), (size,), weight, bias, eps)
    if factors is not None and drop_output:
        out = out * factors
    return out.to(residual.dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias), exact (erf), of x [R, I] and bias [I] fp32 (double for double); in x's
    dtype."""
    return F.gelu(x.to(bias.dtype) + bias).to(x.dtype)
