"""The vocabulary loss of both heads at once: by hand, and against torch's cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from strategies import IGNORE, assert_as_good_as_torch, classes, randn, value_and_gradients

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import cross_entropy
from spanbert_ext.ops.cross_entropy import two_head_cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def two_heads(**options):
    """Uniform logits over 4 classes: every MLM loss is ln 4; the SBO bias (ln 3, 0, 0, 0) makes
    class 0 ln 2."""
    bias = torch.tensor([[0.0] * 4, [math.log(3), 0, 0, 0]])
    mlm, sbo = torch.tensor([1, IGNORE, 2]), torch.tensor([0, 0, 0, IGNORE])
    return two_head_cross_entropy(
        torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4, 2), mlm, sbo, bias, **options
    )


@pytest.mark.parametrize(
    "options, total, mlm, sbo",
    [
        ({}, math.log(4) + math.log(2), math.log(4), math.log(2)),
        ({"sbo_weight": 0.5}, math.log(4) + 0.5 * math.log(2), math.log(4), math.log(2)),
        (
            {"loss": "paper"},
            (2 * math.log(4) + 3 * math.log(2)) / 2,
            math.log(4),
            1.5 * math.log(2),
        ),
        (
            {"loss": "paper", "sbo_weight": 2.0},
            math.log(4) + 3 * math.log(2),
            math.log(4),
            1.5 * math.log(2),
        ),
        (
            {"num_mlm_targets": 4, "num_sbo_targets": torch.tensor(6)},
            (math.log(4) + math.log(2)) / 2,
            math.log(4) / 2,
            math.log(2) / 2,
        ),
        (
            {"loss": "paper", "num_mlm_targets": 4},
            (2 * math.log(4) + 3 * math.log(2)) / 4,
            math.log(4) / 2,
            0.75 * math.log(2),
        ),
    ],
)
def test_loss_modes_by_hand(backend, options, total, mlm, sbo):
    got = two_heads(**options)
    assert [v.item() for v in got] == pytest.approx([total, mlm, sbo], abs=1e-6)
    assert all(v.dtype == torch.float32 and v.dim() == 0 for v in got)


def torch_two_heads(mlm_rows, sbo_rows, weight, bias, mlm, sbo, sbo_weight, loss, n_mlm, n_sbo):
    sums = [
        F.cross_entropy(F.linear(r, weight, b), t, reduction="sum") if len(t) else r.sum()
        for r, b, t in ((mlm_rows, bias[0], mlm), (sbo_rows, bias[1], sbo))
    ]
    count = max(1, int((mlm != IGNORE).sum())) if n_mlm is None else n_mlm
    others = max(1, int((sbo != IGNORE).sum())) if n_sbo is None else n_sbo
    return sums[0] / count + sbo_weight * sums[1] / (count if loss == "paper" else others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["code", "paper"])
@pytest.mark.parametrize("counts", [(30, 20), (7, 0), (0, 5), (1, 1)])
@pytest.mark.parametrize("divisors", [(None, None), (50, 40)])
def test_two_heads(backend, dtype, loss, counts, divisors):
    tensors = [
        randn(counts[0], 6, seed=1),
        randn(counts[1], 6, seed=2),
        randn(37, 6, seed=3),
        randn(2, 37, seed=4),
    ]
    tensors = [t.to(dtype) for t in tensors]
    mlm, sbo = classes(counts[0], 37, 5), classes(counts[1], 37, 6)

    def ours(m, s, w, b):
        return two_head_cross_entropy(m, s, w, mlm, sbo, b, 0.7, loss, *divisors)[0]

    def own(m, s, w, b):
        return torch_two_heads(m, s, w, b, mlm, sbo, 0.7, loss, *divisors)

    got, expected = value_and_gradients(ours, tensors), value_and_gradients(own, tensors)
    exact = value_and_gradients(own, [t.double() for t in tensors])
    for name, g, o, e in zip(
        ("loss", "mlm_rows", "sbo_rows", "weight", "bias"), got, expected, exact, strict=True
    ):
        assert_as_good_as_torch(g, o, e, name, dtype)


def test_head_losses_are_means_for_logging(backend):
    arguments = (randn(9, 4, seed=1).requires_grad_(), randn(6, 4, seed=2), randn(11, 4, seed=3))
    mlm, sbo, bias = classes(9, 11, 4), classes(6, 11, 5), randn(2, 11, seed=6)
    total, mlm_loss, sbo_loss = two_head_cross_entropy(*arguments, mlm, sbo, bias, sbo_weight=0.25)
    assert total.requires_grad and not mlm_loss.requires_grad and not sbo_loss.requires_grad
    rows, others, weight = arguments
    assert mlm_loss.item() == pytest.approx(
        F.cross_entropy(F.linear(rows, weight, bias[0]), mlm).item(), rel=1e-5
    )
    assert sbo_loss.item() == pytest.approx(
        F.cross_entropy(F.linear(others, weight, bias[1]), sbo).item(), rel=1e-5
    )
    assert total.item() == pytest.approx((mlm_loss + 0.25 * sbo_loss).item(), rel=1e-5)


def test_without_the_sbo(backend):
    rows, weight, bias, mlm = (
        randn(9, 4, seed=1),
        randn(11, 4, seed=3),
        randn(2, 11, seed=6),
        classes(9, 11, 4),
    )
    for biases in (bias, bias[:1]):
        total, mlm_loss, sbo_loss = two_head_cross_entropy(rows, None, weight, mlm, None, biases)
        assert total.item() == pytest.approx(
            linear_cross_entropy(rows, weight, mlm, bias[0]).item(), rel=1e-6
        )
        assert (mlm_loss.item(), sbo_loss.item()) == (total.item(), 0.0)


def test_accumulated_micro_batches_equal_the_big_batch(backend):
    """Divisors of the whole step make the sum of the parts' losses and gradients those of the
    whole."""
    mlm_rows, sbo_rows, weight, bias = (
        randn(40, 4),
        randn(30, 4),
        randn(11, 4, seed=3),
        randn(2, 11, seed=6),
    )
    mlm, sbo = classes(40, 11, 4), classes(30, 11, 5)
    for loss in ("code", "paper"):
        whole = weight.clone().requires_grad_()
        two_head_cross_entropy(mlm_rows, sbo_rows, whole, mlm, sbo, bias, loss=loss)[0].backward()
        parts = weight.clone().requires_grad_()
        counts = int((mlm != IGNORE).sum()), int((sbo != IGNORE).sum())
        for m, s in ((slice(0, 3), slice(0, 29)), (slice(3, 40), slice(29, 30))):
            part = (mlm_rows[m], sbo_rows[s], parts, mlm[m], sbo[s], bias)
            two_head_cross_entropy(*part, 1.0, loss, *counts)[0].backward()
        assert torch.allclose(parts.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_gradcheck(backend, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", {"cpu": 22, "cuda": 22})
    mlm, sbo = classes(6, 11, 4), classes(5, 11, 5)
    shapes = ((6, 3), (5, 3), (11, 3), (2, 11))
    leaves = [randn(*s, seed=i).double().requires_grad_() for i, s in enumerate(shapes)]
    check = torch.autograd.gradcheck
    for loss in ("code", "paper"):
        assert check(
            lambda m, s, w, b, k=loss: two_head_cross_entropy(m, s, w, mlm, sbo, b, 0.5, k)[0],
            leaves,
        )
    for reduction in ("mean", "sum", "none"):
        assert check(
            lambda m, w, b, r=reduction: linear_cross_entropy(m, w, mlm, b[0], reduction=r),
            (leaves[0], *leaves[2:]),
        )
