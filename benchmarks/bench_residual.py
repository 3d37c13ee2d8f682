"""How long does the encoder's residual connection take, forward and backward?

`residual`: LN(dropout(x) + residual) with all four gradients, against torch's three functions. The
results are compared without dropout; with it, every variant draws a mask of its own, and equality
under one mask is the business of the tests.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import floors, workloads
from benchmarks.harness import DTYPES, Case, Variant, sizes
from spanbert_ext.ops.dropout_norm import dropout_add_layer_norm

EPS = 1e-12


def residual_case(rows: int, hidden: int, p: float, dtype: str, device: str) -> Case:
    """One residual connection of `rows` tokens, all in `dtype` but our fp32 parameters."""
    kind = DTYPES[dtype]
    x, residual, grad = (
        workloads.random_like_hidden(rows, hidden, dtype=kind, device=device, seed=seed)
        for seed in (4, 5, 6)
    )
    norm = torch.nn.LayerNorm(hidden, eps=EPS).to(device)
    weight, bias = (t.detach().to(kind).requires_grad_() for t in (norm.weight, norm.bias))
    x.requires_grad_()
    residual.requires_grad_()
    seed = torch.tensor([1], device=device)

    def ours():
        leaves = (x, residual, norm.weight, norm.bias)
        out = dropout_add_layer_norm(*leaves, EPS, p, seed, 1)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    def eager(x=x, residual=residual, weight=weight, bias=bias, grad=grad):
        out = F.layer_norm(F.dropout(x, p) + residual, (hidden,), weight, bias, EPS)
        return out.detach(), *torch.autograd.grad(out, (x, residual, weight, bias), grad)

    wide = [t.detach().float().requires_grad_() for t in (x, residual, weight, bias)]
    # x and residual in, y out; gradient, x and residual in, one gradient or two out.
    moved = (8 if p else 7) * rows * hidden * x.element_size()
    return Case(
        "residual",
        {"rows": rows, "hidden": hidden, "dropout": str(p)},
        rows,
        "rows",
        dtype,
        [Variant("ours", ours), Variant("torch_eager", eager)],
        None if p else eager(*wide, grad.float()),
        floors.floor_us(device, dtype, moved=moved),
        device,
        budget_s=1.0,
        graphs=True,
    )


@sizes(full=(256, 1024, 4096, 16384), quick=(16, 64))
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def bench_residual(measure, device, quick, size, p, dtype):
    measure(residual_case(size, 64 if quick else 768, p, dtype, device), "residual")
