"""The boundary of attention's softmax and dropout: scores to the weights of the values, in one pass
over the rows.

As in `_ops`: inputs must already be right, and anything else raises with the argument's name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_ext import dropout_reference
from spanbert_ext._boundary import (
    DTYPES,
    check,
    check_draws,
    check_float,
    check_range,
    define,
    refuse,
)
from spanbert_ext.dropout_reference import mask_threshold
from spanbert_ext.ops import backend

_C = backend.native_module


def attention_weights(
    scores: Tensor,
    first_queries: Tensor,
    queries: Tensor,
    keys: Tensor,
    scale: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """dropout(softmax(scale * scores)) over the keys of each sequence, [N, heads, Lq, Lk] to the
    same in the same dtype, computed in fp32 (double for double).

    Args:
        scores: [N, heads, Lq, Lk], products of queries and keys of N padded sequences.
        first_queries: [N] int64, the place of a sequence's first query in the stream.
        queries, keys: [N] int64, used rows in [0, Lq] and columns in [0, Lk]; the others get 0.
        scale: what the scores are multiplied with.
        p: probability of dropping a weight, rounded to a multiple of 2^-16; what is kept is scaled
            by the rounded probability, so the expectation is exact.
        seed: [1] int64 on the device of scores, needed when p > 0. A draw is a pure function of
            (seed, site, head, place of the query in the stream, place of the key in its sequence):
            padding and grouping of sequences change none.
        site: 32-bit number of this place in the model.

    Differentiable once, in scores.

    Raises:
        TypeError, ValueError, IndexError: shape, dtype, device, layout or range of an argument.
    """
    threshold = mask_threshold(p)
    seed = seed if threshold else None
    arguments = (scores, first_queries, queries, keys, scale, threshold, seed, site)
    _check(scores, first_queries, queries, keys)
    check_draws(scores, seed, site, threshold)
    check_range("queries", queries, scores.shape[2] + 1, kernel_asserts=True)
    check_range("keys", keys, scores.shape[3] + 1, kernel_asserts=True)
    if not backend.use_native(scores.device):
        return dropout_reference.attention_weights(*arguments)
    return torch.ops.spanbert_ext.attention_weights(*arguments)[0]


def _check(scores, first_queries, queries, keys) -> None:
    check_float("scores", scores, 4)
    check("scores", scores, (None,) * 4, scores.dtype, scores)
    integers = {"first_queries": first_queries, "queries": queries, "keys": keys}
    for name, values in integers.items():
        check(name, values, (scores.shape[0],), torch.int64, scores)


def _host(scores: Tensor):
    """The place of a native call: there is no kernel for a GPU."""
    if scores.device.type != "cpu":
        raise ValueError(f"attention weights are computed on the CPU only; got {scores.device}")
    return _C.Place(-1, 0)


def run(scores, first_queries, queries, keys, scale, threshold, seed, site, outputs) -> None:
    """Natively writes (weights, probabilities whose sign says what was dropped) to two tensors like
    scores, either of which may be scores itself. The second may be None where nothing is dropped.
    What the public function checks must be right."""
    weights, signed_probs = outputs
    _C.attention_weights(
        _host(scores), DTYPES[scores.dtype], scores.data_ptr(),
        (queries.data_ptr(), keys.data_ptr()), first_queries.data_ptr(),
        0 if seed is None else seed.data_ptr(), site, threshold, scale,
        weights.data_ptr(), 0 if signed_probs is None else signed_probs.data_ptr(), scores.shape,
    )  # fmt: skip


def run_backward(grad_weights, signed_probs, queries, keys, scale, threshold, outputs) -> None:
    """Natively writes (gradient of the scores, the weights once more) to two tensors, the first of
    which may be grad_weights."""
    grad_scores, weights = outputs
    _C.attention_weights_backward(
        _host(signed_probs), DTYPES[signed_probs.dtype], grad_weights.data_ptr(),
        signed_probs.data_ptr(), (queries.data_ptr(), keys.data_ptr()), threshold, scale,
        grad_scores.data_ptr(), weights.data_ptr(), signed_probs.shape,
    )  # fmt: skip


def _outputs(scores, *_) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), torch.empty_like(scores)


def _forward(scores, first_queries, queries, keys, scale, threshold, seed, site):
    _check(scores, first_queries, queries, keys)
    check_draws(scores, seed, site, threshold)
    outputs = _outputs(scores)
    run(scores, first_queries, queries, keys, scale, threshold, seed, site, outputs)
    return outputs


def _backward(grad_weights, signed_probs, queries, keys, scale, threshold):
    _check(signed_probs, queries, queries, keys)
    check("grad_weights", grad_weights, signed_probs.shape, signed_probs.dtype, signed_probs)
    outputs = _outputs(signed_probs)
    run_backward(grad_weights, signed_probs, queries, keys, scale, threshold, outputs)
    return outputs


def _setup(ctx, inputs, output):
    _, _, queries, keys, scale, threshold, _, _ = inputs
    ctx.settings = scale, threshold
    ctx.save_for_backward(output[1], queries, keys)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx, grad_weights, _):
    grad_scores, _ = torch.ops.spanbert_ext.attention_weights_backward(
        grad_weights.contiguous(), *ctx.saved_tensors, *ctx.settings
    )
    return grad_scores, None, None, None, None, None, None, None


define(
    "attention_weights_backward(Tensor grad_weights, Tensor signed_probs, Tensor queries, "
    "Tensor keys, float scale, int threshold) -> (Tensor grad_scores, Tensor weights)",
    _backward,
    lambda grad_weights, signed_probs, *_: _outputs(signed_probs),
    backward=refuse,
)
define(
    "attention_weights(Tensor scores, Tensor first_queries, Tensor queries, Tensor keys, "
    "float scale, int threshold, Tensor? seed, int site) -> (Tensor weights, Tensor signed_probs)",
    _forward,
    _outputs,
    _setup,
    _autograd,
)
