"""Native calls of attention's softmax and dropout on the CPU: scores to the weights of the values,
in one pass over the rows. They trust their arguments, which `chunked_attention` made.

With scores [N, heads, Lq, Lk] of N padded sequences: first_queries [N] int64 is the place of a
sequence's first query in the stream, queries and keys [N] int64 are its used rows and columns (the
others get 0), scale is what the scores are multiplied with; threshold, seed [1] int64 and site key
the draws as in `dropout_reference.attention_weights`, which says what is computed.
"""

from __future__ import annotations

from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.registration import DTYPES

_C = backend.native_module


def _host(scores: Tensor):
    """The place of a native call: there is no kernel for a GPU."""
    if scores.device.type != "cpu":
        raise ValueError(f"attention weights are computed on the CPU only; got {scores.device}")
    return _C.Place(-1, 0)


def run(scores, first_queries, queries, keys, scale, threshold, seed, site, outputs) -> None:
    """Natively writes (weights, probabilities whose sign says what was dropped) to two tensors like
    scores, either of which may be scores itself. The second may be None where nothing is
    dropped."""
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
