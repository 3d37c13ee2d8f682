"""Attention with dropout of a stream on the CPU: every weight against the draws of the reference,
values and gradients against float64, and the encoder that draws by one seed."""

import pytest
import torch
import torch.nn.functional as F
from strategies import assert_as_good_as_torch, case_id, randn

from spanbert_ext.model import chunked_attention as module
from spanbert_ext.model.attention import Packing, packed_attention
from spanbert_ext.model.chunked_attention import _parts, _Plan, dropped_attention
from spanbert_ext.model.cpu_attention import attention_in_runs
from spanbert_ext.ops.reference import dropout as reference

SEED = torch.tensor([0x123456789ABCDEF])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LENGTHS = [3, 0, 40, 33, 1, 70, 33, 40, 1]


def borders(lengths) -> torch.Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))


def stream(dtype, lengths_q=LENGTHS, lengths_k=None, heads=2, width=8):
    """q, k, v and a gradient."""
    lengths_k = lengths_q if lengths_k is None else lengths_k
    sizes = [sum(lengths_q), sum(lengths_k), sum(lengths_k), sum(lengths_q)]
    return [randn(n, heads, width, dtype=dtype, seed=s) for s, n in enumerate(sizes)]


def factors_of(cu_q, cu_k, heads, p, site, dtype=torch.float64):
    """[heads, Lq, Lk] of each sequence: what dropout multiplies the weights with."""
    for i in range(len(cu_q) - 1):
        count, width = int(cu_q[i + 1] - cu_q[i]), int(cu_k[i + 1] - cu_k[i])
        rows = reference.attention_draw_rows(cu_q[i : i + 1], heads, count).flatten()
        threshold = reference.mask_threshold(p)
        factors = reference.dropout_factors(rows, width, threshold, SEED, site, dtype)
        yield factors.view(heads, count, width)


def torch_attention(q, k, v, cu_q, cu_k, p, site):
    """torch's operations in the dtype of q, one sequence at a time, under the same masks."""
    outputs = [q[:0]]
    for i, factors in enumerate(factors_of(cu_q, cu_k, q.shape[1], p, site)):
        query = q[cu_q[i] : cu_q[i + 1]].transpose(0, 1)
        key, value = (x[cu_k[i] : cu_k[i + 1]].transpose(0, 1) for x in (k, v))
        scores = query @ key.mT * q.shape[-1] ** -0.5
        outputs.append(((scores.softmax(-1) * factors).to(q.dtype) @ value).transpose(0, 1))
    return torch.cat(outputs)


def value_and_gradients(function, tensors, grad):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, grad.to(value.dtype))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths_q", [LENGTHS, [2, 0, 0, 5, 1, 40, 3, 0, 2]], ids=["every query", "chosen queries"]
)
def test_values_and_gradients(backend, lengths_q, dtype, p):
    *tensors, grad = stream(dtype, lengths_q, LENGTHS)
    cu_q, cu_k = borders(lengths_q), borders(LENGTHS)

    def ours(q, k, v):
        return dropped_attention(q, k, v, cu_q, cu_k, p, SEED, 9)

    def own(q, k, v):
        return torch_attention(q, k, v, cu_q, cu_k, p, 9)

    found = value_and_gradients(ours, tensors, grad)
    theirs = value_and_gradients(own, tensors, grad)
    exact = value_and_gradients(own, [t.double() for t in tensors], grad)
    assert all(x.dtype == dtype for x in found)
    for name, *values in zip(("value", "q", "k", "v"), found, theirs, exact, strict=True):
        assert_as_good_as_torch(*values, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_dropped_by_its_own_draw(backend, dtype):
    """Equal scores and values that are unit vectors: what comes out are the weights."""
    lengths, heads, p = [5, 64, 31, 5, 5], 3, 0.25
    cu, total = borders(lengths), sum(lengths)
    q = torch.zeros(total, heads, 64, dtype=dtype)
    places = torch.cat([torch.arange(n) for n in lengths])
    v = F.one_hot(places, 64).to(dtype).unsqueeze(1).expand(-1, heads, -1)
    out = dropped_attention(q, q, v, cu, cu, p, SEED, 2**31 + 5)
    for i, factors in enumerate(factors_of(cu, cu, heads, p, 2**31 + 5)):
        found = out[cu[i] : cu[i + 1], :, : lengths[i]].transpose(0, 1)
        weight = torch.tensor(1 / lengths[i]).to(dtype).double()
        assert torch.equal(found, (factors * weight).to(dtype))
        assert not out[cu[i] : cu[i + 1], :, lengths[i] :].any()


def test_chunks_and_padding_change_nothing_but_roundings(force_backend, monkeypatch):
    force_backend("native")
    *tensors, grad = stream(torch.float64)
    cu, outcomes = borders(LENGTHS), []
    for scores, multiple in ((1 << 19, 16), (1, 1), (2**13, 64)):
        monkeypatch.setattr(module, "_CHUNK_SCORES", scores)
        monkeypatch.setattr(module, "_MULTIPLES", {8: multiple})
        outcomes.append(
            value_and_gradients(
                lambda *x: dropped_attention(*x, cu, cu, 0.3, SEED, 1), tensors, grad
            )
        )
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_parts_are_powers_of_two():
    assert [len(part) for part in _parts(range(23), 8)] == [8, 8, 4, 2, 1]
    assert [len(part) for part in _parts(range(5), 3)] == [2, 2, 1]
    assert [list(part) for part in _parts("ab", 0)] == [["a"], ["b"]]


def test_a_plan_has_every_sequence_once():
    lengths = (3, 0, 40, 33, 1, 70, 33, 40, 1, 0)
    plan = _Plan.of(lengths, lengths, 2, 32, 1 << 19)
    sides = [queries for queries, _ in plan.chunks]
    starts = torch.cat([side.starts for side in sides]).tolist()
    sizes = torch.cat([side.sizes for side in sides]).tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    expected = [(end - n, n) for n, end in zip(lengths, ends, strict=True) if n]
    assert sorted(zip(starts, sizes, strict=True)) == expected
    shapes = [(len(q.sizes), q.length, k.length) for q, k in plan.chunks]
    assert sorted(shapes) == [(1, 32, 32), (1, 96, 96), (2, 32, 32), (4, 64, 64)]
    assert plan.queries == plan.keys == sum(lengths)
    chosen = _Plan.of((2, 0, 1), (5, 4, 0), 2, 32, 1 << 19)
    assert (chosen.queries, chosen.keys, len(chosen.chunks)) == (2, 5, 1)


def test_sequences_without_keys_or_queries(backend):
    *tensors, grad = stream(torch.float32, [2, 0, 3], [0, 4, 5])
    cu_q, cu_k = borders([2, 0, 3]), borders([0, 4, 5])
    found = value_and_gradients(
        lambda *x: dropped_attention(*x, cu_q, cu_k, 0.3, SEED, 1), tensors, grad
    )
    zeros = [not x[: n - 1].any() for x, n in zip(found, (3, 3, 5, 5), strict=True)]
    assert zeros == [True] * 4 and all(x[-1].any() for x in found)
    empty = [t[:0].requires_grad_() for t in tensors]
    out = dropped_attention(*empty, torch.tensor([0, 0]), torch.tensor([0, 0]), 0.3, SEED, 1)
    assert out.shape == (0, 2, 8)
    assert all(g.numel() == 0 for g in torch.autograd.grad(out.sum(), empty))


def test_a_neighbour_reaches_nobody(backend):
    """Not even by numbers that are none."""
    *tensors, grad = stream(torch.bfloat16)
    cu, outcomes = borders(LENGTHS), []
    for spoil in (False, True):
        if spoil:
            for x in tensors:
                x[cu[5] : cu[6]] = torch.nan
        outcomes.append(
            value_and_gradients(
                lambda *x: dropped_attention(*x, cu, cu, 0.3, SEED, 1), tensors, grad
            )
        )
    kept = torch.ones(sum(LENGTHS), dtype=torch.bool)
    kept[cu[5] : cu[6]] = False
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a[kept], b[kept]) and b[~kept].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_strides_give_the_same_bits(force_backend, dtype):
    """Thirds of one projection are as good as tensors of their own."""
    force_backend("native")
    lengths = [200, 200, 61, 64, 40, 7]
    cu = borders(lengths)
    whole = randn(sum(lengths), 3, 4, 16, dtype=dtype)
    grad = randn(sum(lengths), 16, 4, dtype=dtype, seed=1).mT

    def run(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = dropped_attention(*leaves, cu, cu, 0.1, SEED, 3)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    one = run(*(x.contiguous() for x in whole.unbind(1)))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, run(*whole.unbind(1)), strict=True))


def test_gradcheck(backend):
    lengths = [3, 1, 4]
    leaves = [x.requires_grad_() for x in stream(torch.float64, lengths, width=3)[:3]]
    cu = borders(lengths)
    assert torch.autograd.gradcheck(
        lambda *x: dropped_attention(*x, cu, cu, 0.4, SEED, 1), leaves, fast_mode=True
    )


def test_autocast_takes_no_part(backend):
    *tensors, _ = stream(torch.float32)
    cu = borders(LENGTHS)
    expected = dropped_attention(*tensors, cu, cu, 0.1, SEED, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dropped_attention(*tensors, cu, cu, 0.1, SEED, 1), expected)


def test_only_probabilities_are_kept(force_backend):
    force_backend("native")
    *tensors, _ = stream(torch.bfloat16, [64, 64])
    leaves, kept = [t.requires_grad_() for t in tensors], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dropped_attention(*leaves, borders([64, 64]), borders([64, 64]), 0.1, SEED, 1)
    others = [t for t in kept if all(t.data_ptr() != x.data_ptr() for x in leaves)]
    assert [t.shape for t in others] == [(2, 2, 64, 64)]


def test_who_draws(monkeypatch):
    """With a seed our draws, without one torch's generator; without dropout nobody."""
    *tensors, _ = stream(torch.float32)
    cu = borders(LENGTHS)
    packing, state = Packing(cu, 70), torch.get_rng_state()
    seeded = [
        packed_attention(*tensors, cu, packing, 0.2, seed=SEED + i, site=j)
        for i, j in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seeded[0], seeded[1])
    assert not any(torch.equal(seeded[0], other) for other in seeded[2:])
    own = [attention_in_runs(*tensors, cu, cu, 0.2) for _ in range(2)]
    assert not torch.equal(*own)
    monkeypatch.setattr(module, "dropped_attention", None)
    plain = packed_attention(*tensors, cu, packing, 0.0, seed=SEED)
    torch.testing.assert_close(plain, packed_attention(*tensors, cu, packing))


X = torch.zeros(5, 2, 8)
GOOD = {
    "q": X, "k": X, "v": X, "cu_q": torch.tensor([0, 2, 5]), "cu_k": torch.tensor([0, 2, 5]),
    "dropout": 0.1, "seed": SEED, "site": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "k must be float32.*int64", {"k": X.long()}),
        (ValueError, "k must have 3 dim", {"k": X[0]}),
        (ValueError, r"v must have shape \(5, 2, 8\); got \(4, 2, 8\)", {"v": X[:4]}),
        (ValueError, r"q must have shape \(5, 2, 8\); got \(5, 2, 4\)", {"q": X[..., :4]}),
        (TypeError, "q must be torch.float32 on cpu, like k; got torch.float64", {"q": X.double()}),
        (ValueError, "cu_q must not fall or end behind 5", {"cu_q": torch.tensor([0, 2, 6])}),
        (ValueError, "cu_k must not fall or end behind 5", {"cu_k": torch.tensor([0, 4, 3])}),
        (TypeError, "seed must be torch.int64", {"seed": SEED.int()}),
        (ValueError, r"dropout probability must lie in \[0, 1\]", {"dropout": -0.1}),
        (ValueError, "site must lie", {"site": -1}),
    ],
    ids=case_id,
)  # fmt: skip
def test_bad_arguments_are_named(force_backend, error, message, change):
    force_backend("native")
    with pytest.raises(error, match=message):
        dropped_attention(**{**GOOD, **change})
