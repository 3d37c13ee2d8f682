"""Dropout, addition and LayerNorm in one operation: values and gradients against torch's own
formula with the same mask, and what the arguments must be."""

import pytest
import torch
from back_ends import assert_same_up_to_order
from norm_cases import DTYPES, EPS, FORMS, SEED, gradients, inputs, torch_formula
from strategies import assert_as_good_as_torch, case_id, inside_larger_buffer, naming, randn

from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout, dropout_add_layer_norm
from spanbert_ext.ops.reference import dropout as reference
from spanbert_ext.ops.registration import working_dtype

SIZES = [(0, 8), (1, 3), (3, 31), (67, 64), (130, 17), (5, 768), (64, 5), (2, 8193)]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("branch, stream", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(backend, form, branch, stream, p):
    wide, formula = working_dtype(stream), torch_formula(form, p, 7)

    def ours(x, residual, weight, bias):
        return form(x, residual, weight.to(wide), bias.to(wide), EPS, p, SEED, 7)

    for rows, size in SIZES:
        # A single small case is a matter of luck for torch as for us.
        runs = []
        for seed in range(0, 200 if rows * size < 2000 else 10, 10):
            tensors = inputs(rows, size, branch, stream, seed)
            grad = randn(rows, size, seed=seed + 5).to(stream)
            wide_tensors = [*tensors[:2], *(t.to(wide) for t in tensors[2:])]
            run = gradients(ours, wide_tensors, grad), gradients(formula, tensors, grad)
            runs.append((*run, gradients(formula, [t.double() for t in tensors], grad)))
        assert runs[0][0][0].dtype == stream
        assert [g.dtype for g in runs[0][0][1]] == [branch, stream, wide, wide]
        values = [torch.cat([value for value, _ in own]) for own in zip(*runs, strict=True)]
        assert_as_good_as_torch(*values, f"value at {rows} x {size}")
        for i, name in enumerate(("x", "residual", "weight", "bias")):
            grads = [torch.cat([g[i] for _, g in own]) for own in zip(*runs, strict=True)]
            assert_as_good_as_torch(*grads, f"gradient of {name} at {rows} x {size}")


def test_by_hand(backend):
    """x + residual = (1, 3) is normalised to (-1, 1); with everything dropped (0, 4) is."""
    x, residual = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 4.0]])
    weight, bias = torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0])
    for p in (0.0, 1.0):
        out = dropout_add_layer_norm(x, residual, weight, bias, 0.0, p, SEED)
        assert out.tolist() == [[8.0, 23.0]]
    zeros = add_layer_norm_dropout(x, residual, weight, bias, 0.0, 1.0, SEED)
    assert zeros.tolist() == [[0.0, 0.0]]
    one = dropout_add_layer_norm(x[:, :1], residual[:, :1], weight[:1], bias[:1], EPS)
    assert one.tolist() == [[10.0]]


def test_half_is_exactly_doubled(backend):
    rows = torch.zeros(4, 100)
    out = add_layer_norm_dropout(rows, rows, torch.ones(100), torch.ones(100), EPS, 0.5, SEED)
    assert out.unique().tolist() == [0.0, 2.0]


def test_the_stream_alone_carries_the_gradient_of_what_is_dropped(backend):
    x, residual = (randn(3, 40, seed=s).requires_grad_() for s in (1, 2))
    parameters = torch.ones(40), torch.zeros(40)
    out = dropout_add_layer_norm(x, residual, *parameters, EPS, 0.3, SEED, 2)
    grad_x, grad_residual = torch.autograd.grad(out, (x, residual), randn(3, 40, seed=3))
    threshold = reference.mask_threshold(0.3)
    factors = reference.dropout_factors(3, 40, threshold, SEED, 2, torch.float32)
    torch.testing.assert_close(grad_x, grad_residual * factors, rtol=1e-6, atol=1e-7)
    assert torch.equal(grad_x == 0, factors == 0) and 0 < (factors == 0).sum() < 60


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 30.0, 1e4, 1e15])
def test_extreme_scales(backend, scale):
    tensors = [t * (scale if i < 2 else 1) for i, t in enumerate(inputs(9, 40, *DTYPES[0]))]
    formula = torch_formula(dropout_add_layer_norm, 0.1, 0)
    exact = formula(*(t.double() for t in tensors))
    ours = dropout_add_layer_norm(*tensors, EPS, 0.1, SEED)
    assert_as_good_as_torch(ours, formula(*tensors), exact)


def test_constant_rows_stay_finite_and_not_a_number_stays_in_its_row(backend):
    x, residual = torch.full((3, 40), 2.0), torch.full((3, 40), 3.0)
    x[1, 7] = float("nan")
    leaves = [t.requires_grad_() for t in (x, residual)]
    out = dropout_add_layer_norm(*leaves, torch.ones(40), torch.full((40,), 0.5), EPS)
    grads = torch.autograd.grad(out, leaves, randn(3, 40))
    for values in (out, *grads):
        assert values.isnan().all(1).tolist() == [False, True, False]
        assert bool(values[::2].isfinite().all())
    assert bool((out[::2] == 0.5).all())


def test_gradcheck(backend):
    x, residual = (randn(5, 6, dtype=torch.float64, seed=s).requires_grad_() for s in (1, 2))
    weight, bias = (randn(6, dtype=torch.float64, seed=s).requires_grad_() for s in (3, 4))
    for form in FORMS:
        for p in (0.0, 0.3):
            assert torch.autograd.gradcheck(
                lambda *t, form=form, p=p: form(*t, 1e-5, p, SEED, 1), (x, residual, weight, bias)
            )


@pytest.mark.parametrize("branch, stream", DTYPES)
def test_threads_repeats_and_views_give_the_same_bits(core, branch, stream):
    x, residual, weight, bias = inputs(700, 96, branch, stream)
    wide = working_dtype(stream)
    tensors = [x, residual, weight.to(wide), bias.to(wide)]

    def everything(values):
        leaves = [t.detach().requires_grad_() for t in values]
        out = dropout_add_layer_norm(*leaves, EPS, 0.1, SEED, 3)
        return out, *torch.autograd.grad(out, leaves, residual)

    one = everything(tensors)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(tensors), strict=True))
    torch.set_num_threads(1)
    for offset in (1, 5):
        views = [inside_larger_buffer(t, offset) for t in tensors]
        for value, expected in zip(everything(views), one, strict=True):
            assert_same_up_to_order(core, value, expected)


def test_compiles_as_one_graph(core):

    def step(x, residual, weight, bias):
        seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
        return dropout_add_layer_norm(x, residual, weight, bias, EPS, 0.1, seed, 3)

    tensors = [t.requires_grad_() for t in inputs(12, 24, *DTYPES[0])]
    torch.manual_seed(1)
    expected = step(*tensors)
    torch.manual_seed(1)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors)
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(out.square().sum(), tensors) for out in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_second_derivatives_are_refused(core):
    x = randn(3, 4).requires_grad_()
    out = dropout_add_layer_norm(x, x.detach(), torch.ones(4), torch.ones(4), EPS)
    with pytest.raises(RuntimeError, match="once, not twice"):
        grad = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        torch.autograd.grad(grad[0].sum(), x)


GOOD = {
    "x": torch.zeros(3, 4),
    "residual": torch.zeros(3, 4),
    "weight": torch.ones(4),
    "bias": torch.ones(4),
    "eps": EPS,
    "p": 0.1,
    "seed": SEED,
}


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "x must be float32.*int64", {"x": torch.zeros(3, 4).long()}),
        (TypeError, "x must be torch.float32.*float64", {"x": torch.zeros(3, 4).double()}),
        (TypeError, "x must be torch.bfloat16.*float16",
         {"x": torch.zeros(3, 4).half(), "residual": torch.zeros(3, 4).bfloat16()}),
        (ValueError, naming("x", "(3, 4)", "(4, 3)"), {"x": torch.zeros(4, 3)}),
        (ValueError, "x .*contiguous", {"x": torch.zeros(4, 3).t()}),
        (ValueError, "residual .*2 dimension", {"residual": torch.zeros(12)}),
        (ValueError, "residual .*contiguous", {"residual": torch.zeros(4, 3).t()}),
        (ValueError, "x must be on meta", {"residual": torch.zeros(3, 4, device="meta")}),
        (ValueError, "weight", {"weight": torch.ones(3)}),
        (TypeError, "weight.*bfloat16", {"weight": torch.ones(4).bfloat16()}),
        (TypeError, "bias.*float64", {"bias": torch.ones(4).double()}),
        (ValueError, "seed is needed", {"seed": None}),
        (TypeError, "seed must be torch.int64.*int32", {"seed": SEED.int()}),
        (ValueError, r"seed.*\(1,\).*\(2,\)", {"seed": torch.zeros(2).long()}),
        (ValueError, r"dropout probability must lie in \[0, 1\]; got 1.5", {"p": 1.5}),
        (ValueError, "dropout probability.*got nan", {"p": float("nan")}),
        (ValueError, r"site must lie in \[0, 2\^32\); got -1", {"site": -1}),
    ],
    ids=case_id,
)  # fmt: skip
def test_bad_arguments_are_named(backend, error, message, change):
    with pytest.raises(error, match=message):
        dropout_add_layer_norm(**{**GOOD, **change})
