"""Native calls of the row functions around the span boundary objective's products.

They allocate what a call needs and trust their arguments, which `sbo_head` checks. Shapes: T
tokens, S spans, P positions, K targets, R rows, H columns. Rows have one dtype; LayerNorm
parameters and statistics have the working dtype.
"""

from __future__ import annotations

from torch import Tensor, empty_like

from spanbert_ext.ops import backend
from spanbert_ext.ops.registration import DTYPES, place, working_dtype

_C = backend.native_module


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def statistics(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Uninitialised mean and rstd [count] of rows like `rows`."""
    dtype = working_dtype(rows.dtype)
    return rows.new_empty((count,), dtype=dtype), rows.new_empty((count,), dtype=dtype)


def gather(hidden: Tensor, span_left: Tensor, span_right: Tensor) -> Tensor:
    """[T, H] to [S, 2H]."""
    spans, (tokens, size) = span_left.shape[0], hidden.shape
    out = hidden.new_empty((spans, 2 * size))
    _C.gather_boundaries(
        place(hidden), DTYPES[hidden.dtype], hidden.data_ptr(), span_left.data_ptr(),
        span_right.data_ptr(), out.data_ptr(), tokens, spans, size,
    )  # fmt: skip
    return out


def gather_backward(grad: Tensor, span_left: Tensor, span_right: Tensor, tokens: int) -> Tensor:
    """[S, 2H] to [T, H]."""
    spans, size = grad.shape[0], grad.shape[1] // 2
    out = grad.new_empty((tokens, size))
    _C.gather_boundaries_backward(
        place(grad), DTYPES[grad.dtype], grad.data_ptr(), span_left.data_ptr(),
        span_right.data_ptr(), out.data_ptr(), tokens, spans, size,
    )  # fmt: skip
    return out


def norm(
    x: Tensor, row_ids: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LN(GELU(x)) [R, H], mean and rstd [R]; rows whose id is -100 are zero."""
    rows, size = x.shape
    out, (mean, rstd) = empty_like(x), statistics(x, rows)
    _C.gelu_layer_norm(
        place(x), DTYPES[x.dtype], x.data_ptr(), _pointer(row_ids), weight.data_ptr(),
        bias.data_ptr(), eps, out.data_ptr(), mean.data_ptr(), rstd.data_ptr(), rows, size,
    )  # fmt: skip
    return out, mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, row_ids: Tensor | None, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x [R, H], weight and bias [H], and the sum of the first over its rows [H]."""
    rows, size = x.shape
    outputs = (empty_like(x), *(empty_like(weight) for _ in range(3)))
    partials = weight.new_empty((-(-rows // _C.rows_per_chunk), 3, size))
    _C.gelu_layer_norm_backward(
        place(x), DTYPES[x.dtype], grad.data_ptr(), x.data_ptr(), _pointer(row_ids),
        *(t.data_ptr() for t in (weight, mean, rstd, *outputs, partials)), rows, size,
    )  # fmt: skip
    return outputs


def first_layer(
    span_rows: Tensor,
    position_rows: Tensor,
    target_spans: Tensor,
    target_offsets: Tensor,
    sbo_ids: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """LN(GELU(span row + position row)) [K, H], mean and rstd [K]; rows of id -100 are zero."""
    (spans, size), targets = span_rows.shape, target_spans.shape[0]
    out, (mean, rstd) = span_rows.new_empty((targets, size)), statistics(span_rows, targets)
    inputs = (span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias)
    _C.sbo_first_layer(
        place(span_rows), DTYPES[span_rows.dtype], *(t.data_ptr() for t in inputs), eps,
        out.data_ptr(), mean.data_ptr(), rstd.data_ptr(), targets, spans, position_rows.shape[0],
        size,
    )  # fmt: skip
    return out, mean, rstd


def first_layer_backward(
    grad: Tensor,
    span_rows: Tensor,
    position_rows: Tensor,
    target_spans: Tensor,
    target_offsets: Tensor,
    sbo_ids: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of span_rows [S, H], position_rows [P, H], weight and bias [H]."""
    targets, positions, (spans, size) = len(target_spans), len(position_rows), span_rows.shape
    outputs = tuple(empty_like(t) for t in (span_rows, position_rows, weight, weight))
    partials = weight.new_empty((-(-spans // _C.spans_per_chunk), 2 + positions, size))
    first_targets = target_spans.new_empty((spans,))
    inputs = (grad, span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight)
    tensors = (*inputs, mean, rstd, *outputs, partials, first_targets)
    _C.sbo_first_layer_backward(
        place(span_rows), DTYPES[span_rows.dtype], *(t.data_ptr() for t in tensors),
        targets, spans, positions, size,
    )  # fmt: skip
    return outputs
