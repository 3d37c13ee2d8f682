"""The boundary of GELU(x + bias): the inner layer's bias, added where its activation is computed.

As in `_ops`: inputs must already be right, and anything else raises with the argument's name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_ext import _backend, dropout_reference
from spanbert_ext._boundary import (
    DTYPES,
    check,
    check_rows,
    define,
    place,
    refuse,
    working_dtype,
)

_C = _backend.native_module


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias), exact (erf), [R, I] to [R, I] in x's dtype, computed in fp32 (double for
    double).

    Args:
        x: [R, I] of one of the four dtypes of rows.
        bias: [I] fp32 (double for double).

    Differentiable once, in both. Raises TypeError or ValueError on shape, dtype, device or layout.
    """
    _check(x, bias)
    if not _backend.use_native(x.device):
        return dropout_reference.bias_gelu(x, bias)
    return torch.ops.spanbert_ext.bias_gelu(x, bias)


def _check(x, bias) -> None:
    check_rows("x", x)
    check("bias", bias, (x.shape[1],), working_dtype(x.dtype), x)


def _bias_gelu(x, bias):
    _check(x, bias)
    out = torch.empty_like(x)
    _C.bias_gelu(place(x), DTYPES[x.dtype], x.data_ptr(), bias.data_ptr(), out.data_ptr(), *x.shape)
    return out


def _bias_gelu_backward(grad, x, bias):
    _check(x, bias)
    check("grad", grad, tuple(x.shape), x.dtype, x)
    rows, size = x.shape
    grad_x, grad_bias = torch.empty_like(x), torch.empty_like(bias)
    partials = bias.new_empty((-(-rows // _C.norm_rows_per_chunk(rows)), size))
    _C.bias_gelu_backward(
        place(x), DTYPES[x.dtype], grad.data_ptr(), x.data_ptr(), bias.data_ptr(),
        grad_x.data_ptr(), grad_bias.data_ptr(), partials.data_ptr(), rows, size,
    )  # fmt: skip
    return grad_x, grad_bias


define(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    _bias_gelu_backward,
    lambda grad, x, bias: (torch.empty_like(x), torch.empty_like(bias)),
    backward=refuse,
)
define(
    "bias_gelu(Tensor x, Tensor bias) -> Tensor",
    _bias_gelu,
    lambda x, bias: torch.empty_like(x),
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, grad: torch.ops.spanbert_ext.bias_gelu_backward(
        grad.contiguous(), *ctx.saved_tensors
    ),
)
