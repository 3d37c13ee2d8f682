"""The vocabulary loss of both heads without the logits in memory.

Rows are multiplied with the tied embedding a chunk at a time; a chunk's logits are turned into
losses and, in place, into the gradient, which is multiplied on at once. So the memory is one chunk,
each logit is computed once, and the backward pass only scales what the forward pass left. Softmax,
losses and bias gradients are fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from spanbert_ext.ops import backend
from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.ops.registration import check_float, check_range, readable, working_dtype

# Vocabulary rows that are widened at a time where 16-bit weights are multiplied in fp32: the copy
# stays in the cache.
_WIDE_BLOCK = 4096
# Bytes of a chunk of logits. Products over fewer rows than about a thousand starve; 2**27 is 2300
# rows of a 29k vocabulary in bf16. On a GPU a chunk must feed every multiprocessor.
_CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}


def _chunk_rows(logits_row_bytes: int, device: torch.device) -> int:
    kind = "cuda" if backend.cuda_path(device) else "cpu"
    return max(1, _CHUNK_BYTES[kind] // logits_row_bytes)


def _padded_vocabulary(weight: torch.Tensor) -> torch.Tensor:
    """[V, H] with V raised to a multiple of 128 on CUDA, where products over other widths take a
    slower path."""
    padding = -weight.shape[0] % 128
    if not backend.cuda_path(weight.device) or padding == 0:
        return weight.contiguous()
    return F.pad(weight, (0, 0, 0, padding))


class ScaledLoss(torch.autograd.Function):
    """sum(scale * loss), whose gradient is finished in the forward pass, and the losses [N].

    The first backward pass gives the gradients away: holding on to them would keep autograd from
    adding the embedding's share to the weight's in place. Another pass computes them again.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, targets, head, scale, need):
        """rows [N, H] in the dtype of the products, weight [V, H] in that or a narrower one, bias
        [heads, V] and scale [N] of the working dtype; `need` is whether (rows, weight, bias) take a
        gradient."""
        # fp16 holds no gradient of 1 / N times a probability, so its unit is the largest scale.
        ctx.unit = scale.amax() if rows.dtype == torch.float16 and len(scale) else None
        relative = scale if ctx.unit is None else scale / ctx.unit.clamp(min=1e-30)
        losses, gradients = _run(rows, weight, bias, targets, head, relative, need)
        ctx.need, ctx.traced = need, torch.compiler.is_compiling()
        if ctx.traced:  # a compiled graph knows nothing of giving away
            ctx.save_for_backward(*gradients)
        else:
            ctx.gradients = gradients
            ctx.save_for_backward(rows, weight, bias, targets, head, relative)
        ctx.mark_non_differentiable(losses)
        return (losses * scale).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        factor = grad_total if ctx.unit is None else grad_total * ctx.unit
        if ctx.traced:
            gradients = ctx.saved_tensors
        elif ctx.gradients is not None:
            gradients, ctx.gradients = ctx.gradients, None
        else:
            _, gradients = _run(*ctx.saved_tensors, ctx.need)
        return *(_times(g, factor) for g in gradients), None, None, None, None


class RowLosses(torch.autograd.Function):
    """The losses [N] themselves; their weights come with the backward pass, which therefore
    computes the logits again."""

    @staticmethod
    def forward(ctx, rows, weight, bias, targets, head, need):
        """Arguments as in `ScaledLoss`."""
        ctx.need = need
        ctx.save_for_backward(rows, weight, bias, targets, head)
        return _run(rows, weight, bias, targets, head, None, need)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses):
        _, gradients = _run(*ctx.saved_tensors, grad_losses.contiguous(), ctx.need)
        return *gradients, None, None, None


def _times(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    # On the CPU the factor is free to read, and 1 is what training passes.
    if gradient is None or (readable(factor) and float(factor) == 1.0):
        return gradient
    # In the working dtype: a factor rounded to 16 bits would shift every gradient the same way.
    return (gradient.to(working_dtype(gradient.dtype)) * factor).to(gradient.dtype)


def _run(rows, weight, bias, targets, head, scale, need):
    """Losses and, with `scale`, the gradients of (rows, weight, bias) that are needed."""
    vocab_size = weight.shape[0]
    padded = _padded_vocabulary(weight)
    step = _chunk_rows(padded.shape[0] * rows.element_size(), rows.device)
    count = rows.shape[0]
    any_need = scale is not None and any(need)
    grad_rows = torch.empty_like(rows) if any_need and need[0] else None
    # Sums over several chunks are kept in the working dtype: bf16 would lose the small ones.
    sum_dtype = working_dtype(rows.dtype) if count > step else weight.dtype
    grad_weight = grad_bias = None
    losses = []
    for first in range(0, max(count, 1), step):
        part = slice(first, first + step)
        chunk = rows[part]
        logits = _logits(chunk, padded)
        chunk_losses, chunk_bias = cross_entropy_rows_(
            logits,
            targets[part],
            bias,
            head[part] if head is not None else None,
            scale[part] if any_need else None,
            vocab_size,
        )
        losses.append(chunk_losses)
        if grad_rows is not None:
            _rows_gradient(logits, padded, grad_rows[part])
        if any_need and need[1] and grad_weight is None:
            grad_weight = _weight_gradient(logits, chunk, sum_dtype)
        elif any_need and need[1] and sum_dtype == chunk.dtype:
            grad_weight.addmm_(logits.t(), chunk)  # no second [V, H]
        elif any_need and need[1]:
            grad_weight.add_(_weight_gradient(logits, chunk, sum_dtype))
        if any_need and need[2] and bias is not None:
            grad_bias = chunk_bias if grad_bias is None else grad_bias.add_(chunk_bias)
        del logits
    if grad_weight is not None:
        grad_weight = grad_weight[:vocab_size].to(weight.dtype)
    return torch.cat(losses), (grad_rows, grad_weight, grad_bias)


def _wide_blocks(vocab_size: int) -> list[slice]:
    return [slice(i, i + _WIDE_BLOCK) for i in range(0, vocab_size, _WIDE_BLOCK)]


def _logits(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows [R, H] @ weight [V, H] transposed, in the rows' dtype."""
    if weight.dtype == rows.dtype:
        return rows @ weight.t()
    logits = rows.new_empty((rows.shape[0], weight.shape[0]))
    for block in _wide_blocks(weight.shape[0]):
        torch.mm(rows, weight[block].to(rows.dtype).t(), out=logits[:, block])
    return logits


def _rows_gradient(logits: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out [R, H] = logits [R, V] @ weight [V, H]."""
    if weight.dtype == logits.dtype:
        torch.mm(logits, weight, out=out)
        return
    out.zero_()
    for block in _wide_blocks(weight.shape[0]):
        out.addmm_(logits[:, block], weight[block].to(logits.dtype))


def _weight_gradient(logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """logits [R, V] transposed @ rows [R, H], in `dtype`."""
    if rows.element_size() <= dtype.itemsize:
        return (logits.t() @ rows).to(dtype)
    gradient = rows.new_empty((logits.shape[1], rows.shape[1]), dtype=dtype)
    for block in _wide_blocks(logits.shape[1]):
        gradient[block] = logits[:, block].t() @ rows
    return gradient


def _losses(rows, weight, targets, bias, head, scale):
    """(total, losses [N]), total None without scale; takes autocast and the back end into account.

    Differentiable is the total, or the losses where there is no total.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device) and rows.dtype != torch.float64:
        rows = rows.to(torch.get_autocast_dtype(device))
    narrow = rows.dtype
    rows = rows.to(backend.product_dtype(rows.device, narrow))
    if weight.dtype != narrow:  # else it is widened block by block
        weight = weight.to(rows.dtype)
    if bias is not None:
        bias = bias.reshape(-1, weight.shape[0]).to(working_dtype(rows.dtype)).contiguous()
    if not backend.use_native(rows.device):
        weight = weight.to(rows.dtype)
        losses = reference.linear_cross_entropy_rows(rows, weight, targets, bias, head)
        return (losses * scale).sum() if scale is not None else None, losses
    used = None
    if readable(rows):
        rows, targets, head, scale, used = _used_rows(rows, targets, head, scale)
    need = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, weight, bias)
    )
    head = head.contiguous() if head is not None else None
    inputs = (rows.contiguous(), weight, bias, targets.contiguous(), head)
    with torch.autocast(device, enabled=False):
        if scale is None:
            total, losses = None, RowLosses.apply(*inputs, need)
        else:
            total, losses = ScaledLoss.apply(*inputs, scale.contiguous(), need)
    if used is not None:
        losses = losses.new_zeros(used.shape[0]).masked_scatter(used, losses)
    return total, losses


def _used_rows(rows, targets, head, scale):
    """On the CPU ignored rows are left out of the products; `used` is None when there is none."""
    used = targets != IGNORE
    if bool(used.all()):
        return rows, targets, head, scale, None
    index = used.nonzero().squeeze(1)
    head = head[index] if head is not None else None
    scale = scale[index] if scale is not None else None
    return rows[index], targets[index], head, scale, used


def _check_rows(rows, weight, targets, ignore_index, prefix="") -> None:
    """Rows [N, H], weight [V, H] and targets [N]; `prefix` says whose rows and targets they are."""
    check_float(f"{prefix}rows", rows, 2)
    check_float("weight", weight, 2)
    (count, size), (vocab_size, width) = rows.shape, weight.shape
    if vocab_size < 1:
        raise ValueError(f"weight must have at least one row; got shape {tuple(weight.shape)}")
    if width != size:
        raise ValueError(
            f"{prefix}rows have width {size}, so weight must be [V, {size}]; "
            f"got shape {tuple(weight.shape)}"
        )
    if targets.dtype != torch.int64:
        raise TypeError(f"{prefix}targets must be int64; got {targets.dtype}")
    if tuple(targets.shape) != (count,):
        raise ValueError(f"{prefix}targets must have shape ({count},); got {tuple(targets.shape)}")
    for name, tensor in (("weight", weight), (f"{prefix}targets", targets)):
        _check_device(name, tensor, rows)
    check_range(
        f"{prefix}targets",
        targets,
        vocab_size,
        lambda: targets != ignore_index,
        kernel_asserts=True,
    )


def _check_bias(rows, weight, bias, head) -> None:
    count, vocab_size, heads = rows.shape[0], weight.shape[0], 1
    if bias is not None:
        if bias.dim() not in (1, 2) or bias.shape[-1] != vocab_size:
            expected = f"[V] or [heads, V] with V = {vocab_size}"
            raise ValueError(f"bias must be {expected}; got {tuple(bias.shape)}")
        _check_device("bias", bias, rows)
        heads = bias.shape[0] if bias.dim() == 2 else 1
    if head is None:
        if heads > 1:
            raise ValueError(f"bias has {heads} heads; head [N] must say which row uses which")
        return
    if bias is None or bias.dim() != 2:
        raise ValueError("head needs bias [heads, V], which says how many heads there are")
    if head.dtype != torch.int64:
        raise TypeError(f"head must be int64; got {head.dtype}")
    if tuple(head.shape) != (count,):
        raise ValueError(f"head must have shape ({count},); got {tuple(head.shape)}")
    _check_device("head", head, rows)
    check_range("head", head, heads, kernel_asserts=True)


def _check_device(name: str, tensor: torch.Tensor, rows: torch.Tensor) -> None:
    if tensor.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device}; got {tensor.device}")


def linear_cross_entropy(
    rows: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    head: torch.Tensor | None = None,
    ignore_index: int = IGNORE,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross entropy of softmax(rows @ weight.T + bias) without keeping the [N, V] logits.

    Args:
        rows: [N, H] fp32, bf16, fp16 or double.
        weight: [V, H], for example the tied word embedding; cast to the rows' dtype.
        targets: [N] int64, class of each row or `ignore_index`.
        bias: [V], or [heads, V] when every row names its head; used in fp32.
        head: [N] int64, which bias a row takes.
        ignore_index: rows with this target have loss 0 and no gradient.
        reduction: "mean" over the rows that count (0 if there is none), "sum", or "none" for [N].

    Returns:
        fp32 (double for double rows). Differentiable in rows, weight and bias.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none; got {reduction!r}")
    _check_rows(rows, weight, targets, ignore_index)
    _check_bias(rows, weight, bias, head)
    if ignore_index != IGNORE:
        # -100 is no class then: where the host reads no targets, the kernel shall refuse it.
        others = torch.where(targets == IGNORE, -1, targets)
        targets = torch.where(targets == ignore_index, IGNORE, others)
    if reduction == "none":
        return _losses(rows, weight, targets, bias, head, None)[1]
    scale = (targets != IGNORE).to(working_dtype(rows.dtype))
    if reduction == "mean":
        scale = scale / scale.sum().clamp(min=1)
    return _losses(rows, weight, targets, bias, head, scale)[0]


def two_head_cross_entropy(
    mlm_rows: torch.Tensor,
    sbo_rows: torch.Tensor | None,
    weight: torch.Tensor,
    mlm_targets: torch.Tensor,
    sbo_targets: torch.Tensor | None,
    bias: torch.Tensor,
    sbo_weight: float = 1.0,
    loss: str = "code",
    num_mlm_targets: torch.Tensor | int | None = None,
    num_sbo_targets: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pre-training loss: MLM and SBO rows through one pass over the vocabulary (paper eq. 2;
    SPEC 2.4).

    Args:
        mlm_rows, sbo_rows: [N1, H] and [N2, H]; sbo_rows None leaves the SBO out.
        weight: [V, H].  mlm_targets, sbo_targets: [N1] and [N2] int64, -100 ignored.
        bias: [2, V], of the MLM and of the SBO head; [1, V] without SBO rows.
        loss: "code" adds the means over each head's targets, mlm + sbo_weight * sbo (the published
            runs); "paper" adds the sums and divides by the number of MLM targets.
        num_mlm_targets, num_sbo_targets: divisors in place of the counts of this call, for
            accumulation.

    Returns:
        (loss, mlm_loss, sbo_loss), scalars. Only `loss` is differentiable; the two others are each
        head's own sum over the same divisors ("paper" divides both by the MLM count).
    """
    if loss not in ("code", "paper"):
        raise ValueError(f"loss must be code or paper; got {loss!r}")
    biases = (2,)
    if sbo_rows is None:
        biases, sbo_rows, sbo_targets = (1, 2), mlm_rows[:0], mlm_targets[:0]
    _check_heads(mlm_rows, sbo_rows, mlm_targets, sbo_targets, weight, bias, biases)
    dtype = working_dtype(mlm_rows.dtype)
    if num_mlm_targets is None:
        num_mlm_targets = (mlm_targets != IGNORE).sum()
    if loss == "paper":
        num_sbo_targets = num_mlm_targets
    elif num_sbo_targets is None:
        num_sbo_targets = (sbo_targets != IGNORE).sum()
    mlm_scale = _share(mlm_targets, num_mlm_targets, dtype)
    sbo_scale = _share(sbo_targets, num_sbo_targets, dtype)
    split = mlm_targets.shape[0]
    targets = torch.cat([mlm_targets, sbo_targets])
    head = (torch.arange(targets.shape[0], device=targets.device) >= split).to(torch.int64)
    scale = torch.cat([mlm_scale, sbo_scale * sbo_weight])
    total, losses = _losses(torch.cat([mlm_rows, sbo_rows]), weight, targets, bias, head, scale)
    losses = losses.detach()
    return total, (losses[:split] * mlm_scale).sum(), (losses[split:] * sbo_scale).sum()


def _check_heads(mlm_rows, sbo_rows, mlm_targets, sbo_targets, weight, bias, biases) -> None:
    for name, tensor in (("sbo_targets", sbo_targets), ("bias", bias)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    _check_rows(mlm_rows, weight, mlm_targets, IGNORE, "mlm_")
    _check_rows(sbo_rows, weight, sbo_targets, IGNORE, "sbo_")
    _check_device("sbo_rows", sbo_rows, mlm_rows)
    _check_device("bias", bias, mlm_rows)
    if bias.dim() != 2 or bias.shape[0] not in biases or bias.shape[1] != weight.shape[0]:
        raise ValueError(f"bias must be [2, {weight.shape[0]}]; got shape {tuple(bias.shape)}")


def _share(targets: torch.Tensor, count: torch.Tensor | int, dtype: torch.dtype) -> torch.Tensor:
    """[N] weight of each row in its head's mean: 1 / count where it has a target, else 0."""
    used = (targets != IGNORE).to(dtype)
    if isinstance(count, torch.Tensor):
        return used / count.to(dtype).clamp(min=1)
    return used / max(count, 1)
