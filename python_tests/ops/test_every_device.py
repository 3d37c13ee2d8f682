"""The masker and every operation on every device: against the CPU, views, guard zones, nothing to
do, and indices that are wrong."""

import re
import textwrap

import pytest
import torch
from back_ends import mode
from device_cases import DTYPES, UNCACHED, check_head, moved, operation, tuple_of
from hypothesis import given, settings
from hypothesis import strategies as st
from row_functions import gather_boundaries
from sbo_cases import framed_batch
from strategies import (
    assert_same_batch,
    epochs,
    fields,
    make_masker,
    marks_for,
    maskers,
    randn,
    rewound,
    run_python,
    sequences,
    word_text,
)
from test_ops_contract import EPS, op_samples, registered_operations

from spanbert_ext import SpanMasker

# Masks -------------------------------------------------------------------------------------------


@given(
    masker=maskers(),
    texts=st.lists(sequences(300), max_size=8),
    epoch=epochs,
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=20 if UNCACHED else 200)
def test_masks_equal_the_cpu(gpu, masker, texts, epoch, dtype):
    tokens = torch.tensor([i for t in texts for i in t], dtype=dtype)
    cu_seqlens = torch.tensor([0, *(len(t) for t in texts)]).cumsum(0)
    marks = marks_for(masker, tokens, len(texts))
    arguments = (tokens.to(gpu), cu_seqlens.to(gpu))
    on_gpu = masker.packed(*arguments, epoch=epoch, **{k: v.to(gpu) for k, v in marks.items()})
    assert {t.device.type for t in fields(on_gpu).values()} == {gpu}
    with mode("native"):
        on_cpu = rewound(masker).packed(tokens, cu_seqlens, epoch=epoch, **marks)
    assert_same_batch(on_gpu, on_cpu)


@pytest.mark.parametrize("rows, width", [(1, 1), (256, 512), (3000, 64), (2, 5000), (1, 100_000)])
def test_large_masks_equal_the_cpu(gpu, rows, width):
    ids = word_text(rows * width, seed=1).view(rows, width)
    masker = make_masker(seed=-9)
    lengths = torch.randint(0, width + 1, (rows,), generator=torch.Generator().manual_seed(2))
    for options in ({}, {"lengths": lengths}):
        there = {k: v.to(gpu) for k, v in options.items()}
        on_gpu = rewound(masker)(ids.to(gpu), epoch=7, **there)
        with mode("native"):
            assert_same_batch(on_gpu, rewound(masker)(ids, epoch=7, **options))


def check_masks_of_other_inputs(device):
    """int32 ids, an attention mask, and both."""
    ids, masker = word_text(40 * 70, seed=5).view(40, 70), make_masker(seed=11)
    keep = torch.rand(40, 70, generator=torch.Generator().manual_seed(6)) < 0.9
    for dtype in (torch.int32, torch.int64):
        for kind in (torch.bool, torch.int64):
            mask = keep.to(kind)
            with mode("native"):
                expected = rewound(masker)(ids.to(dtype), attention_mask=mask)
            found = rewound(masker)(ids.to(device, dtype), attention_mask=mask.to(device))
            assert_same_batch(found, expected)
            assert not (found.labels.cpu() != -100)[~keep].any()
        on_device = rewound(masker)(ids.to(device, dtype))
        with mode("native"):
            assert_same_batch(on_device, rewound(masker)(ids.to(dtype)))


def test_masks_of_other_inputs(gpu):
    check_masks_of_other_inputs(gpu)


def check_span_overflow(device, monkeypatch):
    """Spans beyond the capacity keep their MLM targets; the head trains on the others."""
    monkeypatch.setattr(SpanMasker, "_span_capacity", lambda *_: 3)
    batch = framed_batch(8, 200)
    assert batch.dropped_spans > 0 and batch.span_left.shape == (3,)
    ids = word_text(8 * 200, 0).view(8, 200)
    masker = make_masker(seed=0, mask_ratio=0.3)
    found = masker(ids.to(device))
    with mode("native"):
        assert_same_batch(found, rewound(masker)(ids))
    assert 0 < (batch.sbo_ids != -100).sum() < (batch.target_ids != -100).sum()
    check_head(device, torch.float32, 24, batch)


def test_span_overflow(device, monkeypatch):
    check_span_overflow(device, monkeypatch)


@pytest.mark.parametrize("scheme", ["span", "word"])
def test_head_with_internal_endpoints(device, scheme):
    """A span of one word has one token for both boundaries."""
    batch = framed_batch(8, 200, endpoints="internal", scheme=scheme)
    assert bool((batch.span_left == batch.span_right)[batch.span_right > 0].any())
    for size in (24, 97):
        check_head(device, torch.float32, size, batch)


# Operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registered_operations())
def test_opcheck(device, name):
    for arguments in op_samples()[name]:
        leaves = [
            a.detach().to(device).requires_grad_(a.requires_grad)
            if isinstance(a, torch.Tensor)
            else a
            for a in arguments
        ]
        torch.library.opcheck(operation(name).default, leaves)


def offset_view(values: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values, contiguous, `offset` elements into a larger buffer of their device."""
    buffer = values.new_zeros(values.numel() + offset + 3)
    buffer[offset : offset + values.numel()] = values.reshape(-1)
    return buffer[offset : offset + values.numel()].view(values.shape)


def check_views(device, name):
    """Storage offsets break the alignment that wide loads like."""
    for arguments in op_samples()[name]:
        plain = moved(arguments, device)
        for offset in (1, 2, 5):
            expected_inputs = moved(plain, device)
            views = [offset_view(a, offset) if isinstance(a, torch.Tensor) else a for a in plain]
            expected = tuple_of(operation(name)(*expected_inputs))
            found = tuple_of(operation(name)(*views))
            for a, b in zip((*found, views[0]), (*expected, expected_inputs[0]), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", registered_operations())
def test_views_give_what_copies_give(device, name):
    check_views(device, name)


def check_gather_of_unaligned_rows(device):
    """Rows of whole 16-byte pieces that begin between two of them."""
    left, right = torch.tensor([0, 2, 0]).to(device), torch.tensor([2, 5, 0]).to(device)
    for dtype in DTYPES:
        hidden = randn(6, 16, dtype=dtype, seed=1).to(device)
        expected = torch.cat([hidden[left], hidden[right]], 1)
        expected[2] = 0
        for offset in (0, 1, 3):
            view = offset_view(hidden, offset)
            assert torch.equal(gather_boundaries(view, left, right), expected)


def test_gather_of_unaligned_rows(device):
    check_gather_of_unaligned_rows(device)


def check_guard_zones(device, name, monkeypatch):
    """Outputs and working buffers stand between guard zones that survive; no output keeps a guard
    value."""
    guard, zone, buffers = 12345.0, 24, []

    def fenced(like, shape, dtype):
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 2 * zone,), guard, dtype=dtype or like.dtype, device=device)
        buffers.append(buffer)
        return buffer[zone : zone + size].view(shape)

    samples = [moved(arguments, device) for arguments in op_samples()[name]]
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, shape, dtype=None: fenced(t, shape, dtype)
    )
    monkeypatch.setattr(torch, "empty_like", lambda t, dtype=None: fenced(t, t.shape, dtype))
    for arguments in samples:
        outputs = tuple_of(operation(name)(*arguments))
        assert buffers
        for buffer in buffers:
            expected = torch.full((zone,), guard, device=device).to(buffer.dtype)
            assert torch.equal(buffer[:zone], expected) and torch.equal(buffer[-zone:], expected)
        for output in outputs:
            assert not (output == torch.tensor(guard).to(output.dtype)).any()
        buffers.clear()


@pytest.mark.parametrize("name", registered_operations())
def test_nothing_is_written_outside_the_outputs(device, name, monkeypatch):
    check_guard_zones(device, name, monkeypatch)


def empty_samples() -> dict[str, list[tuple]]:
    """Arguments of every operation with no rows, no spans, no targets or no tokens."""
    rows, pairs, w = torch.zeros(0, 6), torch.zeros(0, 12), torch.ones(6)
    none, flat, table = torch.zeros(0).long(), torch.zeros(0), torch.ones(15, 6)
    s = make_masker().settings
    options = (0, 3, s.ratio, 1, s.length_thresholds, s.mask_threshold, s.random_threshold)
    tables = torch.ones(200, dtype=torch.uint8), torch.tensor([7])
    masks = (torch.zeros(1).long(), *tables, None, *options)
    head_inputs = (torch.ones(5, 6), none, none, none, none, none)
    head_matrices = (torch.zeros(15, 4), torch.ones(6, 16), w, torch.ones(6, 6), w)
    head_parameters = (*head_matrices[:2], 0 * w, w, w, head_matrices[3], w, w, w)
    head_saved = (pairs, rows, table, rows, rows, flat, flat, flat, flat)
    return {
        "span_mask": [
            (none, starts, starts, starts, *masks, False, 15, 0, False, *sizes)
            for starts in (none, torch.zeros(2).long())
            for sizes in ((0, 0), (4, 2))
        ],
        "dropout_norm": [(rows, rows, w, w, EPS, 9, torch.zeros(1).long(), 0, True)],
        "dropout_norm_backward": [
            (rows, rows, rows, w, flat, flat, 9, torch.zeros(1).long(), 0, drop) for drop in (0, 1)
        ],
        "sbo_head": [(*head_inputs, *head_parameters, EPS, torch.float32, n) for n in (0, 4)],
        "sbo_head_backward": [
            (rows, *head_inputs[1:], *head_matrices, *head_saved, tokens, torch.float32)
            for tokens in (0, 5)
        ],
        "cross_entropy_rows_": [
            (torch.zeros(0, 12), none, None, None, None, 10),
            (torch.zeros(0, 12), none, torch.ones(2, 10), none, flat, 10),
        ],
    }


def check_empty_inputs(device, name):
    """Every output has the shape of its fake and says nothing: 0, or -100 for ids of no target."""
    for arguments in empty_samples()[name]:
        found = tuple_of(operation(name)(*moved(arguments, device)))
        shapes = tuple_of(operation(name)(*moved(arguments, "meta")))
        assert [t.shape for t in found] == [t.shape for t in shapes]
        assert all(((t == 0) | (t == -100)).all() for t in found)


# The number of spans that prune_spans keeps depends on the data, so it has no shapes to compare.
@pytest.mark.parametrize("name", sorted(set(registered_operations()) - {"prune_spans"}))
def test_empty_inputs(device, name):
    check_empty_inputs(device, name)


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, said",
    [
        (
            "make_masker()(torch.tensor([[5, 6, 777, 8]]).to(device))",
            "token 2 of the flat batch has id 777|token id outside the vocabulary",
        ),
        (
            "borders = torch.tensor([0, 99, 10]).to(device)\n"
            "make_masker().packed(torch.arange(5, 15).to(device), borders)",
            "sequence 0 has bounds|sequence bounds",
        ),
        (  # every row lies in the batch, and two reach into the next one
            "lengths = torch.tensor([200, 64, 64, 64]).to(device)\n"
            "make_masker()(torch.full((4, 64), 9).to(device), lengths=lengths)",
            "sequence 1 has bounds|sequence bounds",
        ),
        (
            "masker = make_masker(scheme='entity')\n"
            "marks = torch.full((1, 4), 3).byte().to(device)\n"
            "masker(torch.full((1, 4), 9).to(device), candidates=marks)",
            "candidates must lie in",
        ),
        (
            "r, w, t = zeros(1, 3), zeros(5, 3), ~zeros(1).long()\n"
            "linear_cross_entropy(r.to(device), w.to(device), t.to(device))",
            "target outside the vocabulary",
        ),
    ],
)
def test_a_bad_index_stops_the_process_with_its_name(gpu, code, said):
    """Nothing is read silently; the context does not survive, so a child takes the blow.

    What a kernel prints may be lost with the context; its assertion is on stderr. The emulator
    raises it.
    """
    child = run_python(
        f"device = {gpu!r}\n"
        "import ctypes\nimport torch\nfrom torch import zeros\nfrom strategies import make_masker\n"
        "from spanbert_ext import linear_cross_entropy\n"
        "try:\n"
        f"{textwrap.indent(code, '    ')}\n"
        "    if device == 'cuda': torch.cuda.synchronize()\n"
        "finally:\n"
        "    ctypes.CDLL(None).fflush(None)\n",
        SPANBERT_EXT_BACKEND="native" if gpu == "cuda" else "emulated",
    )
    assert child.returncode != 0
    assert re.search(said, child.stdout + child.stderr), child.stderr[-2000:]
