"""The boundary of the residual connection: dropout, addition and LayerNorm in one pass over the
rows.

As in `_ops`: inputs must already be right, and anything else raises with the argument's name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.reference import dropout as dropout_reference
from spanbert_ext.ops.reference.dropout import mask_threshold
from spanbert_ext.ops.registration import (
    DTYPES,
    check,
    check_draws,
    check_float,
    check_rows,
    define,
    place,
    refuse,
    working_dtype,
)

_C = backend.native_module


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """LN(dropout(x) + residual), [R, H] to [R, H] in the residual's dtype.

    Args:
        x: [R, H], the residual's dtype, or bf16 or fp16 beside an fp32 residual.
        residual: [R, H].
        weight, bias: [H] fp32 (double for double).
        eps: added to the variance.
        p: probability of dropping a column of x, rounded to a multiple of 2^-16; what is kept is
            scaled by the rounded probability, so the expectation is exact.
        seed: [1] int64 on x's device, needed when p > 0. A draw is a pure function of (seed, site,
            row, column): the same on every device, and again in the backward pass.
        site: 32-bit number of this place in the model.

    Differentiable once, in x, residual, weight and bias.

    Raises:
        TypeError, ValueError: shape, dtype, device or layout of an argument, or p.
    """
    return _dropout_norm(x, residual, weight, bias, eps, p, seed, site, False)


def add_layer_norm_dropout(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """dropout(LN(x + residual)); arguments as in `dropout_add_layer_norm`."""
    return _dropout_norm(x, residual, weight, bias, eps, p, seed, site, True)


def _dropout_norm(x, residual, weight, bias, eps, p, seed, site, drop_output) -> Tensor:
    threshold = mask_threshold(p)
    seed = seed if threshold else None
    arguments = (x, residual, weight, bias, eps, threshold, seed, site, drop_output)
    _check(x, residual, weight, seed, site, threshold)
    check("bias", bias, (x.shape[1],), weight.dtype, x)
    if not backend.use_native(x.device):
        return dropout_reference.dropout_norm(*arguments)
    return torch.ops.spanbert_ext.dropout_norm(*arguments)[0]


def _check(x, residual, weight, seed, site, threshold) -> None:
    check_float("x", x, 2)
    check_rows("residual", residual)
    check("x", x, tuple(residual.shape), x.dtype, residual)
    if x.dtype != residual.dtype and (residual.dtype != torch.float32 or x.dtype == torch.float64):
        raise TypeError(
            f"x must be {residual.dtype}, as the residual, or 16 bits beside a float32 residual; "
            f"got {x.dtype}"
        )
    check("weight", weight, (x.shape[1],), working_dtype(residual.dtype), x)
    check_draws(x, seed, site, threshold)


def _dtypes(x, residual) -> tuple[int, int]:
    return DTYPES[x.dtype], DTYPES[residual.dtype]


def _outputs(x, residual, weight, *_) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (weight.new_empty((x.shape[0],)) for _ in range(2))
    return torch.empty_like(residual), *statistics


def _forward(x, residual, weight, bias, eps, threshold, seed, site, drop_output):
    _check(x, residual, weight, seed, site, threshold)
    check("bias", bias, (x.shape[1],), weight.dtype, x)
    outputs = _outputs(x, residual, weight)
    _C.dropout_norm(
        place(x), _dtypes(x, residual), _addresses(x, residual, weight, bias, seed), site,
        threshold, drop_output, eps, _addresses(*outputs), *x.shape,
    )  # fmt: skip
    return outputs


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None or not t.numel() else t.data_ptr() for t in tensors]


def _gradients(
    grad, x, residual, weight, mean, rstd, threshold, seed, site, drop_output
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x is empty where it would equal grad_residual bit for bit."""
    equal = x.dtype == residual.dtype and (threshold == 0 or drop_output)
    grad_x = x.new_empty((0,)) if equal else torch.empty_like(x)
    return grad_x, torch.empty_like(residual), weight.new_empty((2, weight.shape[0]))


def _backward(grad, x, residual, weight, mean, rstd, threshold, seed, site, drop_output):
    _check(x, residual, weight, seed, site, threshold)
    rows, size = x.shape
    check("grad", grad, (rows, size), residual.dtype, x)
    for name, values in (("mean", mean), ("rstd", rstd)):
        check(name, values, (rows,), weight.dtype, x)
    outputs = _gradients(grad, x, residual, weight, mean, rstd, threshold, seed, site, drop_output)
    partials = weight.new_empty((-(-rows // _C.norm_rows_per_chunk(rows)), 2, size))
    _C.dropout_norm_backward(
        place(x), _dtypes(x, residual),
        _addresses(grad, x, residual, weight, mean, rstd, seed), site, threshold, drop_output,
        _addresses(*outputs, partials), rows, size,
    )  # fmt: skip
    return outputs


def _setup(ctx, inputs, output):
    x, residual, weight, _, _, threshold, seed, site, drop_output = inputs
    ctx.settings = threshold, site, drop_output
    ctx.save_for_backward(x, residual, weight, *output[1:], seed)
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx, grad, *_):
    *tensors, seed = ctx.saved_tensors
    threshold, site, drop_output = ctx.settings
    grad_x, grad_residual, parameters = torch.ops.spanbert_ext.dropout_norm_backward(
        grad.contiguous(), *tensors, threshold, seed, site, drop_output
    )
    if grad_x.shape != grad_residual.shape:
        grad_x = grad_residual
    return grad_x, grad_residual, parameters[0], parameters[1], None, None, None, None, None


define(
    "dropout_norm_backward(Tensor grad, Tensor x, Tensor residual, Tensor weight, Tensor mean, "
    "Tensor rstd, int threshold, Tensor? seed, int site, bool drop_output) "
    "-> (Tensor grad_x, Tensor grad_residual, Tensor grad_parameters)",
    _backward,
    _gradients,
    backward=refuse,
)
define(
    "dropout_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, "
    "int threshold, Tensor? seed, int site, bool drop_output) "
    "-> (Tensor out, Tensor mean, Tensor rstd)",
    _forward,
    _outputs,
    _setup,
    _autograd,
)
