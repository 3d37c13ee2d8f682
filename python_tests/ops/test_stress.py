"""Random shapes, options, alignments and numbers for every operation of the core against plain
torch or the reference, until the time is up.

SPANBERT_STRESS_SECONDS of each operation on each device (1 unless set), from the case
SPANBERT_STRESS_SEED on (1 unless set). A failure names its case: that seed begins with it.
"""

import os
import random
import time

import pytest
import torch
from back_ends import mode
from device_cases import DTYPES
from norm_cases import DTYPES as STREAMS
from norm_cases import EPS, FORMS, SEED, gradients, inputs, torch_formula
from row_cases import row_case, shifted, torch_rows
from sbo_cases import make_head, padded_formula, run
from strategies import POOL, assert_same_batch, make_masker, marks_for, randn, rewound, word_text

from spanbert_ext.masking.settings import SCHEMES
from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.registration import working_dtype

SECONDS = float(os.environ.get("SPANBERT_STRESS_SECONDS", 1))
FIRST = int(os.environ.get("SPANBERT_STRESS_SEED", 1))


def check_close(ours, own, exact, dtype, name):
    """Finds what is wrong, not what is inexact, which has tests of its own: the error may be eight
    times torch's own and a rounding, since one small case is a matter of luck. LayerNorm over a
    few values has hardly a gradient but rounding, so those are left out."""
    assert ours.shape == exact.shape, name
    if exact.numel() == 0:
        return
    ours, own, exact = ours.double().cpu(), own.double().cpu(), exact.double().cpu()
    unit = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    bound = 8 * ((own - exact).abs().max() + unit * exact.abs().max())
    assert (ours - exact).abs().max() <= bound, f"{name} differs"


def make_batch(rng, device, rows, width):
    """A masked batch and its masker, of any options."""
    shortest = rng.randint(1, 6)
    mask_prob = rng.choice([0.0, 0.5, 0.8, 1.0])
    masker = make_masker(
        seed=rng.getrandbits(64),
        mask_ratio=rng.choice([1e-6, 0.15, 0.5, 1.0]),
        geometric_p=rng.choice([0.01, 0.2, 1.0]),
        min_words=shortest,
        max_words=shortest + rng.choice([0, 1, 9, 30]),
        replacement=rng.choice(["span", "piece"]),
        mask_prob=mask_prob,
        random_prob=rng.choice([0.0, 0.5, 1.0]) * (1 - mask_prob),
        max_span_targets=rng.choice([1, 3, 15]),
        random_tokens=rng.choice([None, [7], list(POOL)]),
        scheme=rng.choice(["span", "span", *SCHEMES]),
        endpoints=rng.choice(["external", "internal"]),
    )
    ids = word_text(rows * width, rng.getrandbits(32)).view(rows, width)
    ids[torch.rand(ids.shape, generator=torch.Generator().manual_seed(rows)) < 0.05] = 0
    ids = ids.to(rng.choice([torch.int32, torch.int64]))
    options = {"epoch": rng.randint(0, 9), **marks_for(masker, ids, rng.randint(0, 9))}
    if rng.random() < 0.5:
        options["lengths"] = torch.tensor(
            [rng.randint(0, width) for _ in range(rows)], dtype=ids.dtype
        )
    there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return masker, masker(ids.to(device), **there), (ids, options)


def check_mask(rng, device):
    rows = rng.choice([0, 1, 3, rng.randint(1, 40), rng.randint(1, 600)])
    width = rng.choice([1, 63, 64, 65, rng.randint(1, 900)]) if rows < 50 else rng.randint(1, 64)
    masker, batch, (ids, options) = make_batch(rng, device, rows, width)
    with mode("reference"):
        assert_same_batch(batch, rewound(masker)(ids, **options))


def check_norm(rng, device):
    (branch, stream), form = rng.choice(STREAMS), rng.choice(FORMS)
    rows = rng.choice([0, 1, rng.randint(1, 40), rng.randint(1, 700)])
    size = rng.choice(
        [3, 8, 64, 768, rng.randint(3, 300), rng.randint(3, 5000 // max(rows, 1) + 9)]
    )
    p, offset, wide = rng.choice([0.0, 0.1, 0.9]), rng.randint(0, 8), working_dtype(stream)
    tensors = inputs(rows, size, branch, stream, rng.getrandbits(20))
    grad = randn(rows, size, seed=rng.getrandbits(20)).to(stream)

    def ours(x, residual, weight, bias):
        return form(shifted(x, offset), residual, weight, bias, EPS, p, SEED.to(device), 3)

    given = [*tensors[:2], *(t.to(wide) for t in tensors[2:])]
    value, found = gradients(ours, [t.to(device) for t in given], grad.to(device))
    assert torch.equal(value, gradients(ours, [t.to(device) for t in given], grad.to(device))[0])
    formula = torch_formula(form, p, 3)
    own = gradients(formula, tensors, grad)
    exact = gradients(formula, [t.double() for t in tensors], grad)
    check_close(value, own[0], exact[0], stream, "value")
    for i, name in enumerate(("x", "residual", "weight", "bias")):
        check_close(found[i], own[1][i], exact[1][i], stream, f"gradient of {name}")


def check_loss(rng, device):
    dtype, heads, rows = rng.choice(DTYPES), rng.randint(1, 3), rng.randint(3, 90)
    vocabulary = rng.choice([1, 2, 8, rng.randint(1, 100), rng.randint(1, 4000)])
    if rng.random() < 0.05:
        rows, vocabulary = 3, rng.choice([28_996, 65_536, 250_002])
    stride = vocabulary + rng.choice([0, 1, rng.randint(0, 20), -vocabulary % 8])
    logits, targets, bias, head, scale = row_case(dtype, rows, vocabulary, stride, heads)
    offset = rng.randint(0, 8)

    def ours():
        rows_here = shifted(logits, offset).to(device)
        there = (t.to(device) for t in (targets, bias, head, scale))
        return *cross_entropy_rows_(rows_here, *there, vocabulary), rows_here

    losses, grad_bias, grad = ours()
    assert all(torch.equal(a, b) for a, b in zip((losses, grad_bias, grad), ours(), strict=True))
    values, wide = logits[:, :vocabulary], working_dtype(dtype)
    own = torch_rows(values.to(wide), targets, bias, head, scale)
    exact = torch_rows(values.double(), targets, bias.double(), head, scale.double())
    check_close(losses, own[0], exact[0], wide, "losses")
    check_close(grad[:, :vocabulary], own[1].to(dtype), exact[1], dtype, "gradient of the logits")
    check_close(grad_bias, own[2], exact[2], dtype, "gradient of the bias")
    assert not bool(grad[:, vocabulary:].any())


def check_head(rng, device):
    dtype, size = rng.choice(DTYPES), rng.choice([16, 64, rng.randint(16, 200)])
    slots = rng.choice([1, 3, 15, 20])
    batch = make_batch(rng, device, rng.randint(1, 12), rng.randint(1, 120))[1]
    module = make_head(size, dtype=dtype, max_span_targets=slots).to(device)
    if batch.max_span_targets > slots:
        return
    hidden = randn(batch.labels.numel(), size, dtype=dtype, seed=rng.getrandbits(20)).to(device)
    grad = randn(batch.sbo_ids.shape[0], size, dtype=dtype, seed=rng.getrandbits(20)).to(device)
    ours, again = (run(lambda h, b, m: m(h, b), hidden, batch, module, grad) for _ in range(2))
    own = run(padded_formula, hidden, batch, module, grad)
    exact = run(padded_formula, hidden.double(), batch, module.double(), grad.double())
    for name, value in ours.items():
        assert torch.equal(value, again[name]), name
        check_close(value, own[name], exact[name], dtype, name)


OPERATIONS = {"mask": check_mask, "norm": check_norm, "loss": check_loss, "head": check_head}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_random_cases(device, operation):
    end, case = time.monotonic() + SECONDS, FIRST
    while case == FIRST or time.monotonic() < end:
        try:
            OPERATIONS[operation](random.Random(f"{operation} {case}"), device)
        except Exception as error:
            raise AssertionError(f"SPANBERT_STRESS_SEED={case} begins with this case") from error
        case += 1
