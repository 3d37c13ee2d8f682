"""The specification: every operation of the native core in plain Python and torch.

Nothing here is fast and nothing here is native. A kernel is an optimisation of a function of this
file and must agree with it: integers bit for bit, floats within twice the error torch itself makes
in that dtype. The functions run on any device; the differentiable ones get their gradients from
autograd. Masking and dropout have files of their own, mask_reference and dropout_reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F

IGNORE = -100
WORD_START = 1
SPECIAL = 2
_LOW = 0xFFFFFFFF
Word = TypeVar("Word", int, torch.Tensor)


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
    used = (span_right > 0).unsqueeze(1)
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
