"""SBOHead against the paper's formula, written out for every padded slot, and against the
reference."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from back_ends import refuses
from sbo_cases import DTYPES, framed_batch, make_head, padded_formula, run
from strategies import (
    CLS,
    PAD,
    SEP,
    assert_as_good_as_torch,
    make_masker,
    naming,
    randn,
)

from spanbert_ext import SBOHead
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.ops.reference import sbo as reference


def reference_formula(hidden, batch, head: SBOHead):
    index = (
        batch.span_left,
        batch.span_right,
        batch.target_spans,
        batch.target_offsets,
        batch.sbo_ids,
    )
    return reference.sbo_forward(
        hidden, *index, dict(head.named_parameters()), head.layer_norm1.eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", [padded_formula, reference_formula])
def test_head_is_the_formula(backend, dtype, formula):
    batch = framed_batch()
    head = make_head()
    hidden, grad = randn(240, 24, seed=1), randn(batch.sbo_ids.shape[0], 24, seed=2)
    rounded = make_head(dtype=dtype)
    exact_head = make_head(dtype=dtype).double()
    ours = run(lambda h, b, m: m(h, b), hidden.to(dtype), batch, rounded, grad.to(dtype))
    own = run(padded_formula, hidden.to(dtype), batch, make_head(dtype=dtype), grad.to(dtype))
    exact = run(formula, hidden.to(dtype).double(), batch, exact_head, grad.to(dtype).double())
    assert set(ours) == {"rows", "hidden", *dict(head.named_parameters())}
    assert int((batch.sbo_ids != -100).sum()) > 20
    for name, value in ours.items():
        assert value.dtype == dtype
        assert_as_good_as_torch(value, own[name], exact[name], name)


@pytest.mark.parametrize("rows, width", [(1, 9), (2, 17), (16, 64), (3, 200)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_ratio": 1.0},
        {"max_span_targets": 3},
        {"endpoints": "internal"},
        {"endpoints": "internal", "scheme": "word"},
        {"scheme": "piece"},
    ],
)
def test_sizes(backend, rows, width, options):
    batch = framed_batch(rows, width, seed=width, **options)
    hidden, grad = randn(rows * width, 24, seed=1), randn(batch.sbo_ids.shape[0], 24, seed=2)
    ours = run(lambda h, b, m: m(h, b), hidden, batch, make_head(), grad)
    own = run(padded_formula, hidden, batch, make_head(), grad)
    exact = run(padded_formula, hidden.double(), batch, make_head().double(), grad.double())
    for name, value in ours.items():
        assert_as_good_as_torch(value, own[name], exact[name], name)


def test_by_hand(backend):
    """H = 2, one span. LayerNorm of two numbers is (1, -1) or (-1, 1), so every step can be
    followed."""
    head = SBOHead(2, max_span_targets=2, position_size=1)
    with torch.no_grad():
        head.position_embeddings.weight.copy_(torch.tensor([[0.0], [10.0]]))
        # Column order: left (2), right (2), position (1). h = (left_0 + position, right_1).
        head.linear1.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]))
        head.linear2.weight.copy_(torch.tensor([[3.0, 0], [0, 3]]))
        head.layer_norm2.bias.copy_(torch.tensor([0.5, 0.25]))
    hidden = torch.tensor([[2.0, 7], [9, 9], [9, 9], [9, 9], [7, 5.0]])
    ids = torch.tensor([10, 11, 12, 13, 14])
    batch = MaskedBatch(
        input_ids=ids,
        labels=ids,
        target_positions=torch.tensor([1, 2, 3, 0]),
        target_ids=torch.tensor([11, 12, 13, -100]),
        target_spans=torch.tensor([0, 0, 0, 0]),
        target_offsets=torch.tensor([0, 1, 2, 0]),
        sbo_ids=torch.tensor([11, 12, -100, -100]),
        span_left=torch.tensor([0, 0]),
        span_right=torch.tensor([4, 0]),
        dropped_spans=torch.tensor([0]),
    )
    # Offset 0: (2, 5), second larger. Offset 1: (12, 5), first larger. Then gain 1, bias (0.5,
    # 0.25).
    expected = torch.tensor([[-0.5, 1.25], [1.5, -0.75], [0, 0], [0, 0]])
    assert torch.allclose(head(hidden, batch), expected, atol=1e-6)


def test_shapes_of_hidden_and_unused_rows(backend):
    batch, head = framed_batch(), make_head()
    hidden = randn(4, 60, 24, seed=1).requires_grad_()
    rows = head(hidden, batch)
    assert torch.equal(rows, head(hidden.view(240, 24), batch))
    unused = batch.sbo_ids == -100
    assert bool(unused.any()) and not bool(rows[unused].any())
    strided = torch.stack([hidden, hidden], dim=3)[..., 0]
    assert torch.equal(head(strided, batch), rows)
    # The gradient that arrives at unused rows goes nowhere, whatever it is.
    grad = torch.zeros_like(rows)
    grad[unused] = 1e6
    assert not bool(torch.autograd.grad(rows, hidden, grad)[0].any())


def test_only_boundaries_receive_gradient(backend):
    batch, head = framed_batch(), make_head()
    hidden = randn(240, 24, seed=1).requires_grad_()
    head(hidden, batch).square().sum().backward()
    touched = hidden.grad.any(1).nonzero().squeeze(1).tolist()
    real = batch.span_right > batch.span_left
    boundaries = set(batch.span_left[real].tolist()) | set(batch.span_right[real].tolist())
    assert set(touched) == boundaries
    assert not boundaries & set(batch.target_positions[batch.target_ids != -100].tolist())


@pytest.mark.parametrize(
    "ids", [[PAD] * 8, [CLS, SEP], [10], []], ids=["padding", "no text", "one", "empty"]
)
def test_batches_without_sbo_targets(backend, ids):
    """B6: zero rows, zero gradients that exist, nothing that is not finite."""
    batch = make_masker()(torch.tensor([ids], dtype=torch.int64))
    head = make_head()
    hidden = randn(len(ids), 24).requires_grad_()
    rows = head(hidden, batch)
    assert torch.equal(rows, torch.zeros(batch.sbo_ids.shape[0], 24))
    rows.sum().backward()
    for name, tensor in (("hidden", hidden), *head.named_parameters()):
        assert tensor.grad is not None and not bool(tensor.grad.any()), name


def test_dropped_spans_cost_nothing(backend):
    batch = framed_batch()
    kept = batch.target_spans < 5
    used = batch.target_ids != -100
    small = dataclasses.replace(
        batch,
        span_left=batch.span_left[:5],
        span_right=batch.span_right[:5],
        target_spans=batch.target_spans.clamp(max=4),
        sbo_ids=torch.where(kept, batch.sbo_ids, -100),
    )
    head, hidden = make_head(), randn(240, 24, seed=1)
    expected = torch.where((kept & used).unsqueeze(1), head(hidden, batch), 0)
    assert torch.allclose(head(hidden, small), expected, atol=1e-6)


def test_extra_capacity_changes_nothing(backend):
    batch, head, hidden = framed_batch(), make_head(), randn(240, 24, seed=1)
    wide = dataclasses.replace(
        batch,
        **{
            name: F.pad(getattr(batch, name), (0, 9), value=-100 if name.endswith("_ids") else 0)
            for name in (
                "target_positions",
                "target_ids",
                "target_spans",
                "target_offsets",
                "sbo_ids",
            )
        },
        span_left=F.pad(batch.span_left, (0, 4)),
        span_right=F.pad(batch.span_right, (0, 4)),
    )
    assert torch.allclose(head(hidden, wide)[:-9], head(hidden, batch), atol=1e-6)


def test_gradcheck(backend):
    batch = framed_batch(1, 24, max_span_targets=3)
    head = make_head(
        4, position_size=3, max_span_targets=3, layer_norm_eps=1e-6, dtype=torch.float64
    )
    hidden = randn(24, 4, dtype=torch.float64, seed=3).requires_grad_()
    names = [n for n, _ in head.named_parameters()]

    def call(hidden, *parameters):
        return torch.func.functional_call(
            head, dict(zip(names, parameters, strict=True)), (hidden, batch)
        )

    assert torch.autograd.gradcheck(call, (hidden, *head.parameters()))


def test_autocast(backend):
    """fp32 parameters and hidden states under bf16 autocast: as good as torch's own formula under
    autocast."""
    batch, hidden = framed_batch(), randn(240, 24, seed=1)
    grad = randn(batch.sbo_ids.shape[0], 24, seed=2)

    def under_autocast(formula):
        def call(h, b, m):
            with torch.autocast("cpu", torch.bfloat16):
                return formula(h, b, m)

        return call

    ours = run(under_autocast(lambda h, b, m: m(h, b)), hidden, batch, make_head(), grad)
    own = run(under_autocast(padded_formula), hidden, batch, make_head(), grad)
    exact = run(padded_formula, hidden.double(), batch, make_head().double(), grad.double())
    assert ours["rows"].dtype == torch.bfloat16
    for name in ours:
        # torch's autocast keeps LayerNorm's result in fp32, ours is rounded to bf16 once.
        slack = torch.finfo(torch.bfloat16).eps * exact[name].abs().max().item()
        mine, its = ((t[name].double() - exact[name]).abs().max().item() for t in (ours, own))
        assert mine <= 2 * its + slack, f"{name}: {mine:.3g} against {its:.3g}"


def test_compiles_as_one_graph(core):
    batch, head = framed_batch(), make_head()
    hidden, grad = randn(240, 24, seed=1), randn(batch.sbo_ids.shape[0], 24, seed=2)
    eager = run(lambda h, b, m: m(h, b), hidden, batch, head, grad)
    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    traced = run(lambda h, b, m: compiled(h, b), hidden, batch, head, grad)
    for name, value in traced.items():
        assert torch.allclose(value, eager[name], atol=2e-5 * float(eager[name].abs().max())), name


def test_threads_change_nothing(core):
    batch = framed_batch(32, 128)
    hidden, grad = randn(32 * 128, 24, seed=1), randn(batch.sbo_ids.shape[0], 24, seed=2)
    one = run(lambda h, b, m: m(h, b), hidden, batch, make_head(), grad)
    torch.set_num_threads(2)
    two = run(lambda h, b, m: m(h, b), hidden, batch, make_head(), grad)
    for name, value in one.items():
        # The products are torch's and may be split differently; what is ours is exact (test_ops).
        assert torch.allclose(value, two[name], rtol=1e-5, atol=1e-5 * float(value.abs().max())), (
            name
        )


# Module and contract -----------------------------------------------------------------------------


def test_parameters_are_those_of_the_contract():
    head = SBOHead(32)
    assert {n: tuple(p.shape) for n, p in head.named_parameters()} == {
        "position_embeddings.weight": (15, 200),
        "linear1.weight": (32, 264),
        "linear1.bias": (32,),
        "layer_norm1.weight": (32,),
        "layer_norm1.bias": (32,),
        "linear2.weight": (32, 32),
        "linear2.bias": (32,),
        "layer_norm2.weight": (32,),
        "layer_norm2.bias": (32,),
    }
    assert head.layer_norm1.eps == 1e-12
    large = SBOHead(1024)
    assert sum(p.numel() for p in large.parameters()) == 3_359_672  # SPEC 2.3: about 3.36 M
    for weight in (large.linear1.weight, large.linear2.weight):
        assert abs(weight.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * weight.numel())
    assert not large.linear1.bias.any() and bool((large.layer_norm1.weight == 1).all())


def test_state_round_trip():
    one, other = make_head(seed=1), make_head(seed=2)
    other.load_state_dict(one.state_dict())
    batch, hidden = framed_batch(), randn(240, 24)
    assert torch.equal(one(hidden, batch), other(hidden, batch))


def test_hidden_size_mismatch(backend):
    with pytest.raises(ValueError, match=r"hidden.*24.*\(240, 25\)"):
        make_head()(torch.zeros(240, 25), framed_batch())


def test_more_targets_than_the_head_has_positions(backend):
    batch = framed_batch(mask_ratio=0.8)
    with pytest.raises(IndexError, match=naming("target_offsets", 2)):
        make_head(max_span_targets=2)(torch.zeros(240, 24), batch)


@pytest.mark.parametrize(
    "name, value",
    [
        ("span_left", -1),
        ("span_right", 240),
        ("target_spans", -1),
        ("target_spans", 10**6),
        ("target_offsets", -1),
        ("target_offsets", 15),
    ],
)
def test_indices_out_of_range(backend, name, value):
    batch = framed_batch()
    first = batch.sbo_ids if name.startswith("target") else batch.span_right
    index = getattr(batch, name).clone()
    index[(first > 0).nonzero()[0]] = value
    with refuses(IndexError, match=naming(name, value)):
        make_head()(torch.zeros(240, 24), dataclasses.replace(batch, **{name: index}))


def test_a_batch_of_another_text(backend):
    """Fewer hidden rows than the batch speaks of."""
    with refuses(IndexError, match="span_"):
        make_head()(torch.zeros(30, 24), framed_batch())


def test_a_batch_on_another_device(backend):
    with pytest.raises(ValueError, match="batch|span_left|target"):
        make_head()(torch.zeros(240, 24), framed_batch().to("meta"))


def test_hidden_of_a_wrong_type(backend):
    with pytest.raises(TypeError, match="hidden.*int64"):
        make_head()(torch.zeros(240, 24, dtype=torch.int64), framed_batch())
