"""Every native operation's contract: schema, threads, views, guard zones, and bad arguments."""

import pytest
import torch
from back_ends import assert_same_up_to_order, refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from row_functions import gather_boundaries, gelu_layer_norm, sbo_first_layer
from strategies import inside_larger_buffer, make_masker, naming, randn, text_batch, word_text

from spanbert_ext.ops import dropout_norm as norm_op
from spanbert_ext.ops import sbo_head, sbo_rows
from spanbert_ext.ops import span_mask as mask_op
from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.registration import working_dtype
from spanbert_ext.tasks.coref.model import pruning

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EPS = 1e-12

# Every operation ---------------------------------------------------------------------------------


def op_samples() -> dict[str, list[tuple]]:
    """Arguments of every registered operation; an operation that is missing here fails the test
    below."""
    batch, s = text_batch(2, 24), make_masker(seed=-5).settings
    targets = batch.sbo_ids.shape[0]
    boundary = (batch.span_left, batch.span_right)
    index = (batch.target_spans, batch.target_offsets, batch.sbo_ids)
    one = torch.tensor([0])
    samples: dict[str, list[tuple]] = {name: [] for name in ("span_mask", "cross_entropy_rows_")}
    for dtype in (torch.int32, torch.int64):
        tables = torch.ones(200, dtype=torch.uint8), one + 150
        options = (-5, 3, s.ratio, 1, s.length_thresholds, s.mask_threshold, s.random_threshold)
        rows = (one, one + 40, one, one)
        for marks, threshold in ((None, 0), (torch.arange(40, dtype=torch.uint8) % 3, 2**31)):
            samples["span_mask"].append(
                (
                    word_text(40, 1).to(dtype),
                    *rows,
                    *tables,
                    marks,
                    *options,
                    False,
                    15,
                    threshold,
                    marks is not None,
                    6,
                    6,
                )
            )
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        wide = working_dtype(dtype)

        def values(*shape, dtype=dtype, grad=True):
            return randn(*shape, dtype=dtype, seed=sum(shape)).requires_grad_(grad)

        hidden, x = values(48, 6), values(5, 6)
        weight, bias = values(6, dtype=wide), values(6, dtype=wide)
        mean, rstd = torch.zeros(5, dtype=wide), torch.ones(5, dtype=wide)
        stream, key = torch.promote_types(dtype, torch.float32), torch.tensor([-7])
        residual = randn(5, 6, dtype=stream, seed=9)
        for threshold, seed, drop_output in (
            (0, None, False),
            (9000, key, False),
            (9000, key, True),
        ):
            settings = (threshold, seed, 3, drop_output)
            samples.setdefault("dropout_norm", []).append(
                (x, residual.clone().requires_grad_(), weight, bias, EPS, *settings)
            )
            samples.setdefault("dropout_norm_backward", []).append(
                (residual + 1, x.detach(), residual, weight.detach(), mean, rstd, *settings)
            )
        matrices = (values(15, 5), values(6, 17), values(6), *[values(6, dtype=wide)] * 2)
        matrices += (values(6, 6), values(6), *[values(6, dtype=wide)] * 2)
        head = (hidden, *boundary, *index, *matrices, EPS)
        for row_dtype, capacity in ((dtype, targets), (dtype, targets + 3), (wide, targets)):
            samples.setdefault("sbo_head", []).append((*head, row_dtype, capacity))
        plain = tuple(t.detach() for t in head[:-1])
        saved = torch.ops.spanbert_ext.sbo_head(*plain, EPS, dtype, targets)[1:]
        used = (*plain[1:8], plain[9], plain[11], plain[13])
        samples.setdefault("sbo_head_backward", []).append(
            (values(targets, 6, grad=False), *used, *saved, 48, dtype)
        )
        logits, classes = values(4, 12, grad=False), torch.tensor([0, 3, -100, 9])
        heads, scale = values(2, 10, dtype=wide, grad=False), torch.full((4,), 0.25, dtype=wide)
        for optional in (
            (None, None, None),
            (heads[:1], None, scale),
            (heads, classes.clamp(0, 1), scale),
        ):
            samples["cross_entropy_rows_"].append((logits.clone(), classes, *optional, 10))
    ends = (torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    samples["prune_spans"] = [(*ends, torch.tensor([0.5, 2.0, 1.0]), 3, 2)]
    return samples


def registered_operations() -> list[str]:
    for boundary in (mask_op, norm_op, cross_entropy_rows_, sbo_head, pruning):
        assert boundary, "importing a boundary registers its operations"
    prefix = "spanbert_ext::"
    return sorted(
        n.removeprefix(prefix)
        for n in torch._C._dispatch_get_all_op_names()
        if n.startswith(prefix)
    )


def test_every_operation_has_a_sample():
    assert sorted(op_samples()) == registered_operations()


@pytest.mark.parametrize("name", registered_operations())
def test_opcheck(core, name):
    for arguments in op_samples()[name]:
        torch.library.opcheck(getattr(torch.ops.spanbert_ext, name).default, arguments)


@pytest.mark.parametrize("name", registered_operations())
def test_a_profile_shows_the_operation_by_name(core, name):
    """As `spanbert_ext::NAME`; torch.autograd.profiler.emit_nvtx makes ranges of these."""
    arguments = op_samples()[name][0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        getattr(torch.ops.spanbert_ext, name)(*arguments)
    assert f"spanbert_ext::{name}" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_repeats_give_the_same_bits(core, dtype):
    batch = text_batch(30, 256, mask_ratio=0.15)
    index = (batch.target_spans, batch.target_offsets, batch.sbo_ids)
    wide = working_dtype(dtype)
    hidden = randn(30 * 256, 97, dtype=dtype, seed=1)
    weight, bias = randn(97, dtype=wide, seed=2), randn(97, dtype=wide, seed=3)
    classes = torch.arange(1500) % 500
    classes[::7] = -100

    def everything():
        h, w, b = (t.clone().requires_grad_() for t in (hidden, weight, bias))
        pairs = gather_boundaries(h, batch.span_left, batch.span_right)
        spans = pairs[:, :97].contiguous()
        rows = gelu_layer_norm(sbo_first_layer(spans, h[:15], *index, w, b, EPS), w, b, EPS)
        grads = torch.autograd.grad(rows.float().square().sum(), (h, w, b))
        logits = hidden.view(-1)[: 1500 * 200].view(1500, 200).repeat(1, 3).contiguous()
        heads = randn(2, 500, dtype=wide, seed=4)
        losses = cross_entropy_rows_(
            logits, classes, heads, torch.arange(1500) % 2, classes.to(wide), 500
        )
        return rows, *grads, *losses, logits

    one = everything()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 70),
    size=st.sampled_from([1, 2, 3, 8, 17, 64]),
    offset=st.integers(0, 7),
)
@settings(max_examples=60)
def test_views_give_what_copies_give(core, dtype, rows, size, offset):
    """Storage offsets break the alignment that wide loads like."""
    wide = working_dtype(dtype)
    plain = [
        randn(rows, size, dtype=dtype, seed=1),
        *(randn(size, dtype=wide, seed=s) for s in (2, 3)),
    ]
    views = [inside_larger_buffer(t, offset) for t in plain]
    for got, expected in zip(
        sbo_rows.norm(views[0], None, *views[1:], EPS),
        sbo_rows.norm(plain[0], None, *plain[1:], EPS),
        strict=True,
    ):
        assert_same_up_to_order(core, got, expected)
    left, right = torch.zeros(rows, dtype=torch.int64), torch.arange(rows)
    pairs = [gather_boundaries(t[0], left, right) for t in (views, plain)]
    assert torch.equal(*pairs)


@pytest.mark.parametrize("name", [n for n in registered_operations() if n != "span_mask"])
def test_nothing_is_written_outside_the_outputs(core, monkeypatch, name):
    """Outputs and working buffers stand between guard zones that survive; no output keeps a guard
    value."""
    guard, zone, buffers = 12345.0, 24, []

    def fenced(like, shape, dtype):
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 2 * zone,), guard, dtype=dtype)
        buffers.append(buffer)
        return buffer[zone : zone + size].view(shape)

    samples = op_samples()[name]
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, shape, dtype=None: fenced(t, shape, dtype or t.dtype)
    )
    monkeypatch.setattr(
        torch, "empty_like", lambda t, dtype=None: fenced(t, t.shape, dtype or t.dtype)
    )
    for arguments in samples:
        detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        outputs = getattr(torch.ops.spanbert_ext, name)(*detached)
        for buffer in buffers:
            expected = torch.full((zone,), guard).to(buffer.dtype)
            assert torch.equal(buffer[:zone], expected) and torch.equal(buffer[-zone:], expected)
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            assert not bool((output == torch.tensor(guard).to(output.dtype)).any())
        assert buffers
        buffers.clear()


# Contract ----------------------------------------------------------------------------------------


def long(*values):
    return torch.tensor(values, dtype=torch.int64)


X, W = torch.zeros(3, 4), torch.ones(4)
CE = {
    "logits": torch.zeros(3, 5),
    "targets": long(0, 1, 2),
    "bias": torch.zeros(2, 5),
    "head": long(0, 1, 1),
    "scale": torch.ones(3),
    "vocab_size": 5,
}


def meta(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="meta")


BAD = [
    ({"logits": CE["logits"].long()}, TypeError, "logits"),
    ({"targets": long(0, 1, 5)}, IndexError, naming("targets", 2, 5)),
    ({"targets": long(0, -1, 2)}, IndexError, naming("targets", 1, -1)),
    ({"targets": long(0, 1)}, ValueError, "targets"),
    ({"head": long(0, 1, 2)}, IndexError, naming("head", 2)),
    ({"head": long(0, 1)}, ValueError, "head"),
    ({"bias": torch.zeros(2, 4)}, ValueError, "bias"),
    ({"bias": torch.zeros(2, 5).half()}, TypeError, "bias"),
    ({"scale": torch.ones(2)}, ValueError, "scale"),
    ({"scale": meta(3)}, ValueError, "scale.*cpu.*meta"),
    ({"vocab_size": 6}, ValueError, "vocab_size.*5.*6"),
    ({"vocab_size": 0}, ValueError, "vocab_size"),
]


BAD_IDS = [f"{next(iter(case[0]))}-{case[1].__name__}" for case in BAD]


@pytest.mark.parametrize("change, error, message", BAD, ids=BAD_IDS)
def test_bad_arguments_of_the_loss_of_rows(core, change, error, message):
    arguments = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in {**CE, **change}.items()
    }
    with refuses(error, match=message):
        cross_entropy_rows_(**arguments)


def test_second_derivatives_are_refused_or_right(core):
    """Gradients of gradients are not implemented: an error, never a silently wrong number."""
    x = randn(3, 4, dtype=torch.float64, seed=1).requires_grad_()
    weight = torch.ones(4, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        grad = torch.autograd.grad(
            norm_op.dropout_add_layer_norm(x, x.detach(), weight, weight, EPS).pow(2).sum(),
            x,
            create_graph=True,
        )
        torch.autograd.grad(grad[0].sum(), x)
