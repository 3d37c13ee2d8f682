"""Heads and losses on a GPU: error against float64 at most twice that of torch."""

import pytest
import torch
import torch.nn.functional as F
from device_cases import DTYPES, LAP, check_head, many_spans
from row_functions import gelu_layer_norm
from sbo_cases import framed_batch
from strategies import (
    assert_as_good_as_torch,
    classes,
    randn,
    torch_loss,
    value_and_gradients,
)

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import backend, cross_entropy
from spanbert_ext.ops.registration import working_dtype

# Floats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 129, 768])
def test_head_is_the_formula(device, dtype, size):
    check_head(device, dtype, size, framed_batch(8, 200))


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_with_more_spans_than_one_lap_adds(device, dtype):
    check_head(device, dtype, 40, many_spans())


def check_gelu_layer_norm(device, dtype, size):
    """More rows than one lap adds."""
    rows = LAP * backend.native_module.rows_per_chunk + 70
    wide = working_dtype(dtype)
    leaves = [randn(rows, size, seed=1).to(dtype), *(randn(size, seed=s).to(dtype) for s in (2, 3))]
    grad = randn(rows, size, seed=4).to(dtype).to(device)
    leaves = [t.to(device) for t in leaves]

    def ours(x, w, b):
        return gelu_layer_norm(x, w.to(wide), b.to(wide), 1e-5)

    def own(x, w, b):
        return F.layer_norm(F.gelu(x), (size,), w, b, 1e-5)

    exact = value_and_gradients(own, [t.double() for t in leaves], grad)
    results = (value_and_gradients(f, leaves, grad) for f in (ours, own))
    for name, g, o, e in zip(("out", "x", "weight", "bias"), *results, exact, strict=True):
        assert_as_good_as_torch(g, o, e, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [33, 768])
def test_gelu_layer_norm_of_many_rows(device, dtype, size):
    check_gelu_layer_norm(device, dtype, size)


def check_loss(device, dtype, rows, vocabulary, heads, reduction="mean"):
    leaves = [randn(rows, 33, seed=1), randn(vocabulary, 33, seed=2)]
    leaves = [t.to(dtype).to(device) for t in (*leaves, randn(heads, vocabulary, seed=3))]
    targets = classes(rows, vocabulary).to(device)
    head = torch.arange(rows, device=device) % heads
    grad = randn(rows, seed=4).to(device) if reduction == "none" else None

    def ours(r, w, b):
        return linear_cross_entropy(r, w, targets, b, head, reduction=reduction)

    def own(r, w, b):
        return torch_loss(r, w, targets, b, head, reduction)

    exact = value_and_gradients(own, [t.double() for t in leaves], grad)
    results = (value_and_gradients(f, leaves, grad) for f in (ours, own))
    for name, g, o, e in zip(("loss", "rows", "weight", "bias"), *results, exact, strict=True):
        assert_as_good_as_torch(g, o, e, name, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [1 << 30, 160 * 1024])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_is_torch(device, monkeypatch, dtype, chunk_bytes, reduction):
    sizes = dict.fromkeys(("cpu", "cuda"), chunk_bytes)
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", sizes)
    check_loss(device, dtype, 130, 1009, 2, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_loss_of_many_rows(device, dtype, heads):
    assert 2 * backend.native_module.column_rows_per_chunk < 2500
    check_loss(device, dtype, 2500, 517, heads)


def test_loss_of_more_rows_than_one_lap_adds(device):
    rows = LAP * backend.native_module.column_rows_per_chunk + 70
    check_loss(device, torch.float32, rows, 67, 2)
