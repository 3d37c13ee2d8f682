"""Losses of rows of logits and their gradient in place, as one native operation.

It takes what it is given: contiguous tensors of one device, logits of one of the four dtypes, and
fp32 (double for double logits) for biases and scales. Anything else raises with the argument's
name; nothing is repaired silently. The autograd rules are those of `cross_entropy.ScaledLoss` and
`RowLosses`, which own the products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.ops.registration import (
    DTYPES,
    check,
    check_range,
    check_rows,
    define,
    place,
    working_dtype,
)

_C = backend.native_module


def cross_entropy_rows_(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    head: Tensor | None,
    scale: Tensor | None,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """Losses [R] of logits [R, >= V] and, with `scale` [R], their gradient in place of the logits.

    The gradient is that of sum(scale * loss); columns from `vocab_size` on are padding and become
    0. Returns the losses and the gradient of `bias` [heads, V] ([0] without scale or bias). Native
    back ends only.
    """
    _check_cross_entropy(logits, targets, bias, head, scale, vocab_size)
    return torch.ops.spanbert_ext.cross_entropy_rows_(
        logits, targets, bias, head, scale, vocab_size
    )


def _check_cross_entropy(logits, targets, bias, head, scale, vocab_size) -> None:
    check_rows("logits", logits)
    (rows, stride), dtype = logits.shape, working_dtype(logits.dtype)
    if not 1 <= vocab_size <= stride:
        raise ValueError(f"vocab_size must lie in [1, {stride}]; got {vocab_size}")
    check("targets", targets, (rows,), torch.int64, logits)
    check_range("targets", targets, vocab_size, lambda: targets != IGNORE, kernel_asserts=True)
    if bias is not None:
        check("bias", bias, (None, vocab_size), dtype, logits)
    if head is not None:
        check("head", head, (rows,), torch.int64, logits)
        check_range("head", head, bias.shape[0] if bias is not None else 1, kernel_asserts=True)
    if scale is not None:
        check("scale", scale, (rows,), dtype, logits)


def _cross_entropy_rows(logits, targets, bias, head, scale, vocab_size):
    _check_cross_entropy(logits, targets, bias, head, scale, vocab_size)
    rows, stride = logits.shape
    heads = bias.shape[0] if bias is not None else 1
    losses, grad_bias = _cross_entropy_outputs(logits, targets, bias, head, scale, vocab_size)
    on_gpu = backend.cuda_path(logits.device)
    if bias is not None and on_gpu and vocab_size % 4:
        bias = F.pad(bias, (0, -vocab_size % 4))  # rows of whole 16 bytes
    chunks = -(-rows // _C.column_rows_per_chunk)
    partials = losses.new_empty((chunks, *grad_bias.shape) if on_gpu else (0,))
    optional = [t.data_ptr() if t is not None else 0 for t in (bias, head, scale)]
    _C.cross_entropy_rows(
        place(logits), DTYPES[logits.dtype], logits.data_ptr(), targets.data_ptr(), *optional,
        losses.data_ptr(), grad_bias.data_ptr() if grad_bias.numel() else 0, partials.data_ptr(),
        rows, vocab_size, stride, heads, bias.shape[1] if bias is not None else 0,
    )  # fmt: skip
    return losses, grad_bias


def _cross_entropy_outputs(logits, targets, bias, head, scale, vocab_size):
    dtype = working_dtype(logits.dtype)
    shape = (0,) if bias is None or scale is None else bias.shape
    return logits.new_empty((logits.shape[0],), dtype=dtype), logits.new_empty(shape, dtype=dtype)


define(
    "cross_entropy_rows_(Tensor(a!) logits, Tensor targets, Tensor? bias, Tensor? head, "
    "Tensor? scale, SymInt vocab_size) -> (Tensor losses, Tensor grad_bias)",
    _cross_entropy_rows,
    _cross_entropy_outputs,
)
