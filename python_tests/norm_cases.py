"""Dropout, addition and LayerNorm in plain torch, with the masks of the operation."""

import torch
import torch.nn.functional as F
from strategies import randn

from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout, dropout_add_layer_norm
from spanbert_ext.ops.reference import dropout as reference

EPS = 1e-12


SEED = torch.tensor([-0x123456789ABCDEF])


FORMS = [dropout_add_layer_norm, add_layer_norm_dropout]


# (x, stream): one dtype, or a 16-bit branch of an fp32 stream, as autocast makes it.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]


def torch_formula(form, p, site, factors=None):
    """The same mask (its factors if they are at hand), then torch's operations in the dtype of what
    they are given."""

    def formula(x, residual, weight, bias):
        threshold = reference.mask_threshold(p)
        k = factors
        if k is None:
            k = reference.dropout_factors(*x.shape, threshold, SEED, site, torch.float64)
        first, last = (k, 1) if form is dropout_add_layer_norm else (1, k)
        stream = residual.dtype
        sums = (x * first).to(x.dtype) + residual
        return (F.layer_norm(sums, x.shape[1:], weight, bias, EPS) * last).to(stream)

    return formula


def gradients(function, tensors, grad):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves, grad.to(value.dtype))


def inputs(rows, size, branch, stream, seed=0):
    x, residual = (randn(rows, size, seed=seed + s) for s in (1, 2))
    weight, bias = (randn(size, seed=seed + s) for s in (3, 4))
    return x.to(branch), residual.to(stream), (weight + 1).to(stream), bias.to(stream)
