"""How long does the vocabulary loss take, forward and backward, and how much memory?

From rows [N, H] over a vocabulary of 28996 with a bias to the loss and the gradients of rows,
weight and bias; softmax in fp32. `eager_low_precision` does the softmax in the rows' dtype: its
error column says what that costs.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors, peers, workloads
from benchmarks.harness import DTYPES, Case, Variant, sizes
from spanbert_ext import linear_cross_entropy

TARGET_ROWS = 1024  # the size issue targets name; every peer runs there


def loss_case(
    rows: int,
    hidden: int,
    dtype: str,
    device: str,
    vocab_size: int = workloads.VOCAB,
    slow_peers: bool = False,
    compiled: bool = False,
) -> Case:
    """Our loss and its peers on N rows.

    Args:
        slow_peers: also those that take many times as long.
        compiled: also those behind torch.compile.
    """
    kind = DTYPES[dtype]
    x = workloads.random_like_hidden(rows, hidden, dtype=kind, device=device)
    weight = workloads.random_like_hidden(vocab_size, hidden, dtype=kind, device=device, seed=3)
    weight = weight * 0.02
    bias = workloads.random_like_hidden(vocab_size, dtype=torch.float32, device=device, seed=4)
    leaves = tuple(t.detach().requires_grad_() for t in (x, weight, bias * 0.1))
    draws = workloads.generator(5)
    targets = torch.randint(0, vocab_size, (rows,), generator=draws).to(device)

    def differentiate(loss, leaves=leaves):
        value = loss(*leaves, targets)
        return value.detach(), *torch.autograd.grad(value, leaves)

    def ours(rows, weight, bias, targets):
        return linear_cross_entropy(rows, weight, targets, bias)

    named = {"ours": ours, "eager": peers.eager_loss}
    if dtype != "fp32":
        named["eager_low_precision"] = peers.low_precision_loss
    if slow_peers:
        named["torch_chunked"] = peers.torch_chunked_loss()
        named["liger"] = peers.liger_loss()
    if compiled:
        named["compiled"] = torch.compile(peers.eager_loss, dynamic=False)
        named["compiled_chunked"] = peers.auto_chunked_loss()
    few = {"torch_chunked": 5}
    variants = [
        Variant(name, lambda loss=loss: differentiate(loss), samples=few.get(name))
        for name, loss in named.items()
        if loss is not None
    ]
    wide = tuple(t.detach().float().requires_grad_() for t in leaves)
    flops = floors.vocabulary_flops(rows, hidden, vocab_size)
    return Case(
        "cross_entropy",
        {"rows": rows, "hidden": hidden, "vocabulary": vocab_size},
        rows,
        "rows",
        dtype,
        variants,
        differentiate(peers.eager_loss, wide),
        floors.floor_us(device, dtype, flops=flops),
        device,
        budget_s=6.0,
        measure_memory=True,
    )


@sizes(full=(64, 256, 1024, 4096), quick=(16, 64))
@pytest.mark.parametrize("dtype", DTYPES)
def bench_cross_entropy(measure, device, quick, compiled, size, dtype):
    hidden, vocab_size = (64, 1000) if quick else (768, workloads.VOCAB)
    slow = quick or size == TARGET_ROWS
    compiled = compiled and device == "cuda" and size == TARGET_ROWS
    case = loss_case(size, hidden, dtype, device, vocab_size, slow, compiled)
    if size > TARGET_ROWS:
        case.min_samples = 3  # seconds a round
    measure(case, "cross_entropy")
