"""The vocabulary loss of both heads without the logits in memory.

Rows are multiplied with the tied embedding a chunk at a time; a chunk's logits are turned into
losses and, in place, into the gradient, which is multiplied on at once. So the memory is one chunk,
each logit is computed once, and the backward pass only scales what the forward pass left. Softmax,
losses and bias gradients are fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spanbert_ext import _backend, _ops, reference
from spanbert_ext._boundary import readable, working_dtype
from spanbert_ext.reference import IGNORE

# Elements of a chunk of logits. Products over fewer rows than about a thousand starve; 2**26 is
# 2300 rows of a 29k vocabulary, 128 MiB in bf16. On a GPU the chunk must feed every multiprocessor
# (0.5 G elements, 1 GiB).
_CHUNK_ELEMENTS = {"cpu": 1 << 26, "cuda": 1 << 29}


def _chunk_rows(device_type: str, vocab_size: int) -> int:
    return max(1, _CHUNK_ELEMENTS.get(device_type, 1 << 26) // vocab_size)


def _padded_vocabulary(weight: torch.Tensor) -> torch.Tensor:
    """[V, H] with V raised to a multiple of 128 on CUDA, where products over other widths take a
    slower path."""
    padding = -weight.shape[0] % 128
    if weight.device.type != "cuda" or padding == 0:
        return weight.contiguous()
    return F.pad(weight, (0, 0, 0, padding))


class LinearCrossEntropy(torch.autograd.Function):
    """Per-row losses [N] and the total sum(scale * loss); the gradient flows from the total.

    With `scale` None the losses themselves are differentiable: their weights are known only in the
    backward pass, which then computes the logits a second time.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, targets, head, scale, need):
        """rows [N, H] and weight [V, H] of one dtype, bias [heads, V] and scale [N] of the working
        dtype.

        `need` is whether (rows, weight, bias) take a gradient.
        """
        ctx.need, ctx.scaled, ctx.vocab_size = need, scale is not None, weight.shape[0]
        if scale is None:
            losses, _ = _run(rows, weight, bias, targets, head, None, need)
            ctx.save_for_backward(rows, weight, bias, targets, head)
            return losses, losses.new_zeros(())
        losses, gradients = _run(rows, weight, bias, targets, head, scale, need)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses, (losses * scale).sum()

    @staticmethod
    def backward(ctx, grad_losses, grad_total):
        if ctx.scaled:
            gradients = [_times(g, grad_total) for g in ctx.saved_tensors]
        else:
            rows, weight, bias, targets, head = ctx.saved_tensors
            _, gradients = _run(
                rows, weight, bias, targets, head, grad_losses.contiguous(), ctx.need
            )
        return *gradients, None, None, None, None


def _times(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    # On the CPU the factor is free to read, and 1 is what training passes.
    if gradient is None or (readable(factor) and float(factor) == 1.0):
        return gradient
    return gradient * factor.to(gradient.dtype)


def _run(rows, weight, bias, targets, head, scale, need):
    """Losses and, with `scale`, the gradients of (rows, weight, bias) that are needed."""
    vocab_size = weight.shape[0]
    padded = _padded_vocabulary(weight)
    step = _chunk_rows(rows.device.type, padded.shape[0])
    count = rows.shape[0]
    any_need = scale is not None and any(need)
    grad_rows = torch.empty_like(rows) if any_need and need[0] else None
    # Sums over several chunks are kept in the working dtype: bf16 would lose the small ones.
    wide = working_dtype(rows.dtype) if count > step else rows.dtype
    grad_weight = grad_bias = None
    losses = []
    for first in range(0, max(count, 1), step):
        part = slice(first, first + step)
        chunk = rows[part]
        logits = chunk @ padded.t()
        chunk_losses, chunk_bias = _ops.cross_entropy_rows_(
            logits,
            targets[part],
            bias,
            head[part] if head is not None else None,
            scale[part] if any_need else None,
            vocab_size,
        )
        losses.append(chunk_losses)
        if grad_rows is not None:
            torch.mm(logits, padded, out=grad_rows[part])
        if any_need and need[1]:
            share = (logits.t() @ chunk).to(wide)
            grad_weight = share if grad_weight is None else grad_weight.add_(share)
        if any_need and need[2] and bias is not None:
            grad_bias = chunk_bias if grad_bias is None else grad_bias.add_(chunk_bias)
        del logits
    if grad_weight is not None:
        grad_weight = grad_weight[:vocab_size].to(weight.dtype)
    return torch.cat(losses), (grad_rows, grad_weight, grad_bias)


def _losses(rows, weight, targets, bias, head, scale):
    """(losses [N], total) through the native function or the reference; both take autocast into
    account."""
    _check_arguments(rows, weight, targets, bias, head)
    if torch.is_autocast_enabled(rows.device.type):
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))
    weight = weight.to(rows.dtype)
    wide = working_dtype(rows.dtype)
    if bias is not None:
        bias = bias.reshape(-1, weight.shape[0]).to(wide)
    if not _backend.use_native(rows.device):
        losses = reference.linear_cross_entropy_rows(rows, weight, targets, bias, head)
        return losses, (losses * scale).sum() if scale is not None else None
    used = None
    if readable(rows):
        rows, targets, head, scale, used = _used_rows(rows, targets, head, scale)
    need = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, weight, bias)
    )
    head = head.contiguous() if head is not None else None
    scale = scale.contiguous() if scale is not None else None
    with torch.autocast(rows.device.type, enabled=False):
        losses, total = LinearCrossEntropy.apply(
            rows.contiguous(), weight, bias, targets.contiguous(), head, scale, need
        )
    if used is not None:
        losses = losses.new_zeros(used.shape[0]).masked_scatter(used, losses)
    return losses, total


def _used_rows(rows, targets, head, scale):
    """On the CPU ignored rows are left out of the products; `used` is None when there is none."""
    used = targets != IGNORE
    if bool(used.all()):
        return rows, targets, head, scale, None
    index = used.nonzero().squeeze(1)
    head = head[index] if head is not None else None
    scale = scale[index] if scale is not None else None
    return rows[index], targets[index], head, scale, used


def _check_arguments(rows, weight, targets, bias, head) -> None:
    if rows.dim() != 2:
        raise ValueError(f"rows must be [N, H]; got shape {tuple(rows.shape)}")
    count, size = rows.shape
    if weight.dim() != 2 or weight.shape[1] != size:
        raise ValueError(f"weight must be [V, {size}]; got shape {tuple(weight.shape)}")
    if tuple(targets.shape) != (count,):
        raise ValueError(f"targets must have shape ({count},); got {tuple(targets.shape)}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64; got {targets.dtype}")
    if bias is not None and (bias.dim() not in (1, 2) or bias.shape[-1] != weight.shape[0]):
        raise ValueError(
            f"bias must be [V] or [heads, V] with V = {weight.shape[0]}; got {tuple(bias.shape)}"
        )
    if head is not None and (bias is None or bias.dim() != 2):
        raise ValueError("head needs bias [heads, V], which says how many heads there are")
    if head is None and bias is not None and bias.dim() == 2 and bias.shape[0] > 1:
        raise ValueError(f"bias has {bias.shape[0]} heads; head [N] must say which row uses which")
    for name, tensor in (("weight", weight), ("targets", targets), ("bias", bias), ("head", head)):
        if tensor is not None and tensor.device != rows.device:
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
    if ignore_index != IGNORE:
        targets = torch.where(targets == ignore_index, IGNORE, targets)
    if reduction == "none":
        return _losses(rows, weight, targets, bias, head, None)[0]
    scale = (targets != IGNORE).to(working_dtype(rows.dtype))
    if reduction == "mean":
        scale = scale / scale.sum().clamp(min=1)
    return _losses(rows, weight, targets, bias, head, scale)[1]


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
        bias: [2, V], of the MLM and of the SBO head.
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
    dtype = working_dtype(mlm_rows.dtype)
    if sbo_rows is None:
        sbo_rows, sbo_targets = mlm_rows[:0], mlm_targets[:0]
    mlm_scale = _share(mlm_targets, num_mlm_targets, dtype)
    divisor = num_sbo_targets
    if loss == "paper":
        divisor = num_mlm_targets if num_mlm_targets is not None else (mlm_targets != IGNORE).sum()
    sbo_scale = _share(sbo_targets, divisor, dtype)
    targets = torch.cat([mlm_targets, sbo_targets])
    head = torch.zeros_like(targets)
    head[mlm_targets.shape[0] :] = 1
    losses, total = _losses(
        torch.cat([mlm_rows, sbo_rows]),
        weight,
        targets,
        bias,
        head,
        torch.cat([mlm_scale, sbo_scale * sbo_weight]),
    )
    split = mlm_targets.shape[0]
    losses = losses.detach()
    return total, (losses[:split] * mlm_scale).sum(), (losses[split:] * sbo_scale).sum()


def _share(targets: torch.Tensor, count, dtype: torch.dtype) -> torch.Tensor:
    """[N] weight of each row in its head's mean: 1 / count where it has a target, else 0."""
    used = (targets != IGNORE).to(dtype)
    divisor = (
        used.sum() if count is None else torch.as_tensor(count, dtype=dtype, device=used.device)
    )
    return used / divisor.clamp(min=1)
