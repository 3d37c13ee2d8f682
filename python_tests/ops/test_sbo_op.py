"""The span boundary head as one operation: what it adds to the formula that test_sbo checks."""

import pytest
import torch
from sbo_cases import DTYPES, framed_batch, make_head, padded_formula, run
from strategies import assert_as_good_as_torch, naming, randn

from spanbert_ext.ops import backend
from spanbert_ext.ops.sbo_head import PARAMETERS, sbo_head

INDEX = ("span_left", "span_right", "target_spans", "target_offsets", "sbo_ids")


def arguments(size=6, dtype=torch.float32, **changes) -> dict:
    """Those of `sbo_head`, with parameters that take gradients."""
    batch = framed_batch(2, 30).used()
    head = make_head(size, position_size=5, dtype=dtype)
    named = dict(head.named_parameters())
    return {
        "hidden": randn(60, size, dtype=dtype, seed=1).requires_grad_(),
        **{name: getattr(batch, name) for name in INDEX},
        "parameters": tuple(named[name] for name in PARAMETERS),
        "eps": 1e-6,
        "dtype": dtype,
        "capacity": batch.sbo_ids.shape[0],
        **changes,
    }


def values_and_gradients(given, grad=None):
    rows = sbo_head(**given)
    grad = randn(*rows.shape, dtype=rows.dtype, seed=2) if grad is None else grad
    leaves = (given["hidden"], *given["parameters"])
    return [rows.detach(), *torch.autograd.grad(rows, leaves, grad, retain_graph=True)]


def test_gradcheck(backend):
    given = arguments(dtype=torch.float64)

    def call(hidden, *parameters):
        return sbo_head(**{**given, "hidden": hidden, "parameters": parameters})

    assert torch.autograd.gradcheck(call, (given["hidden"], *given["parameters"]))


def test_a_graph_may_be_run_backwards_twice(core):
    """Nothing that was saved is written to."""
    given = arguments()
    rows, leaves = sbo_head(**given), (given["hidden"], *given["parameters"])
    once, again = (
        torch.autograd.grad(rows, leaves, torch.ones_like(rows), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("product", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_dtypes_of_products(core, monkeypatch, dtype, product):
    """Whichever this CPU would take, 16-bit rows are right with products of either dtype."""
    seen = []

    def chosen(device, dtype):
        seen.append(dtype)
        return product or dtype

    monkeypatch.setattr(backend, "product_dtype", chosen)
    batch, hidden = framed_batch(), randn(240, 24, dtype=dtype, seed=1)
    grad = randn(batch.sbo_ids.shape[0], 24, dtype=dtype, seed=2)
    ours = run(lambda h, b, m: m(h, b), hidden, batch, make_head(dtype=dtype), grad)
    own = run(padded_formula, hidden, batch, make_head(dtype=dtype), grad)
    wide = make_head(dtype=dtype).double()
    exact = run(padded_formula, hidden.double(), batch, wide, grad.double())
    assert dtype in seen
    for name, value in ours.items():
        assert value.dtype == dtype
        assert_as_good_as_torch(value, own[name], exact[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_may_stay_wide(backend, dtype):
    """LayerNorm parameters of their own dtype, as a mixed-precision head keeps them."""
    given = arguments(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    mixed = tuple(
        p.detach().to(wide).requires_grad_() if "norm" in name else p
        for name, p in zip(PARAMETERS, given["parameters"], strict=True)
    )
    found = values_and_gradients({**given, "parameters": mixed})
    expected = values_and_gradients(given)
    assert [g.dtype for g in found[2:]] == [p.dtype for p in mixed]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.to(b.dtype), b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("bad", [1e30, float("inf"), float("nan")])
def test_gradients_of_rows_without_a_target_go_nowhere(backend, bad):
    given = arguments(capacity=40)
    targets = given["sbo_ids"].shape[0]
    given["sbo_ids"] = given["sbo_ids"].clone()
    given["sbo_ids"][[0, 3]] = -100
    empty = torch.ones(40, dtype=torch.bool)
    empty[:targets] = given["sbo_ids"] == -100
    assert targets < 40 and int(empty.sum()) >= 42 - targets
    grad = randn(40, 6, seed=3)
    quiet = values_and_gradients(given, torch.where(empty.unsqueeze(1), 0, grad))
    loud = values_and_gradients(given, torch.where(empty.unsqueeze(1), bad, grad))
    assert not bool(quiet[0][empty].any()) and bool(quiet[0][~empty].any())
    assert all(torch.equal(a, b) for a, b in zip(quiet, loud, strict=True))


def test_autocast_does_not_reach_the_products(core, monkeypatch):
    """With products in fp32 only the rows are rounded; gradients keep the parameters' digits."""
    monkeypatch.setattr(backend, "product_dtype", lambda device, dtype: torch.float32)
    given = arguments()
    plain = values_and_gradients(given)
    with torch.autocast("cpu", torch.bfloat16):
        given["dtype"] = torch.bfloat16
        grad = randn(*plain[0].shape, seed=2)
        cast = values_and_gradients(given, grad.bfloat16())
    assert torch.equal(cast[0], plain[0].bfloat16())
    exact = values_and_gradients({**given, "dtype": torch.float32}, grad.bfloat16().float())
    assert all(torch.equal(a, b) for a, b in zip(cast[1:], exact[1:], strict=True))


def test_compiles_under_autocast(core):
    batch, head = framed_batch(), make_head()
    hidden, grad = randn(240, 24, seed=1), randn(batch.sbo_ids.shape[0], 24, seed=2)

    def under_autocast(model):
        def call(h, b, _):
            with torch.autocast("cpu", torch.bfloat16):
                return model(h, b)

        return call

    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    eager = run(under_autocast(head), hidden, batch, head, grad)
    traced = run(under_autocast(compiled), hidden, batch, head, grad)
    assert traced["rows"].dtype == torch.bfloat16
    for name, value in traced.items():
        eps = torch.finfo(value.dtype).eps
        assert torch.allclose(value, eager[name], atol=4 * eps * float(eager[name].abs().max()))


def test_the_backward_pass_moves_nothing_twice(core):
    """Every product writes where its result belongs: no copies, no masks, no padding, no sums of
    parts."""
    given = arguments()
    rows, leaves = sbo_head(**given), (given["hidden"], *given["parameters"])
    grad = torch.ones_like(rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(rows, leaves, grad)
    ran = {event.key for event in profile.key_averages()}
    assert "aten::mm" in ran
    moved = {f"aten::{n}" for n in ("copy_", "add", "add_", "where", "cat", "constant_pad_nd")}
    assert not ran & moved


def test_second_derivatives_are_refused(core):
    given = arguments()
    with pytest.raises(RuntimeError, match="once"):
        grad = torch.autograd.grad(
            sbo_head(**given).square().sum(), given["hidden"], create_graph=True
        )
        torch.autograd.grad(grad[0].sum(), given["hidden"])


def with_parameter(given, name, value) -> dict:
    parameters = list(given["parameters"])
    parameters[PARAMETERS.index(name)] = value
    return {**given, "parameters": tuple(parameters)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_wrong_shape_or_kind(backend, name):
    given = arguments()
    value = dict(zip(PARAMETERS, given["parameters"], strict=True))[name].detach()
    wrong = "linear1.weight" if name == "position_embeddings.weight" else name  # E is that of both
    with pytest.raises(ValueError, match=wrong):
        sbo_head(**with_parameter(given, name, torch.cat([value, value], -1)))
    with pytest.raises(TypeError, match=name):
        sbo_head(**with_parameter(given, name, value.long()))
    with pytest.raises(ValueError, match=f"{name}.*cpu.*meta"):
        sbo_head(**with_parameter(given, name, value.to("meta")))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"hidden": torch.zeros(60)}, ValueError, "hidden"),
        ({"hidden": torch.zeros(6, 60).t()}, ValueError, "hidden.*contiguous"),
        ({"span_right": torch.zeros(1).long()}, ValueError, "span_right"),
        ({"target_spans": torch.zeros(9)}, TypeError, "target_spans.*float32"),
        ({"target_offsets": torch.zeros(1).long()}, ValueError, "target_offsets"),
        ({"sbo_ids": torch.zeros(1).long()}, ValueError, "sbo_ids"),
        ({"capacity": 1}, ValueError, "capacity"),
    ],
)
def test_bad_arguments(backend, change, error, message):
    with pytest.raises(error, match=message):
        sbo_head(**{**arguments(), **change})


def test_a_head_of_another_dtype(backend):
    """Without autocast, rows and weights of two dtypes are a mistake."""
    with pytest.raises(TypeError, match=naming("torch.float32", "torch.bfloat16")):
        make_head()(torch.zeros(240, 24, dtype=torch.bfloat16), framed_batch())
