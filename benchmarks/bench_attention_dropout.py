"""How long does the attention of one layer take on the CPU when its weights are dropped?

`attention_dropout`: forward and all three gradients of about 3200 tokens in sequences of one length
(the last ones a few tokens shorter), 12 heads. Peers: torch's attention on the same batches, which
has no fused kernel with dropout, and the six matrix products alone, which no arrangement around
torch's products can beat. The results are compared without dropout; with it, every variant draws a
mask of its own, and equality under one mask is the business of the tests.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import floors
from benchmarks.harness import DTYPES, Case, Variant, sizes
from spanbert_ext.model.chunked_attention import _CHUNK_SCORES, _MULTIPLES, _Plan, dropped_attention
from spanbert_ext.model.cpu_attention import attention_in_runs

HEADS = 12
TOKENS = 3200


def attention_case(
    length: int, width: int, p: float, dtype: str, threads: int | None = None, tokens: int = TOKENS
) -> Case:
    """One layer's attention in sequences of `length`, heads of `width`."""
    count = max(1, tokens // length)
    lengths = [length - (i % 4) * (length // 50) for i in range(count)]
    borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    draws = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(sum(lengths), HEADS, width, generator=draws).to(DTYPES[dtype]) for _ in range(4)
    )
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    seed = torch.tensor([1])

    def run(attention, leaves=leaves, grad=grad):
        out = attention(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    def ours(*leaves):
        return dropped_attention(*leaves, borders, borders, p, seed, 1)

    def torchs(*leaves):
        return attention_in_runs(*leaves, borders, borders, p)

    wide = tuple(x.detach().float().requires_grad_() for x in leaves)
    shapes = {"sequences": count, "length": length, "heads": HEADS, "width": width}
    variants = [Variant("ours", lambda: run(ours)), Variant("torch", lambda: run(torchs))]
    if p:  # without it results are compared, and these are none
        variants.append(Variant("products_alone", _products(lengths, width, DTYPES[dtype])))
    flops = 6 * 2.0 * HEADS * width * sum(n * n for n in lengths)
    return Case(
        "attention_dropout",
        {**shapes, "dropout": str(p)},
        length,
        "tokens of a sequence",
        dtype,
        variants,
        None if p else run(torchs, wide, grad.float()),
        floors.floor_us("cpu", dtype, flops=flops, threads=threads),
        threads=threads,
        budget_s=1.5,
    )


def _products(lengths: list[int], width: int, kind: torch.dtype):
    """Two products forward and four backward of every chunk as ours has them, into memory that is
    there."""
    plan = _Plan.of(tuple(lengths), tuple(lengths), HEADS, _MULTIPLES[kind.itemsize], _CHUNK_SCORES)
    chunks = [(len(queries.sizes) * HEADS, queries.length) for queries, _ in plan.chunks]
    rows = {shape: torch.randn(*shape, width).to(kind) for shape in chunks}
    scores = {shape: torch.rand(*shape, shape[1]).to(kind) for shape in chunks}
    to_rows, to_scores = (
        {shape: torch.empty_like(x) for shape, x in table.items()} for table in (rows, scores)
    )

    def run():
        for shape in chunks:
            # Scores and their gradient; context and queries' gradient; keys' and values'.
            for _ in range(2):
                torch.bmm(rows[shape], rows[shape].mT, out=to_scores[shape])
                torch.bmm(scores[shape], rows[shape], out=to_rows[shape])
                torch.bmm(scores[shape].mT, rows[shape], out=to_rows[shape])

    return run


@sizes(full=(64, 128, 200, 384, 512), quick=(40,))
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, None], ids=["one thread", "all threads"])
def bench_attention_dropout(measure, device, quick, size, p, width, dtype, threads):
    if device != "cpu":
        pytest.skip("this attention is the CPU's")
    tokens = 64 if quick else TOKENS
    measure(attention_case(size, width, p, dtype, threads, tokens), "attention_dropout")
