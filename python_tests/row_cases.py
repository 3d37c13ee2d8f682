"""The row operation of the vocabulary loss against torch, on any device."""

import torch
import torch.nn.functional as F
from strategies import assert_as_good_as_torch, classes, randn

from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.registration import working_dtype

# Vocabulary and row stride: a row that registers hold (BERT cased, uncased with a bias that needs
# padding), one that is read twice, one shorter than 16 bytes, and rows at odd addresses.
SHAPES = [(28996, 29056), (30522, 30592), (70_001, 70_016), (3, 8), (517, 520), (1009, 1009)]


def row_case(dtype, rows, vocabulary, stride, heads):
    """Logits [rows, stride] whose padding says nothing, targets with ignored rows, bias, head and
    scale."""
    wide = working_dtype(dtype)
    logits = torch.full((rows, stride), float("nan"), dtype=dtype)
    logits[:, :vocabulary] = 4 * randn(rows, vocabulary, dtype=dtype, seed=1)
    targets = classes(rows, vocabulary)
    targets[::5] = -100
    logits[1, :vocabulary] += 300  # far from 0
    logits[2, 1:vocabulary:2] = float("-inf")
    targets[2] = 0
    head = torch.arange(rows) * heads // rows
    return (
        logits,
        targets,
        randn(heads, vocabulary, dtype=wide, seed=2),
        head,
        randn(rows, dtype=wide, seed=3).abs(),
    )


def torch_rows(logits, targets, bias, head, scale):
    """Losses, gradient of the logits and of the bias by torch."""
    leaf, bias = logits.clone().requires_grad_(), bias.clone().requires_grad_()
    losses = F.cross_entropy(leaf + bias[head], targets, ignore_index=-100, reduction="none")
    return losses.detach(), *torch.autograd.grad((losses * scale).sum(), (leaf, bias))


def check_rows(device, dtype, vocabulary, stride, heads=2, rows=41):
    case = [t.to(device) for t in row_case(dtype, rows, vocabulary, stride, heads)]
    logits, (targets, bias, head, scale) = case[0].clone(), case[1:]
    forward = cross_entropy_rows_(logits, targets, bias, head, None, vocabulary)[0]
    assert torch.equal(logits.nan_to_num(7), case[0].nan_to_num(7))
    losses, grad_bias = cross_entropy_rows_(logits, targets, bias, head, scale, vocabulary)
    if device == "cuda":
        assert torch.equal(losses, forward)
    assert not bool(logits[:, vocabulary:].any()) and not bool(logits[targets == -100].any())
    assert not bool(losses[targets == -100].any())
    values, wide = case[0][:, :vocabulary], working_dtype(dtype)
    own = torch_rows(values.to(wide), targets, bias, head, scale)
    exact = torch_rows(values.double(), targets, bias.double(), head, scale.double())
    assert_as_good_as_torch(losses, own[0], exact[0], "losses")
    assert_as_good_as_torch(logits[:, :vocabulary], own[1].to(dtype), exact[1], "logits")
    # The bias gradient sums what was stored.
    stored = [torch.zeros_like(bias, dtype=kind) for kind in (wide, torch.float64)]
    for sums in stored:
        sums.index_add_(0, head, logits[:, :vocabulary].to(sums.dtype))
    assert_as_good_as_torch(grad_bias, *stored, "bias")


def shifted(values: torch.Tensor, elements: int) -> torch.Tensor:
    """The same values so many elements behind the beginning of a buffer."""
    buffer = values.new_zeros(values.numel() + elements)
    buffer[elements:] = values.reshape(-1)
    return buffer[elements:].view(values.shape)


def check_alignment(device, dtype, vocabulary, stride):
    """Where a tensor begins decides how it is read, never a bit of the result."""
    logits, targets, bias, head, scale = (
        t.to(device) for t in row_case(dtype, 23, vocabulary, stride, 2)
    )

    results = []
    for offsets in ((0, 0), (1, 0), (0, 1), (3, 2)):
        rows, shifted_bias = shifted(logits, offsets[0]), shifted(bias, offsets[1])
        outputs = cross_entropy_rows_(rows, targets, shifted_bias, head, scale, vocabulary)
        results.append((rows, *outputs))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
