"""GELU(x + bias) in one operation against torch's own two."""

import pytest
import torch
import torch.nn.functional as F
from strategies import assert_as_good_as_torch, case_id, inside_larger_buffer, randn

from spanbert_ext._boundary import working_dtype
from spanbert_ext._gelu_op import bias_gelu

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def gradients(function, tensors, grad):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, grad.to(value.dtype))


def torch_formula(x, bias):
    return F.gelu(x + bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, size", [(0, 8), (3, 31), (67, 64), (130, 17), (16400, 3), (5, 3072)]
)
def test_values_and_gradients(backend, dtype, rows, size):
    x, bias, grad = (
        randn(*shape, seed=s, scale=2.0).to(dtype)
        for s, shape in enumerate([(rows, size), (size,), (rows, size)])
    )
    ours = gradients(lambda x, b: bias_gelu(x, b.to(working_dtype(dtype))), (x, bias), grad)
    own = gradients(torch_formula, (x, bias), grad)
    exact = gradients(torch_formula, (x.double(), bias.double()), grad)
    assert ours[0].dtype == dtype
    for name, *values in zip(("value", "x", "bias"), ours, own, exact, strict=True):
        assert_as_good_as_torch(*values, name)


def test_by_hand(backend):
    """GELU(0) = 0, GELU(1) = 0.841345, GELU'(0) = 1/2; a column's bias moves all its rows."""
    x = torch.tensor([[-1.0, 3.0], [0.0, 2.0]], requires_grad=True)
    bias = torch.tensor([1.0, -2.0], requires_grad=True)
    out = bias_gelu(x, bias)
    expected = torch.tensor([[0.0, 0.841345], [0.841345, 0.0]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    grad_x, grad_bias = torch.autograd.grad(out, (x, bias), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(grad_x, torch.tensor([[0.5, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(grad_bias, torch.tensor([0.5, 2.0]))


def test_gradcheck(backend):
    x, bias = (randn(*s, dtype=torch.float64).requires_grad_() for s in ((5, 6), (6,)))
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_views_give_the_same_bits(force_backend, dtype):
    force_backend("native")
    tensors = randn(700, 96, seed=1).to(dtype), randn(96, seed=2, dtype=working_dtype(dtype))
    grad = randn(700, 96, seed=3).to(dtype)
    one = gradients(bias_gelu, tensors, grad)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = gradients(bias_gelu, tensors, grad)
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    for offset in (1, 5):
        views = [inside_larger_buffer(t, offset) for t in tensors]
        leaves = [t.requires_grad_() for t in views]
        value = bias_gelu(*leaves)
        found = value, *torch.autograd.grad(value, leaves, grad)
        assert all(torch.equal(a, b) for a, b in zip(one, found, strict=True))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "x must be float32.*int64", {"x": torch.zeros(3, 4).long()}),
        (ValueError, "x must have 2 dimension", {"x": torch.zeros(4)}),
        (ValueError, "x must be contiguous", {"x": torch.zeros(4, 3).t()}),
        (ValueError, r"bias.*\(4,\).*\(5,\)", {"bias": torch.zeros(5)}),
        (TypeError, "bias must be torch.float32.*bfloat16", {"bias": torch.zeros(4).bfloat16()}),
        (ValueError, "bias must be on cpu", {"bias": torch.zeros(4, device="meta")}),
    ],
    ids=case_id,
)
def test_bad_arguments_are_named(backend, error, message, change):
    with pytest.raises(error, match=message):
        bias_gelu(**{"x": torch.zeros(3, 4), "bias": torch.zeros(4), **change})
