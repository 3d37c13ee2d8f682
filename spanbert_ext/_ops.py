"""The boundary between torch and the native core: schema, fake and autograd rule of every operation.

Each public function here runs the registered native operation where the back end allows and the function of the
same name in `reference` elsewhere. The native operations take what they are given: contiguous tensors of one
device, floats of one dtype for rows, and fp32 (double for double rows) for LayerNorm parameters, biases and
statistics. Anything else raises with the argument's name; nothing is repaired silently.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spanbert_ext import _backend, reference
from spanbert_ext.reference import IGNORE, SamplerSettings

_C = _backend.native_module
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_library = torch.library.Library("spanbert_ext", "DEF")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for rows of at most 32 bits, double for double rows."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _place(tensor: Tensor):
    if tensor.device.type == "cpu":
        return _C.Place(-1, 0)
    stream = torch.cuda.current_stream(tensor.device)
    return _C.Place(tensor.device.index, stream.cuda_stream)


def _check(name: str, tensor: Tensor, shape: tuple, dtype: torch.dtype, like: Tensor) -> None:
    """Shape entries of None accept any size."""
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, sizes, strict=True)
    ):
        raise ValueError(f"{name} must have shape {shape}; got {sizes}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}; got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}; got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous; got strides {tensor.stride()}")


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; got {rows.dtype}")
    _check(name, rows, (None, None), rows.dtype, rows)


def _check_range(name: str, index: Tensor, size: int, used: Tensor | None = None) -> None:
    """On the CPU only: elsewhere the kernel asserts, because reading the answer back would stall the stream."""
    if index.device.type != "cpu" or index.numel() == 0:
        return
    bad = (index < 0) | (index >= size)
    if used is not None:
        bad &= used
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise IndexError(f"{name}[{first}] is {int(index[first])}; expected 0 <= index < {size}")


def _define(schema: str, implementation, fake, setup_context=None, backward=None) -> None:
    name = _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"spanbert_ext::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"spanbert_ext::{name}", backward, setup_context=setup_context, lib=_library
        )


# span_mask: not differentiable ------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _native_settings(seed, mask_id, ratio, min_words, lengths, mask, random, per_piece, slots):
    return _C.SamplerSettings(
        seed, mask_id, ratio, min_words, list(lengths), mask, random, per_piece, slots
    )


def _signed(seed: int) -> int:
    """The 64-bit key as the signed integer that an operation's argument can hold."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def span_mask(
    tokens: Tensor,
    starts: Tensor,
    ends: Tensor,
    sample_ids: Tensor,
    epoch: Tensor,
    vocabulary: Tensor,
    random_tokens: Tensor,
    settings: SamplerSettings,
    target_capacity: int,
    span_capacity: int,
) -> tuple[Tensor, ...]:
    """`reference.span_mask`, natively where the back end allows."""
    if not _backend.use_native(tokens.device):
        bad = ((tokens < 0) | (tokens >= vocabulary.numel())).nonzero()
        if bad.numel():
            _raise_bad_id(tokens, int(bad[0]), vocabulary.numel())
        return reference.span_mask(
            tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, settings,
            target_capacity, span_capacity,
        )  # fmt: skip
    return torch.ops.spanbert_ext.span_mask(
        tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens,
        _signed(settings.seed), settings.mask_id, settings.ratio, settings.min_words,
        settings.length_thresholds, settings.mask_threshold, settings.random_threshold,
        settings.per_piece, settings.max_span_targets, target_capacity, span_capacity,
    )  # fmt: skip


def _raise_bad_id(tokens: Tensor, place: int, size: int) -> None:
    raise IndexError(
        f"token {place} of the flat batch has id {int(tokens[place])}; expected 0 <= id < {size}"
    )


def _span_mask(
    tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens, seed, mask_id, ratio,
    min_words, length_thresholds, mask_threshold, random_threshold, per_piece, max_span_targets,
    target_capacity, span_capacity,
):  # fmt: skip
    total, sequences = tokens.numel(), starts.numel()
    for name, tensor in (("starts", starts), ("ends", ends), ("sample_ids", sample_ids)):
        _check(name, tensor, (sequences,), torch.int64, tokens)
    _check("epoch", epoch, (1,), torch.int64, tokens)
    _check("vocabulary", vocabulary, (None,), torch.uint8, tokens)
    _check("random_tokens", random_tokens, (None,), torch.int64, tokens)
    outputs = _empty_masks(tokens, target_capacity, span_capacity)
    bitmaps = tokens.new_empty((3, total // 64 + sequences + 1), dtype=torch.int64)
    row_counts = tokens.new_empty((2, sequences + 1), dtype=torch.int64)
    settings = _native_settings(
        seed & (2**64 - 1), mask_id, tuple(ratio), min_words, tuple(length_thresholds),
        mask_threshold, random_threshold, per_piece, max_span_targets,
    )  # fmt: skip
    inputs = (tokens, starts, ends, sample_ids, epoch, vocabulary, random_tokens)
    sizes = [total, sequences, vocabulary.numel(), random_tokens.numel()]
    bad = _C.span_mask(
        _place(tokens), settings, tokens.dtype == torch.int64, *(t.data_ptr() for t in inputs),
        [t.data_ptr() for t in outputs], bitmaps.data_ptr(), row_counts.data_ptr(),
        [*sizes, target_capacity, span_capacity],
    )  # fmt: skip
    if bad >= 0:
        _raise_bad_id(tokens, bad, vocabulary.numel())
    return outputs


def _empty_masks(tokens: Tensor, target_capacity: int, span_capacity: int) -> tuple[Tensor, ...]:
    sizes = [target_capacity] * 5 + [span_capacity] * 2 + [1]
    columns = (tokens.new_empty((size,), dtype=torch.int64) for size in sizes)
    return torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.int64), *columns


def _span_mask_fake(tokens, *arguments):
    return _empty_masks(tokens, *arguments[-2:])


_define(
    "span_mask(Tensor tokens, Tensor starts, Tensor ends, Tensor sample_ids, Tensor epoch, Tensor vocabulary, "
    "Tensor random_tokens, int seed, int mask_id, int[] ratio, int min_words, int[] length_thresholds, "
    "int mask_threshold, int random_threshold, bool per_piece, int max_span_targets, SymInt target_capacity, "
    "SymInt span_capacity) -> (Tensor input_ids, Tensor labels, Tensor target_positions, Tensor target_ids, "
    "Tensor target_spans, Tensor target_offsets, Tensor sbo_ids, Tensor span_left, Tensor span_right, "
    "Tensor dropped_spans)",
    _span_mask,
    _span_mask_fake,
)


def check_cu_seqlens(cu_seqlens: Tensor, total: int) -> None:
    """Raises ValueError unless [N + 1] offsets run from 0 to `total` without falling; CPU tensors only."""
    if cu_seqlens.device.type != "cpu":
        return
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != total:
        ends = int(cu_seqlens[0]), int(cu_seqlens[-1])
        raise ValueError(f"cu_seqlens must start at 0 and end at {total}; got {ends[0]} and {ends[1]}")
    falls = (cu_seqlens[1:] < cu_seqlens[:-1]).nonzero()
    if falls.numel():
        at = int(falls[0])
        pair = int(cu_seqlens[at]), int(cu_seqlens[at + 1])
        raise ValueError(f"cu_seqlens falls from {pair[0]} to {pair[1]} at entry {at + 1}")


# gather_boundaries ------------------------------------------------------------------------------------------


def gather_boundaries(hidden: Tensor, span_left: Tensor, span_right: Tensor) -> Tensor:
    """`reference.gather_boundaries`: [T, H] to [S, 2H]. Spans must come as `MaskedBatch` orders them."""
    if not _backend.use_native(hidden.device):
        return reference.gather_boundaries(hidden, span_left, span_right)
    return torch.ops.spanbert_ext.gather_boundaries(hidden, span_left, span_right)


def _check_spans(span_left, span_right, tokens: int, like: Tensor) -> None:
    _check("span_left", span_left, (None,), torch.int64, like)
    _check("span_right", span_right, (span_left.numel(),), torch.int64, like)
    _check_range("span_left", span_left, tokens, span_right > span_left)
    _check_range("span_right", span_right, tokens, span_right > span_left)


def _gather_boundaries(hidden, span_left, span_right):
    _check_rows("hidden", hidden)
    _check_spans(span_left, span_right, hidden.shape[0], hidden)
    spans, (tokens, size) = span_left.numel(), hidden.shape
    out = hidden.new_empty((spans, 2 * size))
    _C.gather_boundaries(
        _place(hidden), _DTYPES[hidden.dtype], hidden.data_ptr(), span_left.data_ptr(),
        span_right.data_ptr(), out.data_ptr(), tokens, spans, size,
    )  # fmt: skip
    return out


def _gather_boundaries_backward(grad, span_left, span_right, tokens):
    _check_rows("grad", grad)
    _check_spans(span_left, span_right, tokens, grad)
    spans, size = grad.shape[0], grad.shape[1] // 2
    out = grad.new_empty((tokens, size))
    _C.gather_boundaries_backward(
        _place(grad), _DTYPES[grad.dtype], grad.data_ptr(), span_left.data_ptr(),
        span_right.data_ptr(), out.data_ptr(), tokens, spans, size,
    )  # fmt: skip
    return out


def _gather_boundaries_setup(ctx, inputs, output):
    ctx.tokens = inputs[0].shape[0]
    ctx.save_for_backward(*inputs[1:])


_define(
    "gather_boundaries_backward(Tensor grad, Tensor span_left, Tensor span_right, SymInt tokens) -> Tensor",
    _gather_boundaries_backward,
    lambda grad, left, right, tokens: grad.new_empty((tokens, grad.shape[1] // 2)),
)
_define(
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

# gelu_layer_norm --------------------------------------------------------------------------------------------


def gelu_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`reference.gelu_layer_norm`: LN(GELU(x)), [R, H] to [R, H]."""
    if not _backend.use_native(x.device):
        return reference.gelu_layer_norm(x, weight, bias, eps)
    return torch.ops.spanbert_ext.gelu_layer_norm(x, weight, bias, eps)[0]


def _statistics(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(rows.dtype)
    return rows.new_empty((count,), dtype=dtype), rows.new_empty((count,), dtype=dtype)


def _gelu_layer_norm(x, weight, bias, eps):
    _check_rows("x", x)
    rows, size = x.shape
    _check("weight", weight, (size,), working_dtype(x.dtype), x)
    _check("bias", bias, (size,), working_dtype(x.dtype), x)
    out, (mean, rstd) = torch.empty_like(x), _statistics(x, rows)
    _C.gelu_layer_norm(
        _place(x), _DTYPES[x.dtype], x.data_ptr(), weight.data_ptr(), bias.data_ptr(), eps,
        out.data_ptr(), mean.data_ptr(), rstd.data_ptr(), rows, size,
    )  # fmt: skip
    return out, mean, rstd


def _gelu_layer_norm_backward(grad, x, weight, mean, rstd):
    _check_rows("grad", grad)
    rows, size = x.shape
    _check("grad", grad, (rows, size), x.dtype, x)
    chunks = -(-rows // _C.rows_per_chunk)
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    partials = weight.new_empty((chunks, 2, size))
    _C.gelu_layer_norm_backward(
        _place(x), _DTYPES[x.dtype], grad.data_ptr(), x.data_ptr(), weight.data_ptr(),
        mean.data_ptr(), rstd.data_ptr(), grad_x.data_ptr(), grad_weight.data_ptr(),
        grad_bias.data_ptr(), partials.data_ptr(), rows, size,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _gelu_layer_norm_setup(ctx, inputs, output):
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


_define(
    "gelu_layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd) "
    "-> (Tensor, Tensor, Tensor)",
    _gelu_layer_norm_backward,
    lambda grad, x, weight, mean, rstd: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
)
_define(
    "gelu_layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor out, Tensor mean, Tensor rstd)",
    _gelu_layer_norm,
    lambda x, weight, bias, eps: (torch.empty_like(x), *_statistics(x, x.shape[0])),
    _gelu_layer_norm_setup,
    lambda ctx, grad, *_: (
        *torch.ops.spanbert_ext.gelu_layer_norm_backward(grad.contiguous(), *ctx.saved_tensors),
        None,
    ),
)

# sbo_first_layer --------------------------------------------------------------------------------------------


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
    if not _backend.use_native(span_rows.device):
        return reference.sbo_first_layer(*arguments)
    return torch.ops.spanbert_ext.sbo_first_layer(*arguments)[0]


def _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight) -> None:
    _check_rows("span_rows", span_rows)
    size, targets = span_rows.shape[1], target_spans.shape[0]
    _check("position_rows", position_rows, (None, size), span_rows.dtype, span_rows)
    for name, index in (
        ("target_spans", target_spans),
        ("target_offsets", target_offsets),
        ("sbo_ids", sbo_ids),
    ):
        _check(name, index, (targets,), torch.int64, span_rows)
    _check("weight", weight, (size,), working_dtype(span_rows.dtype), span_rows)
    used = sbo_ids != IGNORE
    _check_range("target_spans", target_spans, span_rows.shape[0], used)
    _check_range("target_offsets", target_offsets, position_rows.shape[0], used)


def _sbo_first_layer(
    span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias, eps
):
    _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight)
    _check("bias", bias, tuple(weight.shape), weight.dtype, span_rows)
    (spans, size), targets = span_rows.shape, target_spans.shape[0]
    out, (mean, rstd) = span_rows.new_empty((targets, size)), _statistics(span_rows, targets)
    inputs = (span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, bias)
    _C.sbo_first_layer(
        _place(span_rows), _DTYPES[span_rows.dtype], *(t.data_ptr() for t in inputs), eps,
        out.data_ptr(), mean.data_ptr(), rstd.data_ptr(), targets, spans, position_rows.shape[0], size,
    )  # fmt: skip
    return out, mean, rstd


def _sbo_first_layer_backward(
    grad, span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, mean, rstd
):
    _check_sbo(span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight)
    (spans, size), targets, positions = span_rows.shape, target_spans.shape[0], position_rows.shape[0]
    _check("grad", grad, (targets, size), span_rows.dtype, span_rows)
    grads = (
        torch.empty_like(span_rows),
        torch.empty_like(position_rows),
        torch.empty_like(weight),
        torch.empty_like(weight),
    )
    chunks = -(-spans // _C.spans_per_chunk)
    partials = weight.new_empty((chunks, 2 + positions, size))
    first_targets = target_spans.new_empty((spans,))
    inputs = (grad, span_rows, position_rows, target_spans, target_offsets, sbo_ids, weight, mean, rstd)
    _C.sbo_first_layer_backward(
        _place(span_rows), _DTYPES[span_rows.dtype], *(t.data_ptr() for t in (*inputs, *grads)),
        partials.data_ptr(), first_targets.data_ptr(), targets, spans, positions, size,
    )  # fmt: skip
    return grads


def _sbo_first_layer_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _sbo_first_layer_gradients(ctx, grad, *_):
    spans, positions, weight, bias = torch.ops.spanbert_ext.sbo_first_layer_backward(
        grad.contiguous(), *ctx.saved_tensors
    )
    return spans, positions, None, None, None, weight, bias, None


_define(
    "sbo_first_layer_backward(Tensor grad, Tensor span_rows, Tensor position_rows, Tensor target_spans, "
    "Tensor target_offsets, Tensor sbo_ids, Tensor weight, Tensor mean, Tensor rstd) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _sbo_first_layer_backward,
    lambda grad, spans, positions, s, o, i, weight, mean, rstd: tuple(
        torch.empty_like(t) for t in (spans, positions, weight, weight)
    ),
)
_define(
    "sbo_first_layer(Tensor span_rows, Tensor position_rows, Tensor target_spans, Tensor target_offsets, "
    "Tensor sbo_ids, Tensor weight, Tensor bias, float eps) -> (Tensor out, Tensor mean, Tensor rstd)",
    _sbo_first_layer,
    lambda rows, p, spans, *_: (
        rows.new_empty((spans.shape[0], rows.shape[1])),
        *_statistics(rows, spans.shape[0]),
    ),
    _sbo_first_layer_setup,
    _sbo_first_layer_gradients,
)

# cross_entropy_rows: the autograd rule is that of cross_entropy.LinearCrossEntropy, which owns the products ----


def cross_entropy_rows_(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    head: Tensor | None,
    scale: Tensor | None,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """Losses [R] of logits [R, >= V] and, with `scale` [R], their gradient in place of the logits.

    The gradient is that of sum(scale * loss); columns from `vocab_size` on are padding and become 0. Returns
    the losses and the gradient of `bias` [heads, V] ([0] without scale or bias). Native back ends only.
    """
    return torch.ops.spanbert_ext.cross_entropy_rows_(logits, targets, bias, head, scale, vocab_size)


def _cross_entropy_rows(logits, targets, bias, head, scale, vocab_size):
    _check_rows("logits", logits)
    (rows, stride), dtype = logits.shape, working_dtype(logits.dtype)
    if not 1 <= vocab_size <= stride:
        raise ValueError(f"vocab_size must lie in [1, {stride}]; got {vocab_size}")
    _check("targets", targets, (rows,), torch.int64, logits)
    _check_range("targets", targets, vocab_size, targets != IGNORE)
    heads = 1
    if bias is not None:
        _check("bias", bias, (None, vocab_size), dtype, logits)
        heads = bias.shape[0]
    if head is not None:
        _check("head", head, (rows,), torch.int64, logits)
        _check_range("head", head, heads)
    if scale is not None:
        _check("scale", scale, (rows,), dtype, logits)
    losses, grad_bias = _cross_entropy_outputs(logits, targets, bias, head, scale, vocab_size)
    chunks = -(-rows // _C.column_rows_per_chunk)
    partials = losses.new_empty((chunks, *grad_bias.shape) if logits.is_cuda else (0,))
    optional = [t.data_ptr() if t is not None else 0 for t in (bias, head, scale)]
    _C.cross_entropy_rows(
        _place(logits), _DTYPES[logits.dtype], logits.data_ptr(), targets.data_ptr(), *optional,
        losses.data_ptr(), grad_bias.data_ptr() if grad_bias.numel() else 0, partials.data_ptr(),
        rows, vocab_size, stride, heads,
    )  # fmt: skip
    return losses, grad_bias


def _cross_entropy_outputs(logits, targets, bias, head, scale, vocab_size):
    dtype = working_dtype(logits.dtype)
    shape = (0,) if bias is None or scale is None else bias.shape
    return logits.new_empty((logits.shape[0],), dtype=dtype), logits.new_empty(shape, dtype=dtype)


_define(
    "cross_entropy_rows_(Tensor(a!) logits, Tensor targets, Tensor? bias, Tensor? head, Tensor? scale, "
    "SymInt vocab_size) -> (Tensor losses, Tensor grad_bias)",
    _cross_entropy_rows,
    _cross_entropy_outputs,
)
