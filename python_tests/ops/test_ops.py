"""Values and gradients of the native row functions against the reference and torch's own error."""

import pytest
import torch
import torch.nn.functional as F
from row_functions import gather_boundaries, gelu_layer_norm, sbo_first_layer
from strategies import assert_as_good_as_torch, randn, text_batch

from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.registration import working_dtype

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EPS = 1e-12


def gradients(function, tensors, grad):
    """Value and gradients of `function` at detached copies of `tensors`."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves, grad.to(value.dtype))


def compare_with_torch(ours, own, tensors, grad, dtype, names):
    """Ours in `dtype` and torch's own formula in `dtype` (parameters too) against torch's in
    float64."""
    rounded = [t.to(dtype) for t in tensors]
    wide = [t if i < names["rows"] else t.to(working_dtype(dtype)) for i, t in enumerate(rounded)]
    grad = grad.to(dtype)
    value, grads = gradients(ours, wide, grad)
    own_value, own_grads = gradients(own, rounded, grad)
    exact_value, exact_grads = gradients(own, [t.double() for t in rounded], grad)
    assert value.dtype == dtype
    assert_as_good_as_torch(value, own_value, exact_value)
    for name, g, o, e in zip(names["names"], grads, own_grads, exact_grads, strict=True):
        assert_as_good_as_torch(g, o, e, f"gradient of {name}")


# gather_boundaries -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 64, 131])
def test_gather_boundaries_equals_indexing(backend, dtype, size):
    batch = text_batch(seed=size)
    hidden = randn(192, size, dtype=dtype, seed=1).requires_grad_()
    pairs = gather_boundaries(hidden, batch.span_left, batch.span_right)
    used = (batch.span_right > batch.span_left).unsqueeze(1)
    expected = torch.cat([hidden[batch.span_left], hidden[batch.span_right]], 1) * used
    assert torch.equal(pairs, expected)
    grad = randn(*pairs.shape, dtype=dtype, seed=2)
    grad_hidden = torch.autograd.grad(pairs, hidden, grad)[0]
    # At most one left and one right row meet in a token: one rounded addition, so equality is due.
    by_hand = torch.zeros_like(hidden)
    for s in used.squeeze(1).nonzero().squeeze(1).tolist():
        by_hand.data[batch.span_left[s]] += grad[s, :size]
    for s in used.squeeze(1).nonzero().squeeze(1).tolist():
        by_hand.data[batch.span_right[s]] += grad[s, size:]
    assert torch.equal(grad_hidden, by_hand)


def test_a_token_between_two_spans_gets_both_gradients(backend):
    hidden = torch.zeros(5, 2, requires_grad=True)
    pairs = gather_boundaries(hidden, torch.tensor([0, 2, 0]), torch.tensor([2, 4, 0]))
    pairs.backward(torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40], [7, 7, 7, 7]]))
    assert hidden.grad.tolist() == [[1, 2], [0, 0], [13, 24], [0, 0], [30, 40]]


def test_a_span_between_two_mentions_of_a_token(backend):
    """Internal endpoints: one token is both boundaries of its span."""
    hidden = torch.arange(8.0).view(4, 2).requires_grad_()
    pairs = gather_boundaries(hidden, torch.tensor([0, 3, 0]), torch.tensor([1, 3, 0]))
    assert pairs.tolist() == [[0, 1, 2, 3], [6, 7, 6, 7], [0, 0, 0, 0]]
    pairs.backward(torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40], [7, 7, 7, 7]]))
    assert hidden.grad.tolist() == [[1, 2], [3, 4], [0, 0], [40, 60]]


# gelu_layer_norm ---------------------------------------------------------------------------------


def torch_gelu_layer_norm(x, weight, bias):
    return F.layer_norm(F.gelu(x), x.shape[-1:], weight, bias, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, size", [(0, 8), (1, 3), (3, 31), (67, 64), (130, 17), (5, 768), (64, 5), (6000, 7)]
)
def test_gelu_layer_norm(backend, dtype, rows, size):
    tensors = (randn(rows, size, seed=1, scale=2.0), randn(size, seed=2) + 1, randn(size, seed=3))
    compare_with_torch(
        lambda x, w, b: gelu_layer_norm(x, w, b, EPS),
        torch_gelu_layer_norm,
        tensors,
        randn(rows, size, seed=4),
        dtype,
        {"rows": 1, "names": ("x", "weight", "bias")},
    )


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 30.0, 1e4, 1e15])
def test_gelu_layer_norm_at_extreme_scales(backend, scale):
    tensors = (randn(9, 40, seed=1, scale=scale), randn(40, seed=2), randn(40, seed=3))
    compare_with_torch(
        lambda x, w, b: gelu_layer_norm(x, w, b, EPS),
        torch_gelu_layer_norm,
        tensors,
        randn(9, 40, seed=4),
        torch.float32,
        {"rows": 1, "names": ("x", "weight", "bias")},
    )


@pytest.mark.parametrize("rows", [torch.linspace(-14, 14, 4001), -torch.logspace(-8, 1.1, 4001)])
def test_gelu_keeps_its_digits_in_the_negative_tail(backend, rows):
    """Every value of a row of its own, beside three numbers that fix mean and deviation to 0 and
    about 1."""
    anchors = torch.tensor([4.0, 2.0, 1.0])
    x = torch.cat([rows.unsqueeze(1), anchors.expand(len(rows), 3)], 1)
    ours = gelu_layer_norm(x, torch.ones(4), torch.zeros(4), EPS)
    own = torch_gelu_layer_norm(x, torch.ones(4), torch.zeros(4))
    exact = torch_gelu_layer_norm(x.double(), torch.ones(4).double(), torch.zeros(4).double())
    assert_as_good_as_torch(ours, own, exact)


def test_constant_and_zero_rows_stay_finite(backend):
    x = torch.stack(
        [torch.zeros(50), torch.full((50,), 3.0), torch.full((50,), -40.0)]
    ).requires_grad_()
    weight, bias = torch.ones(50), torch.full((50,), 0.5)
    out = gelu_layer_norm(x, weight, bias, EPS)
    grad = torch.autograd.grad(out.sum(), x)[0]
    assert bool(out.isfinite().all() and grad.isfinite().all())
    assert torch.equal(out[0], bias)


def test_not_a_number_stays_in_its_row(backend):
    """The numerics guard can only see what the kernels let through."""
    x = randn(3, 40, seed=1)
    x[1, 7] = float("nan")
    out = gelu_layer_norm(x, torch.ones(40), torch.zeros(40), EPS)
    assert out.isnan().all(1).tolist() == [False, True, False]


# sbo_first_layer ---------------------------------------------------------------------------------


def torch_sbo_first_layer(batch):
    used = batch.sbo_ids != -100

    def formula(span_rows, position_rows, weight, bias):
        span = span_rows[torch.where(used, batch.target_spans, 0)]
        x = span + position_rows[torch.where(used, batch.target_offsets, 0)]
        return torch_gelu_layer_norm(x, weight, bias) * used.unsqueeze(1)

    return formula


def our_sbo_first_layer(batch):
    index = (batch.target_spans, batch.target_offsets, batch.sbo_ids)
    return lambda spans, positions, w, b: sbo_first_layer(spans, positions, *index, w, b, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, width, size, options",
    [
        (3, 64, 31, {}),
        (200, 200, 5, {}),
        (40, 32, 64, {}),
        (2, 300, 7, {"mask_ratio": 1.0}),
        (5, 90, 16, {"max_span_targets": 2}),
        (2, 128, 48, {"geometric_p": 0.01, "max_words": 30}),
    ],
)
def test_sbo_first_layer(backend, dtype, rows, width, size, options):
    batch = text_batch(rows, width, **options)
    spans, targets = batch.span_left.shape[0], batch.sbo_ids.shape[0]
    tensors = (
        randn(spans, size, seed=1),
        randn(15, size, seed=2),
        randn(size, seed=3) + 1,
        randn(size, seed=4),
    )
    compare_with_torch(
        our_sbo_first_layer(batch),
        torch_sbo_first_layer(batch),
        tensors,
        randn(targets, size, seed=5),
        dtype,
        {"rows": 2, "names": ("span_rows", "position_rows", "weight", "bias")},
    )


@pytest.mark.parametrize("targets, spans", [(0, 0), (0, 3), (4, 2)])
def test_sbo_first_layer_without_targets(backend, targets, spans):
    index = torch.zeros(targets, dtype=torch.int64)
    leaves = [randn(spans, 6), randn(15, 6), torch.ones(6), torch.ones(6)]
    leaves = [t.requires_grad_() for t in leaves]
    out = sbo_first_layer(*leaves[:2], index, index, index - 100, *leaves[2:], EPS)
    assert torch.equal(out, torch.zeros(targets, 6))
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert not bool(grad.any())


# cross_entropy_rows_ -----------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 3])
def test_cross_entropy_rows_by_hand(padding, core):
    """softmax of (0, ln 3) is (1/4, 3/4); padding columns hold garbage and become 0."""
    ln3 = 1.0986122886681098
    logits = torch.full((3, 2 + padding), 77.0, dtype=torch.float64)
    logits[:, :2] = torch.tensor([[0.0, ln3], [0.0, 0.0], [5.0, 5.0]])
    bias = torch.tensor([[0.0, 0.0], [0.0, ln3]], dtype=torch.float64)
    targets, head = torch.tensor([0, 1, -100]), torch.tensor([0, 1, 1])
    scale = torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)
    losses, grad_bias = cross_entropy_rows_(logits, targets, bias, head, scale, 2)
    expected = torch.tensor([2 * 0.6931471805599453, 0.28768207245178096, 0], dtype=torch.float64)
    assert torch.allclose(losses, expected, atol=1e-14)
    grads = torch.tensor([[-0.75, 0.75], [0.5, -0.5], [0, 0]], dtype=torch.float64)
    assert torch.allclose(logits[:, :2], grads, atol=1e-14)
    assert not bool(logits[:, 2:].any())
    assert torch.allclose(grad_bias, grads[:2], atol=1e-14)


def test_without_scale_the_logits_are_left_alone(core):
    logits = randn(4, 9, seed=1)
    before = logits.clone()
    losses, grad_bias = cross_entropy_rows_(
        logits, torch.tensor([0, 8, -100, 3]), None, None, None, 9
    )
    assert torch.equal(logits, before)
    assert grad_bias.numel() == 0 and losses[2] == 0


# Gradients ---------------------------------------------------------------------------------------


def test_gradcheck(backend):
    batch = text_batch(2, 20)
    hidden = randn(40, 3, dtype=torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: gather_boundaries(h, batch.span_left, batch.span_right), (hidden,)
    )
    x = randn(5, 6, dtype=torch.float64, seed=2).requires_grad_()
    weight, bias = (randn(6, dtype=torch.float64, seed=s).requires_grad_() for s in (3, 4))
    assert torch.autograd.gradcheck(lambda *t: gelu_layer_norm(*t, 1e-5), (x, weight, bias))
    spans = randn(batch.span_left.shape[0], 6, dtype=torch.float64, seed=5).requires_grad_()
    positions = randn(15, 6, dtype=torch.float64, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(our_sbo_first_layer(batch), (spans, positions, weight, bias))
