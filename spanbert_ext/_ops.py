"""The boundary between torch and the native core: schema, fake and autograd rule of every
operation.

Each public function here runs the registered native operation where the back end allows and the
function of the same name in `reference` elsewhere. The native operations take what they are given:
contiguous tensors of one device, floats of one dtype for rows, and fp32 (double for double rows)
for LayerNorm parameters, biases and statistics. Anything else raises with the argument's name;
nothing is repaired silently.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_ext import _sbo_rows, reference
from spanbert_ext._boundary import (
    DTYPES,
    check,
    check_range,
    check_rows,
    define,
    place,
    refuse,
    working_dtype,
)
from spanbert_ext.ops import backend
from spanbert_ext.reference import IGNORE

_C = backend.native_module
# gather_boundaries


def gather_boundaries(hidden: Tensor, span_left: Tensor, span_right: Tensor) -> Tensor:
    """`reference.gather_boundaries`: [T, H] to [S, 2H]. Spans must come as `MaskedBatch` orders
    them."""
    check_rows("hidden", hidden)
    _check_spans(span_left, span_right, hidden.shape[0], hidden)
    if not backend.use_native(hidden.device):
        return reference.gather_boundaries(hidden, span_left, span_right)
    return torch.ops.spanbert_ext.gather_boundaries(hidden, span_left, span_right)


def _check_spans(span_left, span_right, tokens: int, like: Tensor) -> None:
    check("span_left", span_left, (None,), torch.int64, like)
    check("span_right", span_right, (span_left.numel(),), torch.int64, like)
    check_range("span_left", span_left, tokens, lambda: span_right > 0, kernel_asserts=True)
    check_range("span_right", span_right, tokens, lambda: span_right > 0, kernel_asserts=True)


def _gather_boundaries(hidden, span_left, span_right):
    check_rows("hidden", hidden)
    _check_spans(span_left, span_right, hidden.shape[0], hidden)
    return _sbo_rows.gather(hidden, span_left, span_right)


def _gather_boundaries_backward(grad, span_left, span_right, tokens):
    check_rows("grad", grad)
    _check_spans(span_left, span_right, tokens, grad)
    return _sbo_rows.gather_backward(grad, span_left, span_right, tokens)


def _gather_boundaries_setup(ctx, inputs, output):
    ctx.tokens = inputs[0].shape[0]
    ctx.save_for_backward(*inputs[1:])


define(
    "gather_boundaries_backward(Tensor grad, Tensor span_left, Tensor span_right, SymInt tokens) "
    "-> Tensor",
    _gather_boundaries_backward,
    lambda grad, left, right, tokens: grad.new_empty((tokens, grad.shape[1] // 2)),
    backward=refuse,
)
define(
    "gather_boundaries(Tensor hidden, Tensor span_left, Tensor span_right) -> Tensor",
    _gather_boundaries,
    lambda hidden, left, right: hidden.new_empty((left.shape[0], 2 * hidden.shape[1])),
    _gather_boundaries_setup,
    lambda ctx, grad: (
        torch.ops.spanbert_ext.gather_boundaries_backward(
            grad.contiguous(), *ctx.saved_tensors, ctx.tokens
        ),
        None,
        None,
    ),
)

# gelu_layer_norm


def gelu_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.gelu_layer_norm`: LN(GELU(x)), [R, H] to [R, H]."""
    _check_norm(x, weight, bias)
    if not backend.use_native(x.device):
        return reference.gelu_layer_norm(x, weight, bias, eps)
    return torch.ops.spanbert_ext.gelu_layer_norm(x, weight, bias, eps)[0]


def _check_norm(x, weight, bias) -> None:
    check_rows("x", x)
    for name, parameter in (("weight", weight), ("bias", bias)):
        check(name, parameter, (x.shape[1],), working_dtype(x.dtype), x)


def _gelu_layer_norm(x, weight, bias, eps):
    _check_norm(x, weight, bias)
    return _sbo_rows.norm(x, None, weight, bias, eps)


def _gelu_layer_norm_backward(grad, x, weight, mean, rstd):
    check_rows("grad", grad)
    check("grad", grad, tuple(x.shape), x.dtype, x)
    return _sbo_rows.norm_backward(grad, x, None, weight, mean, rstd)[:3]


def _gelu_layer_norm_setup(ctx, inputs, output):
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


define(
    "gelu_layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd) "
    "-> (Tensor, Tensor, Tensor)",
    _gelu_layer_norm_backward,
    lambda grad, x, weight, mean, rstd: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
    backward=refuse,
)
define(
    "gelu_layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor out, Tensor mean, Tensor rstd)",
    _gelu_layer_norm,
    lambda x, weight, bias, eps: (torch.empty_like(x), *_sbo_rows.statistics(x, x.shape[0])),
    _gelu_layer_norm_setup,
    lambda ctx, grad, *_: (
        *torch.ops.spanbert_ext.gelu_layer_norm_backward(grad.contiguous(), *ctx.saved_tensors),
        None,
    ),
)

# sbo_first_layer


def sbo_first_layer(
    span_rows: Tensor,
    position_rows: Tensor,
    target_spans: Tensor,
    target_offsets: Tensor,
    sbo_ids: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """`reference.sbo_first_layer`: [S, H] and [P, H] to [K, H]."""
    arguments = (span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias, eps)
    _check_sbo(*arguments[:6])
    if not backend.use_native(span_rows.device):
        return reference.sbo_first_layer(*arguments)
    return torch.ops.spanbert_ext.sbo_first_layer(*arguments)[0]


def _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight) -> None:
    check_rows("span_rows", span_rows)
    size, targets = span_rows.shape[1], target_spans.shape[0]
    check("position_rows", position_rows, (None, size), span_rows.dtype, span_rows)
    for name, index in (
        ("target_spans", target_spans),
        ("target_offsets", target_offsets),
        ("sbo_ids", sbo_ids),
    ):
        check(name, index, (targets,), torch.int64, span_rows)
    check("weight", weight, (size,), working_dtype(span_rows.dtype), span_rows)

    def used() -> Tensor:
        return sbo_ids != IGNORE

    check_range("target_spans", target_spans, span_rows.shape[0], used, kernel_asserts=True)
    check_range("target_offsets", target_offsets, position_rows.shape[0], used, kernel_asserts=True)


def _sbo_first_layer(
    span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias, eps
):
    _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight)
    check("bias", bias, tuple(weight.shape), weight.dtype, span_rows)
    return _sbo_rows.first_layer(
        span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias, eps
    )


def _sbo_first_layer_backward(
    grad, span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, mean, rstd
):
    _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight)
    check("grad", grad, (target_spans.shape[0], span_rows.shape[1]), span_rows.dtype, span_rows)
    return _sbo_rows.first_layer_backward(
        grad, span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, mean, rstd
    )


def _sbo_first_layer_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _sbo_first_layer_gradients(ctx, grad, *_):
    spans, positions, weight, bias = torch.ops.spanbert_ext.sbo_first_layer_backward(
        grad.contiguous(), *ctx.saved_tensors
    )
    return spans, positions, None, None, None, weight, bias, None


define(
    "sbo_first_layer_backward(Tensor grad, Tensor span_rows, Tensor position_rows, "
    "Tensor target_spans, Tensor target_offsets, Tensor sbo_ids, Tensor weight, Tensor mean, "
    "Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor)",
    _sbo_first_layer_backward,
    lambda grad, spans, positions, s, o, i, weight, mean, rstd: tuple(
        torch.empty_like(t) for t in (spans, positions, weight, weight)
    ),
    backward=refuse,
)
define(
    "sbo_first_layer(Tensor span_rows, Tensor position_rows, Tensor target_spans, "
    "Tensor target_offsets, Tensor sbo_ids, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor out, Tensor mean, Tensor rstd)",
    _sbo_first_layer,
    lambda rows, p, spans, *_: (
        rows.new_empty((spans.shape[0], rows.shape[1])),
        *_sbo_rows.statistics(rows, spans.shape[0]),
    ),
    _sbo_first_layer_setup,
    _sbo_first_layer_gradients,
)

# cross_entropy_rows: the autograd rules are those of cross_entropy.ScaledLoss and RowLosses, which
# own the products


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
