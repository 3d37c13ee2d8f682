"""The whole span boundary head as one operation: gather, products and row functions.

Composed of single operations, autograd would copy, pad and add what belongs in one buffer: the
gradient of linear1's weight from its two column ranges, masks over all rows, casts of each
operand. Here every product writes where its result belongs, and arguments are checked once.

Products run in `backend.product_dtype`, and so do the rows between them: 16-bit rows are widened
once where a CPU multiplies fp32 faster. Products have an `out`, since autocast, still on inside an
operation's implementation, would cast the operands of any other form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_ext.ops import backend, sbo_rows
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.ops.registration import (
    check,
    check_float,
    check_range,
    check_rows,
    define,
    readable,
    refuse,
    working_dtype,
)

_INDEX = ("span_left", "span_right", "target_spans", "target_offsets", "sbo_ids")
PARAMETERS = (
    "position_embeddings.weight",
    "linear1.weight",
    "linear1.bias",
    "layer_norm1.weight",
    "layer_norm1.bias",
    "linear2.weight",
    "linear2.bias",
    "layer_norm2.weight",
    "layer_norm2.bias",
)


def sbo_head(
    hidden: Tensor,
    span_left: Tensor,
    span_right: Tensor,
    target_spans: Tensor,
    target_offsets: Tensor,
    sbo_ids: Tensor,
    parameters: tuple[Tensor, ...],
    eps: float,
    dtype: torch.dtype,
    capacity: int,
) -> Tensor:
    """`reference.sbo_forward`, [T, H] to [capacity, H]: row k belongs to target k, rows without a
    target are zero.

    Args:
        hidden: [T, H].
        span_left, span_right: [S] int64; target_spans, target_offsets, sbo_ids: [K] int64 as in
            `MaskedBatch`, K at most `capacity`.
        parameters: as `PARAMETERS` names them; any of the four dtypes of rows each. Their gradients
            are in their own dtype, that of `hidden` in its own.
        eps: of both LayerNorms.
        dtype: of the result, and of the products on a GPU.

    Raises:
        TypeError, ValueError: a shape, dtype or device is wrong.  IndexError: a span or offset
            outside its table (CPU).
    """
    index = (span_left, span_right, target_spans, target_offsets, sbo_ids)
    # Here, since tensors of two devices may never reach the implementation; the rest is there.
    for name, tensor in zip((*_INDEX, *PARAMETERS), (*index, *parameters), strict=True):
        if tensor.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device}; got {tensor.device}")
    if backend.use_native(hidden.device):
        arguments = (hidden, *index, *parameters, eps, dtype, capacity)
        return torch.ops.spanbert_ext.sbo_head(*arguments)[0]
    _check(hidden, index, parameters, capacity)
    rows = reference.sbo_forward(
        hidden, *index, dict(zip(PARAMETERS, parameters, strict=True)), eps
    )
    rows = torch.where((sbo_ids != IGNORE).unsqueeze(1), rows, 0)
    return F.pad(rows, (0, 0, 0, capacity - rows.shape[0]))


def _check(hidden, index, parameters, capacity) -> None:
    check_rows("hidden", hidden)
    size, targets = hidden.shape[1], index[2].numel()
    if capacity < targets:
        raise ValueError(f"capacity must be at least {targets}, the number of targets")
    positions = parameters[0]
    shapes = ((None, None), (size, 2 * size + positions.shape[-1]), *[(size,)] * 3)
    shapes += ((size, size), *[(size,)] * 3)
    for name, parameter, shape in zip(PARAMETERS, parameters, shapes, strict=True):
        check_float(name, parameter, len(shape))
        check(name, parameter, shape, parameter.dtype, hidden)
    check_indices(hidden, index, positions.shape[0])


def check_indices(
    hidden: Tensor, index: tuple[Tensor, ...], positions: int, kernel_asserts: bool = True
) -> None:
    """ValueError, TypeError or IndexError (CPU) unless the five columns of a batch, in the order of
    `MaskedBatch`, fit hidden [T, H] and a table of so many positions; `kernel_asserts` as in
    `check_range`."""
    span_left, span_right, target_spans, target_offsets, sbo_ids = index
    tokens, spans, targets = hidden.shape[0], span_left.numel(), target_spans.numel()
    check("span_left", span_left, (None,), torch.int64, hidden)
    check("span_right", span_right, (spans,), torch.int64, hidden)
    check("target_spans", target_spans, (None,), torch.int64, hidden)
    check("target_offsets", target_offsets, (targets,), torch.int64, hidden)
    check("sbo_ids", sbo_ids, (targets,), torch.int64, hidden)
    if readable(hidden) and _indices_fit(index, tokens, positions):
        return
    inside, wanted = (lambda: span_right > 0), (lambda: sbo_ids != IGNORE)
    check_range("span_left", span_left, tokens, inside, kernel_asserts)
    check_range("span_right", span_right, tokens, inside, kernel_asserts)
    check_range("target_spans", target_spans, spans, wanted, kernel_asserts)
    check_range("target_offsets", target_offsets, positions, wanted, kernel_asserts)


def _indices_fit(index, tokens: int, positions: int) -> bool:
    """One native pass instead of the torch reductions that name the argument at fault."""
    if backend.native_module is None:
        return False
    spans, targets = index[0].numel(), index[2].numel()
    pointers = (tensor.data_ptr() for tensor in index)
    return backend.native_module.sbo_indices_fit(*pointers, tokens, spans, targets, positions)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """a [N, M] times b [M, L], plus `bias` [L], in the dtype of `a`; into `out` if given."""
    if out is None:
        out = a.new_empty((a.shape[0], b.shape[1]))
    if bias is None:
        return torch.mm(a, b, out=out)
    return torch.addmm(bias.to(a.dtype), a, b, out=out)


def _split(weight1: Tensor, product: torch.dtype) -> tuple[Tensor, Tensor]:
    """linear1's columns for the boundary tokens [H, 2H] and for the positions [H, E]."""
    weight1 = weight1.to(product)
    width = 2 * weight1.shape[0]
    return weight1[:, :width], weight1[:, width:]


def _sbo_head(
    hidden, span_left, span_right, target_spans, target_offsets, sbo_ids, positions, weight1, bias1,
    gain1, shift1, weight2, bias2, gain2, shift2, eps, dtype, capacity,
):  # fmt: skip
    index = (span_left, span_right, target_spans, target_offsets, sbo_ids)
    matrices = (positions, weight1, bias1, gain1, shift1, weight2, bias2, gain2, shift2)
    _check(hidden, index, matrices, capacity)
    product = backend.product_dtype(hidden.device, dtype)
    wide = working_dtype(product)
    pair_columns, position_columns = _split(weight1, product)
    pairs = sbo_rows.gather(hidden, span_left, span_right).to(product)
    span_rows = _product(pairs, pair_columns.t())
    position_rows = _product(positions.to(product), position_columns.t(), bias=bias1)
    x, mean1, rstd1 = sbo_rows.first_layer(
        span_rows, position_rows, *index[2:], gain1.to(wide), shift1.to(wide), eps
    )
    z = _product(x, weight2.to(product).t(), bias=bias2)
    rows, mean2, rstd2 = sbo_rows.norm(z, sbo_ids, gain2.to(wide), shift2.to(wide), eps)
    targets = rows.shape[0]
    if targets < capacity or dtype != product:
        out = rows.new_empty((capacity, hidden.shape[1]), dtype=dtype)
        out[:targets] = rows
        out[targets:] = 0
        rows = out
    return rows, pairs, span_rows, position_rows, x, z, mean1, rstd1, mean2, rstd2


def _sbo_head_shapes(hidden, left, right, spans, offsets, ids, positions, *rest):
    dtype, capacity = rest[-2:]
    (_, size), targets = hidden.shape, spans.shape[0]
    like = hidden.new_empty((), dtype=backend.product_dtype(hidden.device, dtype))
    rows = (
        (left.shape[0], 2 * size),
        (left.shape[0], size),
        (positions.shape[0], size),
        (targets, size),
        (targets, size),
    )
    return (
        hidden.new_empty((capacity, size), dtype=dtype),
        *(like.new_empty(shape) for shape in rows),
        *sbo_rows.statistics(like, targets),
        *sbo_rows.statistics(like, targets),
    )


def _sbo_head_backward(
    grad, span_left, span_right, target_spans, target_offsets, sbo_ids, positions, weight1, gain1,
    weight2, gain2, pairs, span_rows, position_rows, x, z, mean1, rstd1, mean2, rstd2, tokens,
    dtype,
):  # fmt: skip
    product, wide = z.dtype, mean1.dtype
    check("grad", grad, (None, z.shape[1]), grad.dtype, z)
    targets, size = z.shape
    grad = grad[:targets].to(product)
    grad_z, grad_gain2, grad_shift2, grad_bias2 = sbo_rows.norm_backward(
        grad, z, sbo_ids, gain2.to(wide), mean2, rstd2
    )
    grad_weight2 = _product(grad_z.t(), x, grad_z.new_empty((size, size)))
    grad_x = _product(grad_z, weight2.to(product))
    grad_spans, grad_positions, grad_gain1, grad_shift1 = sbo_rows.first_layer_backward(
        grad_x, span_rows, position_rows, target_spans, target_offsets, sbo_ids, gain1.to(wide),
        mean1, rstd1,
    )  # fmt: skip
    grad_weight1 = grad_z.new_empty(tuple(weight1.shape))
    pair_grad, position_grad = _split(grad_weight1, product)
    _product(grad_spans.t(), pairs, pair_grad)
    _product(grad_positions.t(), positions.to(product), position_grad)
    pair_columns, position_columns = _split(weight1, product)
    grad_pairs = _product(grad_spans, pair_columns).to(dtype)
    return (
        sbo_rows.gather_backward(grad_pairs, span_left, span_right, tokens),
        _product(grad_positions, position_columns).to(positions.dtype),
        grad_weight1.to(weight1.dtype),
        grad_positions.sum(0, dtype=wide).to(weight1.dtype),
        grad_gain1.to(gain1.dtype),
        grad_shift1.to(gain1.dtype),
        grad_weight2.to(weight2.dtype),
        grad_bias2.to(weight2.dtype),
        grad_gain2.to(gain2.dtype),
        grad_shift2.to(gain2.dtype),
    )


def _sbo_head_backward_shapes(grad, *rest):
    positions, weight1, gain1, weight2, gain2 = rest[5:10]
    tokens, dtype = rest[-2:]
    like = (positions, weight1, weight1[:, 0], gain1, gain1, weight2, weight2[:, 0], gain2, gain2)
    return grad.new_empty((tokens, weight2.shape[0]), dtype=dtype), *(
        t.new_empty(t.shape) for t in like
    )


def _setup(ctx, inputs, output):
    hidden, *index = inputs[:6]
    positions, weight1, _, gain1, _, weight2, _, gain2, _ = inputs[6:15]
    ctx.tokens, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.set_materialize_grads(False)  # nine outputs besides the rows take no gradient
    ctx.save_for_backward(*index, positions, weight1, gain1, weight2, gain2, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, grad, *_):
    if grad is None:
        return (None,) * 18
    grads = torch.ops.spanbert_ext.sbo_head_backward(
        grad.contiguous(), *ctx.saved_tensors, ctx.tokens, ctx.dtype
    )
    return grads[0], *[None] * 5, *grads[1:], None, None, None


_SLOTS = "".join(f"Tensor {name}, " for name in _INDEX)
define(
    f"sbo_head_backward(Tensor grad, {_SLOTS}Tensor positions, Tensor weight1, Tensor gain1, "
    "Tensor weight2, Tensor gain2, Tensor pairs, Tensor span_rows, Tensor position_rows, Tensor x, "
    "Tensor z, Tensor mean1, Tensor rstd1, Tensor mean2, Tensor rstd2, SymInt tokens, "
    f"ScalarType dtype) -> ({', '.join(['Tensor'] * 10)})",
    _sbo_head_backward,
    _sbo_head_backward_shapes,
    backward=refuse,
)
define(
    f"sbo_head(Tensor hidden, {_SLOTS}Tensor positions, Tensor weight1, Tensor bias1, "
    "Tensor gain1, Tensor shift1, Tensor weight2, Tensor bias2, Tensor gain2, Tensor shift2, "
    f"float eps, ScalarType dtype, SymInt capacity) -> ({', '.join(['Tensor'] * 10)})",
    _sbo_head,
    _sbo_head_shapes,
    _setup,
    _gradients,
)
