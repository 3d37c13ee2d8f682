"""Residual connections at the sizes where kernels change: masks of the reference bit for bit,
values and gradients at most twice as far from float64 as torch's."""

import pytest
import torch
from back_ends import REDUCED
from norm_cases import DTYPES as STREAMS
from norm_cases import EPS, FORMS, SEED, gradients, inputs, torch_formula
from strategies import assert_as_good_as_torch, randn

from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout
from spanbert_ext.ops.reference import dropout as reference
from spanbert_ext.ops.registration import working_dtype

# One warp a row, one block a row, and sizes or alignments that go column by column; the rows make
# chunks of 16 and of 64.
SHAPES = [
    (70, 8), (70, 768), (70, 776), (33, 1024), (5, 1032), (40, 8192), (70, 33), (3, 8200),
    (16450, 64),
]  # fmt: skip


def check_masks(device):
    zeros = torch.zeros(37, 1000, device=device)
    for size in (7, 8, 768, 1000):
        rows, parameters = zeros[:, :size].contiguous(), torch.zeros(2, size, device=device)
        parameters[1] = 1
        for site, p in ((0, 0.1), (2**32 - 1, 0.9)):
            threshold = reference.mask_threshold(p)
            found = add_layer_norm_dropout(rows, rows, *parameters, 1.0, p, SEED.to(device), site)
            expected = reference.dropout_factors(37, size, threshold, SEED, site, torch.float32)
            assert torch.equal(found.cpu(), expected)


def test_masks_are_the_cpus(device):
    check_masks(device)


def check_rows(device, form, branch, stream, rows, size, p=0.1):
    tensors = [t.to(device) for t in inputs(rows, size, branch, stream)]
    grad, wide = randn(rows, size, seed=5).to(device, stream), working_dtype(stream)
    factors = reference.dropout_factors(
        rows, size, reference.mask_threshold(p), SEED, 7, torch.float64
    )
    formula = torch_formula(form, p, 7, factors.to(device))
    key = SEED.to(device)
    ours = gradients(
        lambda x, r, w, b: form(x, r, w, b, EPS, p, key, 7),
        [*tensors[:2], *(t.to(wide) for t in tensors[2:])],
        grad,
    )
    own = gradients(formula, tensors, grad)
    exact = gradients(formula, [t.double() for t in tensors], grad)
    assert_as_good_as_torch(ours[0], own[0], exact[0])
    for name, *values in zip(
        ["x", "residual", "weight", "bias"], ours[1], own[1], exact[1], strict=True
    ):
        assert_as_good_as_torch(*values, f"gradient of {name}")


@pytest.mark.parametrize("rows, size", SHAPES)
@pytest.mark.parametrize("branch, stream", STREAMS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(device, form, branch, stream, rows, size):
    if rows > 10_000 and REDUCED and branch != torch.bfloat16:
        pytest.skip("thousands of rows of every dtype take the emulator a minute")
    check_rows(device, form, branch, stream, rows, size)
