"""Padding changes no mask: not where it is, not how much, in no scheme."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CLS, MASK, PAD, SEP, make_masker, marks_for, maskers, sequences

from spanbert_ext import SpanMasker


def unpadded(masker, tokens, sample, epoch, marks):
    ids, borders = torch.tensor(tokens, dtype=torch.int64), torch.tensor([0, len(tokens)])
    candidates = None if marks is None else torch.tensor(marks, dtype=torch.uint8)
    return masker.packed(ids, borders, torch.tensor([sample]), epoch, candidates)


def padded_row(values, left, width, fill):
    return [*[fill] * left, *values, *[fill] * (width - left - len(values))]


@given(
    masker=maskers(),
    texts=st.lists(sequences(40), min_size=1, max_size=4),
    lefts=st.lists(st.integers(0, 70), min_size=4, max_size=4),
    epoch=st.integers(0, 9),
)
@settings(max_examples=60)
def test_a_row_is_masked_as_it_is_without_padding(backend, masker, texts, lefts, epoch):
    lefts = lefts[: len(texts)]
    marks = [marks_for(masker, torch.tensor(t), len(t)).get("candidates") for t in texts]
    marks = [None if m is None else m.tolist() for m in marks]
    width = 70 + max(map(len, texts))
    ids = torch.tensor([padded_row(t, n, width, PAD) for t, n in zip(texts, lefts, strict=True)])
    ones = ([1] * len(text) for text in texts)
    mask = torch.tensor([padded_row(o, n, width, 0) for o, n in zip(ones, lefts, strict=True)])
    options = {}
    if masker.needs_candidates:
        rows = [padded_row(m, n, width, 0) for m, n in zip(marks, lefts, strict=True)]
        options["candidates"] = torch.tensor(rows, dtype=torch.uint8)
    samples = torch.arange(len(texts)) + 5
    batch = masker(ids, sample_ids=samples, epoch=epoch, attention_mask=mask, **options)
    sbo = torch.full((ids.numel(),), -100)
    used = batch.target_ids != -100
    sbo[batch.target_positions[used]] = batch.sbo_ids[used]
    sbo = sbo.view(ids.shape)
    for i, (text, left) in enumerate(zip(texts, lefts, strict=True)):
        alone = unpadded(masker, text, i + 5, epoch, marks[i])
        place = slice(left, left + len(text))
        assert torch.equal(batch.input_ids[i, place], alone.input_ids)
        assert torch.equal(batch.labels[i, place], alone.labels)
        if int(batch.dropped_spans) == 0 == int(alone.dropped_spans):
            own = torch.full((len(text),), -100)
            own[alone.target_positions] = torch.where(
                alone.target_ids == -100, own[alone.target_positions], alone.sbo_ids
            )
            assert torch.equal(sbo[i, place], own)


# What release 0.1.0 made of the row without padding, seed 5, sample 7, epoch 3: 20 ordinary pieces
# of which ten are masked.
ROW = [1, *range(5, 21), 41, 22, 42, 2]
MASKED = {
    ("span", "span"): [1, 5, 6, 7, 8, 9, 10, 3, 3, 3, 3, 3, 3, 3, 3, 3, 20, 41, 22, 42, 2],
    ("word", "span"): [1, 5, 6, 7, 8, 9, 10, 3, 3, 13, 3, 15, 3, 3, 18, 3, 20, 41, 22, 42, 2],
    ("span", "piece"): [1, 5, 6, 7, 8, 9, 10, 3, 12, 26, 3, 24, 3, 17, 22, 3, 20, 41, 22, 42, 2],
}


@pytest.mark.parametrize("scheme, replacement", MASKED)
@pytest.mark.parametrize("left, right", [(0, 0), (1, 0), (0, 9), (70, 3)])
def test_masks_of_explicit_ids_stay_what_they_were(backend, scheme, replacement, left, right):
    starts = torch.ones(50, dtype=torch.bool)
    starts[40:] = False
    masker = SpanMasker(
        starts, [0, 1, 2], 3, seed=5, mask_ratio=0.5, mask_prob=0.3, random_prob=0.4,
        scheme=scheme, replacement=replacement,
    )  # fmt: skip
    ids = torch.tensor([[0] * left + ROW + [0] * right])
    batch = masker(ids, sample_ids=torch.tensor([7]), epoch=3, attention_mask=ids != 0)
    assert batch.input_ids[0, left : left + len(ROW)].tolist() == MASKED[scheme, replacement]
    assert bool((batch.input_ids[0, :left] == 0).all())


def test_rows_of_padding_alone_and_lengths_beside_a_mask(backend):
    """A row whose mask is 0 everywhere has nothing to mask; a length may end before the mask
    begins."""
    ids = torch.tensor([[PAD] * 6, [PAD, PAD, CLS, 10, 11, SEP], [PAD, PAD, CLS, 10, 11, SEP]])
    masker = make_masker(mask_ratio=1.0, mask_prob=1.0, random_prob=0.0)
    batch = masker(ids, attention_mask=ids != PAD, lengths=torch.tensor([6, 6, 1]))
    assert batch.labels.tolist() == [[-100] * 6, [-100] * 3 + [10, 11, -100], [-100] * 6]
    assert batch.input_ids[1].tolist() == [PAD, PAD, CLS, MASK, MASK, SEP]
    empty = masker(torch.zeros(3, 0, dtype=torch.int64), attention_mask=torch.zeros(3, 0))
    assert empty.labels.shape == (3, 0)
