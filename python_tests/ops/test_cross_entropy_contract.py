"""The vocabulary loss under autocast, compilation and threads, its memory, and its bad
arguments."""

import pytest
import torch
import torch.nn.functional as F
from back_ends import refuses
from strategies import IGNORE, case_id, classes, naming, randn, run_python, value_and_gradients

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import cross_entropy
from spanbert_ext.ops.cross_entropy import two_head_cross_entropy

# Autocast, compilation, threads, memory ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(backend, dtype):
    """Under bf16 autocast the product is bf16, softmax and loss fp32; gradients come back in the
    leaves' dtype."""
    leaves = [randn(50, 8, seed=1).to(dtype), randn(90, 8, seed=2), randn(90, seed=3)]
    targets = classes(50, 90)

    def under_autocast(function):
        def call(*tensors):
            with torch.autocast("cpu", torch.bfloat16):
                return function(*tensors)

        return call

    got = value_and_gradients(
        under_autocast(lambda r, w, b: linear_cross_entropy(r, w, targets, b)), leaves
    )
    own = under_autocast(lambda r, w, b: F.cross_entropy(F.linear(r, w, b).float(), targets))
    expected = value_and_gradients(own, leaves)
    exact = value_and_gradients(
        lambda r, w, b: F.cross_entropy(F.linear(r, w, b), targets), [t.double() for t in leaves]
    )
    assert [g.dtype for g in got[1:]] == [t.dtype for t in leaves]
    for name, g, o, e in zip(("loss", "rows", "weight", "bias"), got, expected, exact, strict=True):
        slack = torch.finfo(torch.bfloat16).eps * e.abs().max().item()
        mine, its = (g.double() - e).abs().max().item(), (o.double() - e).abs().max().item()
        assert mine <= 2 * its + slack, f"{name}: {mine:.3g} against {its:.3g}"


def test_double_rows_stay_double_under_autocast(backend):
    """torch's autocast leaves float64 alone; so do we."""
    rows, weight, targets = randn(5, 3).double(), randn(7, 3).double(), classes(5, 7)
    expected = linear_cross_entropy(rows, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(rows, weight, targets)
    assert got.dtype == torch.float64 and torch.equal(got, expected)


@pytest.mark.parametrize("first", ["compiled", "eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_as_one_graph(core, reduction, first):
    """Whether or not the back end has been chosen before the trace."""
    targets, weights = classes(20, 31), torch.linspace(1, 2, 20)
    leaves = [randn(20, 8, seed=1), randn(31, 8, seed=2), randn(31, seed=3)]

    def loss(rows, weight, bias):
        value = linear_cross_entropy(rows, weight, targets, bias, reduction=reduction)
        return (value * weights).sum() if reduction == "none" else value

    if first == "eager":
        loss(*leaves)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        value_and_gradients(compiled, leaves), value_and_gradients(loss, leaves), strict=True
    ):
        assert torch.allclose(got, expected, atol=1e-6)


def test_two_heads_compile_as_one_graph(core):
    mlm, sbo = classes(12, 31, 4), classes(9, 31, 5)
    leaves = [randn(12, 8, seed=1), randn(9, 8, seed=2), randn(31, 8, seed=3), randn(2, 31, seed=4)]

    def loss(m, s, w, b):
        return two_head_cross_entropy(m, s, w, mlm, sbo, b)[0]

    loss(*leaves)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        value_and_gradients(compiled, leaves), value_and_gradients(loss, leaves), strict=True
    ):
        assert torch.allclose(got, expected, atol=1e-6)


def test_threads_change_nothing(core):
    leaves = [randn(300, 16, seed=1), randn(701, 16, seed=2), randn(701, seed=3)]
    targets = classes(300, 701)
    one = value_and_gradients(lambda r, w, b: linear_cross_entropy(r, w, targets, b), leaves)
    torch.set_num_threads(2)
    two = value_and_gradients(lambda r, w, b: linear_cross_entropy(r, w, targets, b), leaves)
    for a, b in zip(one, two, strict=True):
        # The products are torch's and may be split differently; what is ours is exact (test_ops).
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_memory_is_a_chunk_and_never_the_logits():
    """8000 x 20000 fp32 logits would be 610 MiB and so would their gradient; a chunk is 40 MiB."""
    code = """
import resource, torch
from spanbert_ext.ops import cross_entropy
torch.set_num_threads(1)
cross_entropy._CHUNK_BYTES["cpu"] = 40 * 2**20
def run(count):
    rows = torch.randn(count, 8, requires_grad=True)
    weight = torch.randn(20000, 8, requires_grad=True)
    bias = torch.zeros(2, 20000, requires_grad=True)
    targets = torch.arange(count) % 20000
    half = count // 2
    two_heads = rows[:half], rows[half:], weight, targets[:half], targets[half:], bias
    cross_entropy.two_head_cross_entropy(*two_heads)[0].backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = run(20)
print(run(8000) - before)
"""
    child = run_python(code, SPANBERT_EXT_BACKEND="native")
    assert child.returncode == 0, child.stderr
    assert float(child.stdout) < 150


# Contract ----------------------------------------------------------------------------------------

GOOD = {
    "rows": torch.zeros(4, 3),
    "weight": torch.zeros(7, 3),
    "targets": torch.tensor([0, 1, IGNORE, 6]),
    "bias": torch.zeros(2, 7),
    "head": torch.tensor([0, 1, 1, 0]),
}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"rows": torch.zeros(4)}, ValueError, r"rows.*\(4,\)"),
        ({"rows": torch.zeros(4, 3).long()}, TypeError, "rows.*int64"),
        ({"rows": torch.zeros(4, 2)}, ValueError, r"weight.*2.*\(7, 3\)"),
        ({"rows": torch.zeros(4, 3, device="meta")}, ValueError, "weight.*meta.*cpu"),
        ({"weight": torch.zeros(7)}, ValueError, "weight"),
        (
            {"weight": torch.zeros(0, 3), "bias": torch.zeros(2, 0)},
            (ValueError, IndexError),
            "weight|targets",
        ),
        ({"weight": torch.zeros(7, 3, device="meta")}, ValueError, "weight.*cpu.*meta"),
        ({"targets": torch.tensor([0, 1, 2])}, ValueError, r"targets.*\(4,\).*\(3,\)"),
        ({"targets": torch.zeros(4).int()}, TypeError, "targets.*int64.*int32"),
        ({"targets": torch.zeros(4)}, TypeError, "targets.*float32"),
        ({"targets": torch.tensor([0, 1, IGNORE, 7])}, IndexError, naming("targets", 3, 7)),
        ({"targets": torch.tensor([IGNORE, -1, 2, 3])}, IndexError, naming("targets", 1, -1, 7)),
        (
            {"targets": torch.tensor([IGNORE, 0, 2, 3]), "ignore_index": 0},
            IndexError,
            "targets.*-100",
        ),
        (
            {"targets": torch.zeros(4, dtype=torch.int64, device="meta")},
            ValueError,
            "targets.*cpu.*meta",
        ),
        ({"bias": torch.zeros(2, 6)}, ValueError, r"bias.*7.*\(2, 6\)"),
        ({"bias": torch.zeros(1, 2, 7)}, ValueError, "bias"),
        ({"bias": None}, ValueError, "head.*bias"),
        ({"bias": torch.zeros(2, 7, device="meta")}, ValueError, "bias.*cpu.*meta"),
        ({"head": None}, ValueError, "head"),
        ({"head": torch.tensor([0, 1, 1])}, ValueError, r"head.*\(4,\).*\(3,\)"),
        ({"head": torch.tensor([0, 1, 1, 0, 1])}, ValueError, r"head.*\(4,\).*\(5,\)"),
        ({"head": torch.tensor([0, 1, 1, 2])}, IndexError, naming("head", 3, 2)),
        ({"head": torch.tensor([0, -1, 1, 1])}, IndexError, naming("head", 1, -1, 2)),
        ({"head": torch.zeros(4)}, TypeError, "head.*float32"),
        ({"reduction": "average"}, ValueError, "reduction.*mean, sum or none.*average"),
    ],
    ids=case_id,
)
def test_bad_arguments(backend, change, error, message):
    with refuses(error, match=message):
        linear_cross_entropy(**{**GOOD, **change})


def test_positions_in_messages_count_in_the_callers_rows(core, monkeypatch):
    """Whatever is left out and however it is cut into chunks."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", {"cpu": 14, "cuda": 14})
    targets = torch.tensor([IGNORE, 0, 1, 2, 3, IGNORE, 99, 1])
    with refuses(IndexError, match=naming("targets", 6, 99, 7)):
        linear_cross_entropy(torch.zeros(8, 3), torch.zeros(7, 3), targets)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"loss": "mean"}, ValueError, "loss.*code or paper.*mean"),
        (
            {"mlm_targets": torch.tensor([1, 2]), "sbo_targets": torch.tensor([1, 2, 3])},
            ValueError,
            "mlm_targets|sbo_targets",
        ),
        ({"sbo_targets": None}, (TypeError, ValueError), "sbo_targets"),
        ({"sbo_rows": torch.zeros(2, 4)}, ValueError, "sbo_rows"),
        ({"bias": None}, (TypeError, ValueError), "bias"),
        ({"bias": torch.zeros(7)}, ValueError, "bias"),
        ({"bias": torch.zeros(3, 7)}, ValueError, "bias.*2.*3"),
        ({"bias": torch.zeros(1, 7)}, ValueError, "bias.*2.*1"),
    ],
    ids=case_id,
)
def test_bad_arguments_of_the_two_heads(backend, change, error, message):
    good = {
        "mlm_rows": torch.zeros(3, 3),
        "sbo_rows": torch.zeros(2, 3),
        "weight": torch.zeros(7, 3),
        "mlm_targets": torch.tensor([1, 2, 3]),
        "sbo_targets": torch.tensor([1, 2]),
        "bias": torch.zeros(2, 7),
    }
    with pytest.raises(error, match=message):
        two_head_cross_entropy(**{**good, **change})
