"""Attention of 16-bit streams on the CPU, where sequences of like length are padded together."""

import pytest
import torch
import torch.nn.functional as F

from spanbert_ext.model import chunked_attention
from spanbert_ext.model.chunked_attention import without_gradient
from spanbert_ext.model.cpu_attention import _groups, attention_in_runs
from spanbert_ext.ops import backend

LENGTHS = [3, 0, 40, 33, 1, 70, 33]


def stream(dtype, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    values = [torch.randn(total, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    return [v.to(dtype).requires_grad_() for v in values], borders


def one_by_one(q, k, v, cu_q, cu_k):
    """The definition, in double."""
    outputs = []
    for i in range(len(cu_q) - 1):
        a, b = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[a], k[b]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[b]))
    return torch.cat(outputs)


@pytest.mark.parametrize("chosen", [None, [0, 5, 44, 60, 150, 179]])
def test_padded_sequences_equal_the_definition(chosen):
    """As exact as bf16 is, in values and gradients, also for chosen queries."""
    (q, k, v), cu = stream(torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    cu_q = cu if chosen is None else torch.searchsorted(torch.tensor(chosen), cu)
    own, theirs = (q, wide[0]) if chosen is None else (q[chosen], wide[0][chosen])
    found = attention_in_runs(own, k, v, cu_q, cu, 0.0)
    expected = one_by_one(theirs, *wide[1:], cu_q, cu)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (found * weights.bfloat16()).sum().backward()
    (expected * weights.bfloat16()).sum().backward()
    for x, y in zip((q, k, v), wide, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=0.05)


def test_a_longer_neighbour_reaches_nobody():
    """Values behind a sequence's end, however large, change nothing."""
    (q, k, v), cu = stream(torch.bfloat16)
    with torch.no_grad():
        before = attention_in_runs(q, k, v, cu, cu, 0.0)
        k[cu[5] : cu[6]], v[cu[5] : cu[6]] = 1e3, 1e3
        after = attention_in_runs(q, k, v, cu, cu, 0.0)
    kept = torch.ones(len(q), dtype=torch.bool)
    kept[cu[5] : cu[6]] = False
    assert torch.equal(before[kept], after[kept])


def test_groups_bound_the_padding():
    lengths = [512, *[10] * 40, 0, 300, 290]
    groups = list(_groups(lengths, lengths))
    assert sorted(i for group in groups for i in group) == [
        i for i, length in enumerate(lengths) if length
    ]
    for group in groups[:-1]:
        width = -(-max(lengths[i] for i in group) // 32) * 32
        assert len(group) == 1 or len(group) * width <= 1.5 * sum(lengths[i] for i in group)


def test_dropout_keeps_the_mean():
    (q, k, v), cu = stream(torch.bfloat16, [64, 60])
    with torch.no_grad():
        ones = torch.ones_like(v)
        torch.manual_seed(0)
        drawn = attention_in_runs(q, k, ones, cu, cu, 0.25).float()
    assert (drawn - 1).abs().max() > 0.05
    # 248 means of about 60 weights: the standard error of their mean is 0.006.
    assert abs(drawn.mean() - 1) < 0.04


@pytest.mark.parametrize("chosen", [None, [0, 5, 44, 60, 150, 179]])
def test_without_a_gradient_our_softmax_gives_the_same(force_backend, monkeypatch, chosen):
    """As exact as bf16 is, whatever shares a chunk; torch's own where scores are too many."""
    force_backend("native")
    monkeypatch.setattr(backend, "product_dtype", lambda device, dtype: dtype)
    (q, k, v), cu = stream(torch.bfloat16)
    with torch.no_grad():
        cu_q = cu if chosen is None else torch.searchsorted(torch.tensor(chosen), cu)
        own = q if chosen is None else q[chosen]
        expected = one_by_one(own.double(), k.double(), v.double(), cu_q, cu)
        found = without_gradient(own, k, v, cu_q, cu)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
        assert torch.equal(attention_in_runs(own, k, v, cu_q, cu, 0.0), found)
        monkeypatch.setattr(chunked_attention, "_CHUNK_SCORES_WITHOUT_GRADIENT", 1)
        assert torch.equal(without_gradient(own, k, v, cu_q, cu), found)
        monkeypatch.setattr(chunked_attention, "_MOST_SCORES", 40 * 40)
        assert without_gradient(own, k, v, cu_q, cu) is None
        assert without_gradient(*(x.float() for x in (own, k, v)), cu_q, cu) is None
    # Where a gradient is wanted there is one.
    assert attention_in_runs(q, k, v, cu, cu, 0.0).requires_grad
