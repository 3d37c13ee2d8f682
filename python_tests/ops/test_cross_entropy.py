"""The vocabulary loss against torch's cross entropy: values and gradients of one head and of
two."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    IGNORE,
    assert_as_good_as_torch,
    classes,
    randn,
    torch_loss,
    value_and_gradients,
)

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def assert_like_torch(rows, weight, targets, bias, head, reduction, dtype, grad=None):
    tensors = [rows.to(dtype), weight.to(dtype)] + ([] if bias is None else [bias.to(dtype)])

    def ours(rows, weight, bias=None):
        return linear_cross_entropy(rows, weight, targets, bias, head, reduction=reduction)

    def own(rows, weight, bias=None):
        return torch_loss(rows, weight, targets, bias, head, reduction)

    got = value_and_gradients(ours, tensors, grad)
    expected = value_and_gradients(own, tensors, grad)
    exact = value_and_gradients(own, [t.double() for t in tensors], grad)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, g, o, e in zip(
        ("loss", "rows", "weight", "bias"), got, expected, exact, strict=False
    ):
        assert name == "loss" or g.dtype == dtype
        assert_as_good_as_torch(g, o, e, name, dtype)


# Literal -----------------------------------------------------------------------------------------


def test_by_hand(backend):
    """Two classes, logits (0, ln 3): probabilities 1/4 and 3/4."""
    rows = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    targets = torch.tensor([0, 1, IGNORE])
    losses = linear_cross_entropy(rows, weight, targets, reduction="none")
    assert torch.allclose(losses, torch.tensor([math.log(4), math.log(4 / 3), 0]))
    mean = linear_cross_entropy(rows, weight, targets)
    assert mean.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    mean.backward()
    # Row gradients: sum_v (p_v - y_v) w_v / 2.
    assert torch.allclose(rows.grad, torch.tensor([[0.375], [-0.125], [0]]) * math.log(3))
    assert torch.allclose(weight.grad, torch.tensor([[-0.25], [0.25]]))


def test_one_bias_for_each_head_by_hand(backend):
    rows, weight = torch.zeros(3, 2), torch.zeros(2, 2)
    bias = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]], requires_grad=True)
    head = torch.tensor([0, 1, 1])
    losses = linear_cross_entropy(
        rows, weight, torch.tensor([0, 0, 1]), bias, head, reduction="none"
    )
    assert torch.allclose(losses, torch.tensor([math.log(2), math.log(4), math.log(4 / 3)]))
    losses.sum().backward()
    assert torch.allclose(bias.grad, torch.tensor([[-0.5, 0.5], [-0.5, 0.5]]))


# Oracle ------------------------------------------------------------------------------------------

SHAPES = [(0, 3, 5), (1, 1, 1), (1, 4, 2), (7, 5, 31), (64, 16, 128), (33, 24, 257), (130, 8, 1009)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, size, vocabulary", SHAPES)
@pytest.mark.parametrize("bias", ["none", "one", "heads"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_and_gradients(backend, dtype, count, size, vocabulary, bias, reduction):
    table = {"none": None, "one": randn(vocabulary, seed=3), "heads": randn(3, vocabulary, seed=3)}[
        bias
    ]
    head = torch.arange(count) % 3 if bias == "heads" else None
    rows, weight = randn(count, size, seed=1), randn(vocabulary, size, seed=2)
    grad = randn(count, seed=4) if reduction == "none" else None
    assert_like_torch(rows, weight, classes(count, vocabulary), table, head, reduction, dtype, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 300, 31 * 17, 31 * 64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks(core, monkeypatch, dtype, elements, reduction):
    """Chunks of one row, of a few rows, with and without a rest."""
    rows, weight, bias = randn(64, 12, seed=1), randn(31, 12, seed=2), randn(2, 31, seed=3)
    targets, head = classes(64, 31, ignored=0.1), torch.arange(64) % 2
    sizes = dict.fromkeys(("cpu", "cuda"), elements)
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", sizes)
    grad = randn(64, seed=4) if reduction == "none" else None
    assert_like_torch(rows, weight, targets, bias, head, reduction, dtype, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [31, 1009])
def test_many_rows(backend, dtype, vocabulary):
    """Sums over rows must not lose digits with their number: the output bias sees every row of a
    chunk."""
    rows, weight, bias = (
        randn(2000, 4, seed=1),
        randn(vocabulary, 4, seed=2),
        randn(2, vocabulary, seed=3),
    )
    targets, head = classes(2000, vocabulary), torch.arange(2000) % 2
    assert_like_torch(rows, weight, targets, bias, head, "sum", dtype)


@pytest.mark.parametrize("scale", [1e4, 1e-4, 300.0])
def test_extreme_logits(backend, scale):
    rows = randn(20, 8, seed=1)
    assert_like_torch(
        rows, randn(50, 8, seed=2, scale=scale), classes(20, 50), None, None, "mean", torch.float32
    )
    bias = randn(50, seed=3, scale=scale)
    assert_like_torch(rows, randn(50, 8, seed=2), classes(20, 50), bias, None, "sum", torch.float32)


def test_a_certain_answer_costs_nothing_and_a_wrong_one_is_finite(backend):
    weight = torch.tensor([[1e4], [-1e4]])
    losses = linear_cross_entropy(torch.ones(2, 1), weight, torch.tensor([0, 1]), reduction="none")
    assert losses.tolist() == [0.0, 2e4]


def test_not_a_number_shows_in_its_row_and_in_the_mean(backend):
    rows = randn(4, 6, seed=1)
    rows[2, 3] = float("nan")
    targets = torch.tensor([0, 1, 2, IGNORE])
    losses = linear_cross_entropy(rows, randn(9, 6, seed=2), targets, reduction="none")
    assert losses.isnan().tolist() == [False, False, True, False]
    assert linear_cross_entropy(rows, randn(9, 6, seed=2), targets).isnan()
    rows[2], rows[3] = 0.0, float("nan")  # an ignored row may hold anything
    assert linear_cross_entropy(rows, randn(9, 6, seed=2), targets).isfinite()


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    count=st.integers(0, 40),
    size=st.integers(1, 9),
    vocabulary=st.integers(1, 70),
    heads=st.integers(0, 3),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_any_shape(core, dtype, count, size, vocabulary, heads, ignored, reduction, seed):
    bias = randn(heads, vocabulary, seed=seed) if heads else None
    head = torch.arange(count) % heads if heads > 1 else None
    targets = classes(count, vocabulary, seed, ignored)
    rows, weight = randn(count, size, seed=seed + 1), randn(vocabulary, size, seed=seed + 2)
    grad = randn(count, seed=3) if reduction == "none" else None
    assert_like_torch(rows, weight, targets, bias, head, reduction, dtype, grad)


@pytest.mark.parametrize("reduction, expected", [("mean", 0.0), ("sum", 0.0), ("none", [0.0] * 5)])
@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_predict(backend, reduction, expected, count):
    """B6: the loss is 0 and every gradient exists and is 0."""
    leaves = [
        randn(count, 3).requires_grad_(),
        randn(7, 3).requires_grad_(),
        randn(7).requires_grad_(),
    ]
    targets = torch.full((count,), IGNORE)
    loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], reduction=reduction)
    assert loss.tolist() == (expected if reduction != "none" else expected[:count])
    loss.sum().backward()
    assert all(t.grad is not None and not bool(t.grad.any()) for t in leaves)


def test_ignore_index(backend):
    rows, weight, targets = (
        randn(6, 4, seed=1),
        randn(5, 4, seed=2),
        torch.tensor([0, 3, 0, 4, 1, 0]),
    )
    expected = F.cross_entropy(rows @ weight.t(), targets, ignore_index=0)
    assert linear_cross_entropy(rows, weight, targets, ignore_index=0).item() == pytest.approx(
        expected.item()
    )
    assert targets.tolist() == [0, 3, 0, 4, 1, 0]


def test_ignored_rows_get_no_gradient(backend):
    rows, weight = randn(20, 4, seed=1).requires_grad_(), randn(9, 4, seed=2)
    targets = classes(20, 9, ignored=0.5)
    linear_cross_entropy(rows, weight, targets).backward()
    assert torch.equal(rows.grad.any(1), targets != IGNORE)


def test_strided_and_offset_inputs(backend):
    rows, weight = randn(20, 10, seed=1), randn(30, 10, seed=2)
    targets, bias = classes(40, 15, seed=3), randn(2, 30, seed=4)
    views = rows[1::2, ::2], weight[::2, 5:], targets[::4], bias[:, ::2]
    head = (torch.arange(20) % 2)[::2]
    got = linear_cross_entropy(*views, head)
    expected = linear_cross_entropy(*(v.contiguous() for v in views), head.contiguous())
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_what_is_asked_for_gets_a_gradient(backend):
    rows, weight, bias = randn(8, 4, seed=1), randn(9, 4, seed=2), randn(9, seed=3)
    targets = classes(8, 9)
    full = value_and_gradients(
        lambda r, w, b: linear_cross_entropy(r, w, targets, b), (rows, weight, bias)
    )
    for i in range(3):
        leaves = [rows.clone(), weight.clone(), bias.clone()]
        leaves[i].requires_grad_()
        linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2]).backward()
        assert torch.allclose(leaves[i].grad, full[i + 1], atol=1e-7)
    with torch.no_grad():
        assert not linear_cross_entropy(rows.requires_grad_(), weight, targets).requires_grad


def test_upstream_factors_and_a_second_backward(backend):
    rows, weight, targets = randn(8, 4, seed=1).requires_grad_(), randn(9, 4, seed=2), classes(8, 9)
    loss = linear_cross_entropy(rows, weight, targets)
    once = torch.autograd.grad(loss, rows, retain_graph=True)[0].clone()
    # Powers of two round nothing.
    fourfold = torch.autograd.grad(loss * 4, rows, retain_graph=True)[0]
    assert torch.equal(fourfold, 4 * once)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(rows.grad, 2 * once)
    assert torch.equal(
        torch.autograd.grad(linear_cross_entropy(rows, weight, targets), rows)[0], once
    )


def test_loss_scaling_saves_small_fp16_gradients(backend):
    """What a loss scaler is for: 2**16 times the loss must bring back gradients that fp16 alone
    loses.

    With 2000 rows and 1000 classes a probability over the row count is 5e-7: nine of fp16's
    smallest steps.
    """
    rows, weight = (
        randn(2000, 8, seed=1, scale=0.1).half(),
        randn(1000, 8, seed=2, scale=0.1).half(),
    )
    targets, factor = classes(2000, 1000, ignored=0.0), 2.0**16

    def gradient(function, rows, weight):
        weight = weight.detach().requires_grad_()
        return torch.autograd.grad(function(rows, weight) * factor, weight)[0].double()

    ours = gradient(lambda r, w: linear_cross_entropy(r, w, targets), rows, weight)
    own = gradient(lambda r, w: F.cross_entropy(F.linear(r, w).float(), targets), rows, weight)
    exact = gradient(
        lambda r, w: F.cross_entropy(F.linear(r, w), targets), rows.double(), weight.double()
    )
    assert_as_good_as_torch(ours.half(), own.half(), exact, "weight")


def test_second_derivatives_are_refused_or_right(core):
    """Of the square, whose gradient depends on the loss: an error, never a part of the answer."""
    rows, weight = randn(5, 3).double().requires_grad_(), randn(7, 3, seed=1).double()
    targets = classes(5, 7)
    with pytest.raises(RuntimeError):
        loss = linear_cross_entropy(rows, weight, targets)
        grad = torch.autograd.grad(loss.square(), rows, create_graph=True)[0]
        torch.autograd.grad(grad.sum(), rows)
