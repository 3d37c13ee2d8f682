"""The row operation of the vocabulary loss on every device: every way a row is read, alignment, and
sizes beyond 2**31 elements."""

import pytest
import torch
import torch.nn.functional as F
from device_cases import DTYPES
from row_cases import SHAPES, check_alignment, check_rows, row_case
from strategies import randn

from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary, stride", SHAPES)
def test_rows_are_torch(device, dtype, vocabulary, stride):
    check_rows(device, dtype, vocabulary, stride)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_vocabulary(device, dtype):
    """XLM-R's."""
    check_rows(device, dtype, 250_002, 250_008, rows=7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 3])
def test_rows_of_other_heads(device, dtype, heads):
    check_rows(device, dtype, 517, 520, heads, rows=1500)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary, stride", [(1000, 1024), (28996, 29056), (70_000, 70_016)])
def test_alignment_changes_no_bit(device, dtype, vocabulary, stride):
    check_alignment(device, dtype, vocabulary, stride)


def test_repeats_give_the_same_bits(device):
    case = [t.to(device) for t in row_case(torch.bfloat16, 2000, 28996, 29056, 2)]
    results = []
    for _ in range(3):
        logits = case[0].clone()
        results.append((*cross_entropy_rows_(logits, *case[1:], 28996), logits))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_more_than_2_to_the_31_logits(device):
    """On a CPU nearly all of them are memory that nobody touches: ignored rows are not read."""
    rows, vocabulary = 75_000, 29_056
    assert rows * vocabulary > 2**31
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16, device=device)
    logits[-3:] = randn(3, vocabulary, dtype=torch.bfloat16, seed=1).to(device)
    targets = torch.full((rows,), -100, device=device)
    targets[-3:] = torch.tensor([5, 0, vocabulary - 1], device=device)
    expected = F.cross_entropy(logits[-3:].float(), targets[-3:], reduction="none")
    bias = torch.zeros(1, vocabulary, device=device)
    losses, _ = cross_entropy_rows_(logits, targets, bias, None, None, vocabulary)
    assert torch.allclose(losses[-3:], expected, rtol=1e-5) and not losses[:-3].any()
    if device == "cuda":
        scale = torch.zeros(rows, device=device)
        scale[-3:] = 1
        _, grad_bias = cross_entropy_rows_(logits, targets, bias, None, scale, vocabulary)
        assert torch.allclose(grad_bias[0], logits[-3:].float().sum(0), atol=1e-6)
        assert not logits[:-3].any()


def test_confident_rows_never_cost_less_than_nothing(device):
    """The target's power is rounded, its logarithm must not fall below the target."""
    single = torch.full((1, 1), -2.7, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    assert cross_entropy_rows_(single, zero, None, None, None, 1)[0].tolist() == [0]
    logits = randn(400, 9, seed=1)
    targets = torch.arange(400) % 9
    logits[torch.arange(400), targets] = 25
    exact = F.cross_entropy(logits.double(), targets, reduction="none")
    arguments = (logits.to(device), targets.to(device), None, None, None, 9)
    losses = cross_entropy_rows_(*arguments)[0].cpu()
    assert bool((losses >= 0).all()) and float((losses - exact).abs().max()) < 3e-7
    logits[7, 3] = float("nan")
    losses = cross_entropy_rows_(logits.to(device), *arguments[1:])[0].cpu()
    assert losses.isnan().nonzero().flatten().tolist() == [7]
