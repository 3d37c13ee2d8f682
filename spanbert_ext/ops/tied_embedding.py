"""The word embedding as both lookup table and output layer, with one gradient buffer.

Used as two tensors, a tied weight gets two dense [V, H] gradients, which autograd allocates, zeros
and adds: for a BERT-base on a CPU a tenth of a step. Here the lookup's rows are added to the output
layer's gradient where it lies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from spanbert_ext.ops import backend


class TiedLookup(torch.autograd.Function):
    """(weight[ids], weight) for ids [T] and weight [V, H]."""

    @staticmethod
    def forward(ctx, weight, ids):
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        ctx.set_materialize_grads(False)
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows, grad_weight):
        (ids,) = ctx.saved_tensors
        if grad_rows is None:
            return grad_weight, None
        if grad_weight is None:
            return torch.ops.aten.embedding_dense_backward(
                grad_rows, ids, ctx.shape[0], -1, False
            ), None
        if torch.compiler.is_compiling():
            return grad_weight.index_put((ids,), grad_rows, accumulate=True), None
        if backend.cuda_path(grad_rows.device):  # sorts the ids: equal ones are added in order
            return grad_weight.index_put_((ids,), grad_rows, accumulate=True), None
        return grad_weight.index_add_(0, ids.to(torch.int64), grad_rows), None


def tied_lookup(weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a weight and the weight itself for the output layer.

    The second result must have one consumer that makes a gradient of its own, such as a matrix
    product or `two_head_cross_entropy`: what arrives is overwritten.

    Args:
        weight: [V, H].
        ids: [T] int32 or int64 in [0, V).

    Returns:
        ([T, H], [V, H]).
    """
    return TiedLookup.apply(weight, ids)
