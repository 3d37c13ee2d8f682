"""The calls that show planted faults: an operation in the emulator against the CPU's own code.

python fault_calls.py NAME: prints "differs" and exits with 1 where numbers or masks differ.
"""

import os
import sys

import torch
import torch.nn.functional as F
from strategies import make_masker, word_text

from spanbert_ext import SBOHead
from spanbert_ext.ops import backend
from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.dropout_norm import dropout_add_layer_norm


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(rows: int = 70, size: int = 768):
    leaves = [
        randn(rows, size),
        randn(rows, size, seed=1),
        randn(size, seed=2),
        randn(size, seed=3),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = dropout_add_layer_norm(*leaves, 1e-5, 0.1, torch.tensor([5]), 3)
    return out, *torch.autograd.grad(out, leaves, randn(rows, size, seed=4))


def norm_many():
    """More chunks of rows than one lap of the sums adds."""
    return norm(16 * 40 + 5, 64)


def mask(rows: int = 40, width: int = 200):
    ids = word_text(rows * width, seed=1).view(rows, width)
    batch = make_masker(seed=7)(ids, sample_ids=torch.arange(rows))
    return batch.input_ids, batch.labels, batch.target_positions, batch.span_left, batch.span_right


def mask_many():
    """More sequences than the block of the running sums has threads."""
    return mask(3000, 16)


def lengths():
    """Two rows reach into the next one."""
    ids = torch.full((4, 64), 9)
    if os.environ["SPANBERT_EXT_BACKEND"] == "native":
        return ()
    try:
        make_masker()(ids, lengths=torch.tensor([200, 64, 64, 64]), sample_ids=torch.arange(4))
    except RuntimeError as error:
        if "sequence bounds" in str(error):
            return ()
        raise
    return (torch.tensor(float("nan")),)  # nobody refused it


def loss(vocabulary: int = 517, stride: int = 520):
    logits = torch.zeros(41, stride)
    logits[:, :vocabulary] = 4 * randn(41, vocabulary)
    bias = randn(2, vocabulary, seed=1)
    head, targets = torch.arange(41) % 2, torch.arange(41) * 12 % vocabulary
    outputs = cross_entropy_rows_(logits, targets, bias, head, torch.ones(41), vocabulary)
    return *outputs, logits


def loss_huge():
    """More than 2^31 logits; rows without a target are never read, so nobody touches the memory."""
    rows, vocabulary = 75_000, 29_056
    logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16)
    logits[-3:] = randn(3, vocabulary).bfloat16()
    targets = torch.full((rows,), -100)
    targets[-3:] = 5
    if os.environ["SPANBERT_EXT_BACKEND"] == "native":
        return (F.cross_entropy(logits[-3:].float(), targets[-3:], reduction="none"),)
    return (cross_entropy_rows_(logits, targets, None, None, None, vocabulary)[0][-3:],)


def head():
    torch.manual_seed(0)
    module = SBOHead(64, max_span_targets=15)
    ids = word_text(40 * 200, seed=1).view(40, 200)
    batch = make_masker(seed=7)(ids, sample_ids=torch.arange(40))
    hidden = randn(40, 200, 64).requires_grad_()
    out = module(hidden, batch)
    leaves = (hidden, *module.parameters())
    return out, *torch.autograd.grad(out, leaves, randn(*out.shape, seed=1))


def main(name: str) -> int:
    results = {}
    for mode in ("native", "emulated"):
        os.environ["SPANBERT_EXT_BACKEND"] = mode
        backend.reset()
        results[mode] = globals()[name]()
    for found, wanted in zip(results["emulated"], results["native"], strict=name != "lengths"):
        scale = float(wanted.double().abs().max()) or 1.0
        gap = float((found.double() - wanted.double()).abs().max())
        if not gap <= 1e-5 * scale:
            print(f"differs by {gap:.2g} of {scale:.2g}")
            return 1
    if name == "lengths" and results["emulated"]:
        print("differs: rows that overlap were masked")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
