"""Packed attention: every path against the definition, and where sequences lie."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from spanbert_ext.model.attention import Packing, attention_path, pack_padded, packed_attention


@pytest.mark.parametrize("path", ["runs", "blocks", "blocks in rows"])
def test_a_document_never_attends_to_its_neighbour(path):
    torch.manual_seed(7)
    cu_seqlens = torch.tensor([0, 5, 8, 8, 14, 16])
    packing = Packing(cu_seqlens, 8, 8 if path == "blocks in rows" else None)
    q, k, v = (torch.randn(16, 2, 8) for _ in range(3))
    before = packed_attention(q, k, v, cu_seqlens, packing, path=path.split()[0])
    for x in (q, k, v):
        x[8:14] += 100.0
    after = packed_attention(q, k, v, cu_seqlens, packing, path=path.split()[0])
    assert torch.equal(before[:8], after[:8]) and torch.equal(before[14:], after[14:])
    assert not torch.allclose(before[8:14], after[8:14])


def dense_attention(q, k, v, cu_seqlens):
    """Softmax written out, one sequence and head at a time."""
    out = torch.zeros_like(q)
    borders = cu_seqlens.tolist()
    for start, end in zip(borders, borders[1:], strict=False):
        for head in range(q.shape[1]):
            a, b, c = (x[start:end, head] for x in (q, k, v))
            out[start:end, head] = (a @ b.T / q.shape[-1] ** 0.5).softmax(-1) @ c
    return out


@pytest.mark.parametrize(
    ("borders", "row_length"),
    [
        ([0, 3], None),
        ([0, 5, 5, 8, 16, 17], None),
        ([0, 8, 16, 24], 8),
        ([0, 2, 8, 15, 16, 19], 8),
        ([0, 1, 2, 3, 4, 5, 6, 7], None),
        ([0, 4, 12, 20, 23], None),
    ],
)
def test_every_path_equals_the_definition(borders, row_length):
    torch.manual_seed(11)
    cu_seqlens = torch.tensor(borders)
    inputs = [torch.randn(borders[-1], 2, 8, dtype=torch.float64) for _ in range(3)]
    probe = torch.randn(borders[-1], 2, 8, dtype=torch.float64)

    def run(attention):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attention(*leaves)
        return [out, *torch.autograd.grad((out * probe).sum(), leaves)]

    expected = run(lambda q, k, v: dense_attention(q, k, v, cu_seqlens))
    for path in ("runs", "blocks"):
        packing = Packing(cu_seqlens, 8, row_length)
        found = run(
            lambda q, k, v, p=packing, w=path: packed_attention(q, k, v, cu_seqlens, p, 0, w)
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_queries_of_a_subset():
    torch.manual_seed(13)
    cu_seqlens, rows = torch.tensor([0, 5, 9, 9, 16]), torch.tensor([0, 0, 3, 6, 15])
    q, k, v = (torch.randn(16, 2, 8) for _ in range(3))
    expected = dense_attention(q, k, v, cu_seqlens)[rows]
    packing, cu_seqlens_q = Packing(cu_seqlens, 8), torch.tensor([0, 3, 4, 4, 5])
    for most in (None, 3, 5):
        found = packed_attention(q[rows], k, v, cu_seqlens_q, packing, max_queries=most)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="max_queries = 2 queries; got 3"):
        packed_attention(q[rows], k, v, cu_seqlens_q, packing, max_queries=2)
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        packed_attention(q[rows], k, v, cu_seqlens_q, packing, path="blocks")


def test_rows_are_attended_to_where_they_lie(monkeypatch):
    # Full rows, the case of training on a GPU: queries, keys and values reach the kernel uncopied.
    seen = []

    def spy(query, key, value, **_):
        seen.extend(x.data_ptr() for x in (query, key, value))
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    q, k, v = (torch.randn(16, 2, 8) for _ in range(3))
    cu_seqlens = torch.tensor([0, 5, 8, 16])
    packing = Packing(cu_seqlens, 8, 8)
    for _ in range(2):
        out = packed_attention(q, k, v, cu_seqlens, packing, path="blocks")
    assert seen == [x.data_ptr() for x in (q, k, v)] * 2
    assert torch.equal(out, q)
    assert packing.block_mask(16) is packing.block_mask(16)


def test_the_varlen_call_fits_the_kernel(monkeypatch):
    # Shapes only: the meta device stands in for the GPU that the kernel needs.
    def empty(*shape):
        return torch.empty(*shape, 2, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)

    q, k, v = empty(9), empty(100), empty(100)
    cu_seqlens = torch.zeros(8, dtype=torch.int64, device="meta")
    packing = Packing(cu_seqlens.clone(), 40)
    out = packed_attention(q, k, v, cu_seqlens, packing, path="varlen", max_queries=7)
    assert out.shape == (9, 2, 64) and out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert [g.shape[0] for g in gradients] == [9, 100, 100]
    assert packed_attention(k, k, v, packing.cu_seqlens, packing, path="varlen").shape == k.shape
    limits = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, *rest: limits.append(rest[-2:]) or q)
    packed_attention(q, k, v, cu_seqlens, packing, path="varlen", max_queries=7)
    packed_attention(q, k, v, cu_seqlens, packing, path="varlen")
    packed_attention(k, k, v, packing.cu_seqlens, packing, path="varlen")
    assert limits == [(7, 40), (9, 40), (40, 40)]


def test_padded_packing_literal():
    packing = pack_padded((3, 4), torch.tensor([4, 0, 3]))
    assert packing.cu_seqlens.tolist() == [0, 4, 4, 4, 8, 11, 12]
    assert packing.positions(12).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0]
    assert packing.segments(12).tolist() == [0] * 4 + [3] * 4 + [4] * 3 + [5]


def test_block_mask_literal():
    cu_seqlens = torch.tensor([0, 2, 3])
    rows = Packing(cu_seqlens, 2, 2).block_mask(3).int()
    assert rows.tolist() == [[[[1, 1], [1, 1]]], [[[1, 0], [0, 1]]]]
    # A block of two tokens sees six; the last one is half behind the stream.
    free = Packing(cu_seqlens, 2).block_mask(3).int()
    assert free[0, 0].tolist() == [[0, 0, 1, 1, 0, 0]] * 2
    assert free[1, 0].tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


def test_dropout_needs_a_path_that_has_it():
    q = torch.empty(4, 2, 64, dtype=torch.bfloat16, device="meta")
    assert attention_path(q, 0.1) == "blocks"
    assert attention_path(torch.empty(4, 2, 64), 0.1) == "runs"


@pytest.mark.parametrize("path", ["runs", "blocks"])
def test_attention_dropout_drops(path):
    torch.manual_seed(17)
    cu_seqlens = torch.tensor([0, 8])
    q = k = torch.zeros(8, 1, 8)
    v = torch.ones(8, 1, 8)
    out = packed_attention(q, k, v, cu_seqlens, Packing(cu_seqlens, 8), 0.5, path)
    # Each weight is 1/8 and survives doubled: the sums are multiples of 1/4 around 1.
    assert torch.equal(out * 4, (out * 4).round())
    assert len(out.unique()) > 1
