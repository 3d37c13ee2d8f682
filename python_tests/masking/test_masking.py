"""SpanMasker: the native sampler equals the reference bit for bit; what every mask must obey on any
seed."""

import dataclasses

import pytest
import torch
from back_ends import EMULATED
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    PAD,
    POOL,
    SPECIALS,
    assert_same_batch,
    epochs,
    inside_larger_buffer,
    make_masker,
    marks_for,
    maskers,
    rewound,
    sample_id_values,
    sequences,
    spans_of,
    word_starts,
    word_text,
)

from spanbert_ext import SpanMasker
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.ops import span_mask as mask_op
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.reference import span_mask as mask_reference

BLOCK = 510


def both_paths(force_backend, run) -> tuple[MaskedBatch, MaskedBatch]:
    """By the native core, which the emulated kernels equal where there are any, and by the
    reference."""
    force_backend("native")
    native = run()
    if EMULATED:
        force_backend("emulated")
        assert_same_batch(run(), native)
    force_backend("reference")
    return native, run()


# Oracle ------------------------------------------------------------------------------------------


@given(
    masker=maskers(),
    texts=st.lists(sequences(), min_size=0, max_size=6),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    offset=st.integers(0, 5),
    samples=st.data(),
    epoch=epochs,
)
@settings(max_examples=250)
def test_packed_native_is_reference(
    force_backend, masker, texts, dtype, index_dtype, offset, samples, epoch
):
    lengths = [len(t) for t in texts]
    tokens = torch.tensor([i for t in texts for i in t], dtype=dtype)
    tokens = inside_larger_buffer(tokens, offset)
    cu_seqlens = torch.tensor([0, *lengths], dtype=index_dtype).cumsum(0, dtype=index_dtype)
    ids = samples.draw(
        st.one_of(
            st.none(),
            st.lists(sample_id_values, min_size=len(texts), max_size=len(texts)).map(torch.tensor),
        )
    )
    ids = None if ids is None else ids.to(torch.int64)
    given_tokens = tokens.clone()
    marks = marks_for(masker, tokens, samples.draw(st.integers(0, 99)))
    native, slow = both_paths(
        force_backend, lambda: rewound(masker).packed(tokens, cu_seqlens, ids, epoch, **marks)
    )
    assert_same_batch(native, slow)
    assert torch.equal(tokens, given_tokens)
    check_invariants(masker, tokens, cu_seqlens[:-1], cu_seqlens[1:], native)


@given(
    masker=maskers(),
    rows=st.integers(0, 5),
    width=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 130])),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    how=st.sampled_from(["plain", "lengths", "attention_mask", "both"]),
    data=st.data(),
)
@settings(max_examples=150)
def test_padded_native_is_reference(force_backend, masker, rows, width, dtype, how, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    ids = torch.randint(0, 140, (rows, width), generator=generator).to(dtype)
    ids = inside_larger_buffer(ids, data.draw(st.integers(0, 3)))
    options = marks_for(masker, ids, width)
    if how in ("lengths", "both"):
        options["lengths"] = torch.randint(0, width + 1, (rows,), generator=generator)
    if how in ("attention_mask", "both"):
        options["attention_mask"] = torch.rand(rows, width, generator=generator) < 0.8  # with holes
    native, slow = both_paths(force_backend, lambda: rewound(masker)(ids, **options))
    assert_same_batch(native, slow)
    kept = options.get("attention_mask", torch.ones(rows, width, dtype=torch.bool)).clone()
    if "lengths" in options:
        kept &= torch.arange(width) < options["lengths"].unsqueeze(1)
    assert torch.equal(native.input_ids[~kept], ids[~kept])
    assert bool((native.labels[~kept] == -100).all())
    starts = torch.arange(rows) * width
    ends = starts + width
    if "attention_mask" in options and width:  # a row begins behind the padding on its left
        starts = starts + options["attention_mask"].int().argmax(1)
    seen = torch.where(kept, ids, PAD).view(-1)
    shown = dataclasses.replace(native, input_ids=torch.where(kept, native.input_ids, PAD))
    check_invariants(masker, seen, starts, ends, shown)


def check_invariants(masker, tokens, starts, ends, batch: MaskedBatch) -> None:
    """What holds for every mask (SPEC 1.2, 1.4), read from the batch without the sampler."""
    tokens = tokens.reshape(-1).to(torch.int64)
    special = torch.tensor(sorted(SPECIALS))
    eligible = ~torch.isin(tokens, special)
    corrupted, labels = batch.input_ids.reshape(-1).to(torch.int64), batch.labels.reshape(-1)
    selected = labels != -100
    assert not bool((selected & ~eligible).any())
    assert torch.equal(labels[selected], tokens[selected])
    assert torch.equal(corrupted[~selected], tokens[~selected])

    positions = selected.nonzero().squeeze(1)
    used = positions.numel()
    assert torch.equal(batch.target_positions[:used], positions)
    assert torch.equal(batch.target_ids[:used], tokens[positions])
    for name, fill in (("target_positions", 0), ("target_ids", -100), ("target_spans", 0)):
        assert bool((getattr(batch, name)[used:] == fill).all()), name
    assert bool((batch.target_offsets[used:] == 0).all() and (batch.sbo_ids[used:] == -100).all())

    numerator, denominator = masker.settings.ratio
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        count = int(eligible[start:end].sum())
        assert int(selected[start:end].sum()) == -(-count * numerator // denominator)

    spans, capacity = spans_of(batch), batch.span_left.numel()
    # Special tokens may cut a text into more spans than its shape lets expect.
    assert int(batch.dropped_spans) == max(0, len(spans) - capacity)
    owner = {
        p: i
        for i, (s, e) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
        for p in range(s, e)
    }
    for number, span in enumerate(spans):
        first, last = span.positions[0], span.positions[-1]
        assert span.positions == list(range(first, last + 1))  # offsets count without holes
        assert len({owner[p] for p in span.positions}) == 1
        neighbours = [p for p in (first - 1, last + 1) if owner.get(p) == owner[first]]
        assert not any(bool(selected[p]) for p in neighbours)  # merged spans are maximal
        if number >= capacity:
            assert set(span.sbo) == {-100}
            continue
        pair, slots = (first - 1, last + 1), masker.settings.max_span_targets
        has_sbo = len(neighbours) == 2 and all(bool(eligible[p]) for p in neighbours)
        if masker.settings.internal_endpoints:
            pair, has_sbo = (first, last), owner.get(last - 1) == owner[last]
        has_sbo &= masker.scheme != "piece"
        expected = [int(tokens[p]) for p in span.positions[:slots]] if has_sbo else []
        assert span.sbo == expected + [-100] * (len(span.positions) - len(expected))
        assert (span.left, span.right) == (pair if has_sbo else (0, 0))
        assert int(batch.span_left[number]) == span.left
    assert bool(
        (batch.span_left[len(spans) :] == 0).all() and (batch.span_right[len(spans) :] == 0).all()
    )


@given(
    masker=maskers(),
    lengths=st.lists(st.sampled_from([0, 1, 2, 31, 127, 510]), min_size=1, max_size=12),
)
@example(masker=make_masker(mask_ratio=1.0), lengths=[1, 2, 510, 0])
@settings(max_examples=60)
def test_invariants_on_long_text(core, masker, lengths):
    """As above without the slow reference, on sizes that cross many bitmap words."""
    ends = torch.tensor(lengths).cumsum(0)
    tokens = word_text(int(ends[-1]), seed=len(lengths))
    starts = ends - torch.tensor(lengths)
    marks = marks_for(masker, tokens, len(lengths))
    batch = masker.packed(tokens, torch.cat([starts[:1], ends]), **marks)
    check_invariants(masker, tokens, starts, ends, batch)
    assert int(batch.dropped_spans) == 0


# Independence ------------------------------------------------------------------------------------


def rows_of_text(rows: int, width: int = 128) -> torch.Tensor:
    return torch.stack([word_text(width, seed=i) for i in range(rows)])


def test_a_mask_depends_on_seed_epoch_and_sample_only(backend):
    rows = 12
    ids, samples = rows_of_text(rows), torch.arange(1000, 1000 + rows)
    masker = make_masker(seed=5)
    whole = masker(ids, sample_ids=samples, epoch=3)

    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    shuffled = masker(ids[order].contiguous(), sample_ids=samples[order], epoch=3)
    assert torch.equal(shuffled.input_ids, whole.input_ids[order])
    assert torch.equal(shuffled.labels, whole.labels[order])

    alone = [
        masker(ids[i : i + 1], sample_ids=samples[i : i + 1], epoch=3).labels for i in range(rows)
    ]
    assert torch.equal(torch.cat(alone), whole.labels)

    padded = torch.nn.functional.pad(ids, (0, 37), value=PAD)
    for options in (
        {},
        {"lengths": torch.full((rows,), 128)},
        {"attention_mask": (padded != PAD).int()},
    ):
        wide = masker(padded, sample_ids=samples, epoch=3, **options)
        assert torch.equal(wide.input_ids[:, :128], whole.input_ids)
        assert torch.equal(wide.labels[:, :128], whole.labels)

    packed = masker.packed(ids.view(-1), torch.arange(0, 128 * rows + 1, 128), samples, 3)
    assert torch.equal(packed.labels, whole.labels.view(-1))
    again = make_masker(seed=5)(ids, sample_ids=samples, epoch=torch.tensor([3]))
    assert_same_batch(again, whole)


def test_seed_epoch_and_sample_each_change_the_mask(backend):
    ids = rows_of_text(1).expand(40, -1).contiguous()
    masks = [
        make_masker(seed=s)(ids, epoch=e).labels
        for s, e in ((0, 0), (1, 0), (2**32, 0), (0, 1), (-1, 0))
    ]
    rows = torch.cat(masks)
    assert (
        torch.unique(rows, dim=0).shape[0] == rows.shape[0]
    )  # 200 masks of one text, no two alike


def test_seeds_that_are_equal_modulo_two_to_the_64():
    ids = rows_of_text(3)
    assert_same_batch(make_masker(seed=-1)(ids), make_masker(seed=2**64 - 1)(ids))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_nothing(core, threads):
    lengths = torch.randint(0, 300, (200,), generator=torch.Generator().manual_seed(1))
    tokens = word_text(int(lengths.sum()), seed=2)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    masker = make_masker(seed=9)
    one = masker.packed(tokens, cu_seqlens)
    torch.set_num_threads(threads)
    assert_same_batch(rewound(masker).packed(tokens, cu_seqlens), one)


# Capacity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"geometric_p": 1.0}, {"mask_ratio": 0.5}, {"min_words": 5}, {"mask_ratio": 0.02}],
)
@pytest.mark.parametrize(
    "rows, width", [(1, 512), (8, 512), (64, 128), (256, 32), (3, 7), (1, 2000)]
)
@pytest.mark.parametrize("words", ["one piece", "mixed"])
def test_spans_do_not_overflow(force_backend, options, rows, width, words):
    """The capacity's margin is 6.5 deviations: no overflow in thousands of rows."""
    force_backend("native")
    shares = (1.0, 1e-12, 1e-12, 1e-12) if words == "one piece" else (0.80, 0.12, 0.05, 0.03)
    ids = word_text(rows * width, seed=3, shares=shares).view(rows, width)
    masker = make_masker(**options)
    for epoch in range(max(1, 1500 // rows)):
        assert int(masker(ids, epoch=epoch).dropped_spans) == 0


def test_many_short_sequences_do_not_overflow(force_backend):
    force_backend("native")
    lengths = torch.randint(0, 9, (2000,), generator=torch.Generator().manual_seed(1))
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    tokens = word_text(int(lengths.sum()), seed=4)
    for epoch in range(100):
        assert int(make_masker().packed(tokens, cu_seqlens, epoch=epoch).dropped_spans) == 0


def test_span_capacity_is_well_below_target_capacity():
    """Or the first product of the SBO head on spans gains nothing (DESIGN decision 7)."""
    batch = make_masker()(rows_of_text(8, 512))
    assert batch.target_ids.shape[0] == 8 * 77
    assert batch.span_left.shape[0] < 0.6 * 8 * 77


def direct_arguments(capacity: int, ids: torch.Tensor, masker: SpanMasker):
    flags = word_starts().to(torch.uint8) * reference.WORD_START
    flags[list(SPECIALS)] |= reference.SPECIAL
    n = ids.shape[0]
    ends = torch.tensor([n // 2, n])
    starts, pool = torch.tensor([0, n // 2]), torch.tensor(list(POOL))
    targets = sum(
        mask_reference.budget_of(int(e - s), masker.settings.ratio)
        for s, e in zip(starts, ends, strict=True)
    )
    return (
        ids,
        starts,
        ends,
        torch.arange(2),
        torch.tensor([0]),
        flags,
        pool,
        masker.settings,
        targets,
        capacity,
        marks_for(masker, ids).get("candidates"),
    )


@pytest.mark.parametrize("endpoints", ["external", "internal"])
@pytest.mark.parametrize("capacity", [0, 1, 2, 5])
def test_overflow_drops_sbo_targets_only(backend, capacity, endpoints):
    ids, masker = word_text(600, seed=8), make_masker(seed=3, endpoints=endpoints)
    full = MaskedBatch(*mask_op.span_mask(*direct_arguments(200, ids, masker)))
    small = MaskedBatch(*mask_op.span_mask(*direct_arguments(capacity, ids, masker)))
    spans = len(spans_of(full))
    assert int(full.dropped_spans) == 0
    assert int(small.dropped_spans) == spans - capacity > 0
    for name in ("input_ids", "labels", "target_positions", "target_ids", "target_offsets"):
        assert torch.equal(getattr(small, name), getattr(full, name)), name
    kept = full.target_spans < capacity
    assert torch.equal(small.sbo_ids, torch.where(kept, full.sbo_ids, -100))
    assert torch.equal(small.span_left, full.span_left[:capacity])
    assert torch.equal(small.span_right, full.span_right[:capacity])


def test_overflow_agrees_between_paths(force_backend):
    ids, masker = word_text(600, seed=8), make_masker(seed=3)
    for capacity in (0, 1, 7):
        arguments = direct_arguments(capacity, ids, masker)
        native, slow = both_paths(
            force_backend, lambda a=arguments: MaskedBatch(*mask_op.span_mask(*a))
        )
        assert_same_batch(native, slow)


@pytest.mark.parametrize("scheme", ["span", "entity"])
@pytest.mark.parametrize("capacity", [1, 4, 200])
def test_nothing_is_written_outside_the_outputs(core, monkeypatch, capacity, scheme):
    """Every output and working buffer stands between guard zones, which survive (RELIABILITY
    G7)."""
    guard, zone, buffers = -0x5A5A5A5A, 16, []

    def fenced(like, shape, dtype):
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 2 * zone,), guard, dtype=dtype)
        buffers.append(buffer)
        return buffer[zone : zone + size].view(shape)

    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, shape, dtype=None: fenced(t, shape, dtype or t.dtype)
    )
    monkeypatch.setattr(
        torch, "empty_like", lambda t, dtype=None: fenced(t, t.shape, dtype or t.dtype)
    )
    masker = make_masker(mask_ratio=0.4, scheme=scheme)
    arguments = direct_arguments(capacity, word_text(1111, seed=8), masker)
    outputs = mask_op.span_mask(*arguments)
    assert len(buffers) == 12
    for buffer in buffers:
        assert bool((buffer[:zone] == guard).all() and (buffer[-zone:] == guard).all())
    assert not any(bool((output == guard).any()) for output in outputs)
