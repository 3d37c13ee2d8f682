"""The boundary of span pruning: which of the candidate spans stay, decided on the host.

As in `_ops`: inputs must already be right, and anything else raises with the argument's name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.registration import check, define
from spanbert_ext.tasks.coref.model import reference

_C = backend.native_module
_HOST = torch.device("cpu")


def prune_spans(starts: Tensor, ends: Tensor, scores: Tensor, length: int, keep: int) -> Tensor:
    """The best spans of which no two cross, natively where the back end allows.

    Spans are taken by falling score, the earlier of two equal ones first, unless they partly
    overlap one that was taken; spans inside one another do not cross. A score that is not a number
    is the lowest. Not differentiable. Every choice depends on those before it, so the tensors of a
    GPU are copied to the host, which waits for them, and the answer is copied back.

    Args:
        starts, ends: [C] int64, first and last piece of each candidate, in [0, length).
        scores: [C] float32 or float64.
        length: pieces of the document.
        keep: most spans to keep, at least 0.

    Returns:
        [K] int64, K <= keep, places of the kept candidates, ascending by (start, end, place).

    Raises:
        TypeError, ValueError, IndexError: an argument of the wrong dtype, shape, device or range.

    Source: Lee et al. 2017, section 5.
    """
    _check_inputs(starts, ends, scores, length, keep)
    if backend.use_native(_HOST):
        return torch.ops.spanbert_ext.prune_spans(starts, ends, scores, length, keep)
    bad = ((starts < 0) | (ends < starts) | (ends >= length)).nonzero()
    if bad.numel():
        _raise_outside(starts, ends, length, int(bad[0]))
    kept = reference.prune_spans(starts.tolist(), ends.tolist(), scores.tolist(), keep)
    return torch.tensor(kept, dtype=torch.int64, device=starts.device)


def _check_inputs(starts, ends, scores, length: int, keep: int) -> None:
    check("starts", starts, (None,), torch.int64, starts)
    check("ends", ends, (starts.numel(),), torch.int64, starts)
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores must be float32 or float64; got {scores.dtype}")
    check("scores", scores, (starts.numel(),), scores.dtype, starts)
    for name, value in (("length", length), ("keep", keep)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0; got {value}")


def _raise_outside(starts, ends, length: int, place: int) -> None:
    raise IndexError(
        f"candidate {place} runs from {int(starts[place])} to {int(ends[place])}; expected "
        f"0 <= start <= end < {length}"
    )


def _prune_spans(starts, ends, scores, length: int, keep: int):
    _check_inputs(starts, ends, scores, length, keep)
    # Doubles hold every fp32 score exactly.
    host = (starts.cpu(), ends.cpu(), scores.to("cpu", torch.float64))
    kept = host[0].new_empty((min(keep, starts.numel()),))
    addresses = [values.data_ptr() for values in host]
    count = _C.prune_spans(*addresses, starts.numel(), length, kept.numel(), kept.data_ptr())
    if count < 0:
        _raise_outside(starts, ends, length, -1 - count)
    return kept[:count].to(starts.device, copy=True)


def _prune_spans_fake(starts, ends, scores, length, keep):
    return starts.new_empty(torch.library.get_ctx().new_dynamic_size())


define(
    "prune_spans(Tensor starts, Tensor ends, Tensor scores, int length, int keep) -> Tensor",
    _prune_spans,
    _prune_spans_fake,
)
