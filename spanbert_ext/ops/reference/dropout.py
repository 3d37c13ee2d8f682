"""The specification of dropout by counter and of the residual connection that uses it, as
`reference` is of the other operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_ext.ops.reference.sbo import philox4x32

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


def dropout_draws(rows: int | Tensor, size: int, seed: Tensor, site: int) -> Tensor:
    """16-bit draws [rows, size] int64, a pure function of (seed, site, row, column).

    `rows` is how many, from 0 on, or their numbers [R] int64. Key: the low and high half of seed
    [1] int64. Counter: (column // 8, row, site, row >> 32). Column 8 b + j takes bits
    16 (j % 2) .. + 15 of word j // 2.
    """
    blocks = torch.arange(-(-size // _COLUMNS), device=seed.device)
    row = rows if isinstance(rows, Tensor) else torch.arange(rows, device=seed.device)
    row = row.unsqueeze(1)
    key = [seed & _LOW, (seed >> 32) & _LOW]
    counter = torch.broadcast_tensors(blocks, row & _LOW, torch.full_like(row, site), row >> 32)
    words = torch.stack(philox4x32(counter, key), dim=-1)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1)
    return halves.flatten(1)[:, :size]


def dropout_factors(
    rows: int | Tensor, size: int, threshold: int, seed: Tensor, site: int, dtype: torch.dtype
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


def attention_draw_rows(first_queries: Tensor, heads: int, height: int) -> Tensor:
    """[N, heads, Lq] int64, the row among all draws of every row of scores:
    (place of the query in the stream) * heads + head."""
    places = first_queries.view(-1, 1, 1) + torch.arange(height, device=first_queries.device)
    return places * heads + torch.arange(heads, device=first_queries.device).view(-1, 1)


def attention_weights(
    scores: Tensor,
    first_queries: Tensor,
    queries: Tensor,
    keys: Tensor,
    scale: float,
    threshold: int = 0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """dropout(softmax(scale * scores)) over the keys of each of N padded sequences.

    Args:
        scores: [N, heads, Lq, Lk].
        first_queries: [N] int64, the place of a sequence's first query in the stream.
        queries, keys: [N] int64, used rows and columns; the others get 0.
        scale: what the scores are multiplied with.
        threshold, seed, site: as in `dropout_norm`.

    Returns:
        [N, heads, Lq, Lk] in the dtype of scores. The softmax is computed in fp32 (double for
        double) and rounded once; so is its product with the dropout factors.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    _, heads, height, width = scores.shape
    used_rows = torch.arange(height, device=scores.device) < queries.view(-1, 1)
    used_columns = torch.arange(width, device=scores.device) < keys.view(-1, 1)
    used = (used_rows.unsqueeze(2) & used_columns.unsqueeze(1)).unsqueeze(1)
    # Not -inf: a row without columns would be 0 / 0, in its gradient too.
    logits = (scores.to(wide) * scale).masked_fill(~used, torch.finfo(wide).min)
    probs = logits.softmax(-1).masked_fill(~used, 0).to(scores.dtype)
    if threshold == 0:
        return probs
    numbers = attention_draw_rows(first_queries, heads, height).flatten()
    factors = dropout_factors(numbers, width, threshold, seed, site, wide)
    return (probs.to(wide) * factors.view(scores.shape)).to(scores.dtype)


def dropped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    threshold: int,
    seed: Tensor,
    site: int,
) -> Tensor:
    """Softmax attention inside each sequence with dropout of its weights, [Tq, heads, D] of
    q [Tq, heads, D] and k, v [T, heads, D]; cu_q, cu_k [N + 1] are the sequences' borders."""
    borders_q, borders_k = cu_q.tolist(), cu_k.tolist()
    outputs = [q[:0]]
    for i, start in enumerate(borders_q[:-1]):
        query = q[start : borders_q[i + 1]].transpose(0, 1)
        key, value = (x[borders_k[i] : borders_k[i + 1]].transpose(0, 1) for x in (k, v))
        scores = (query @ key.transpose(1, 2)).unsqueeze(0)
        first, queries, keys = cu_q[i : i + 1], cu_q[i : i + 2].diff(), cu_k[i : i + 2].diff()
        weights = attention_weights(
            scores, first, queries, keys, q.shape[-1] ** -0.5, threshold, seed, site
        )
        outputs.append((weights.squeeze(0) @ value).transpose(0, 1))
    return torch.cat(outputs)
