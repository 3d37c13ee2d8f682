"""`MaskedBatch`: what it shows of itself, and the number of span targets that it carries."""

import dataclasses
import pickle

import pytest
import torch
from strategies import assert_same_batch, make_masker, word_text

from spanbert_ext import MaskedBatch, SBOHead

IDS = word_text(2 * 60, seed=1).view(2, 60)


def test_a_short_text_instead_of_ten_tensors():
    batch = make_masker(mask_ratio=0.2, max_words=1)(IDS)
    targets, spans = batch.target_ids.numel(), batch.span_left.numel()
    merged = int(batch.target_spans.max()) + 1
    shown = f"MaskedBatch(input_ids [2, 60] int64 on cpu, targets 24 of {targets}, "
    assert repr(batch) == shown + f"spans {merged} of {spans})"
    sizes = f"on meta, targets {targets}, spans {spans})"
    assert repr(batch.to("meta")).endswith(sizes)
    empty = make_masker()(torch.zeros(0, 5, dtype=torch.int64))
    assert repr(empty).endswith("targets 0 of 0, spans 0 of 0)")


def test_the_number_of_span_targets_goes_with_the_batch():
    batch = make_masker(max_span_targets=4, mask_ratio=0.9)(IDS)
    packed = make_masker(max_span_targets=4).packed(IDS.view(-1), torch.tensor([0, 120]))
    copies = batch.to("cpu"), batch.used(), pickle.loads(pickle.dumps(batch)), packed
    assert [b.max_span_targets for b in (batch, *copies)] == [4] * 5
    assert_same_batch(copies[2], batch)
    changed = dataclasses.replace(batch, labels=batch.labels + 1, max_span_targets=9)
    assert (changed.max_span_targets, batch.max_span_targets) == (9, 4)
    assert torch.equal(changed.labels, batch.labels + 1)


def test_a_head_with_fewer_positions_than_the_masker_has_targets(backend):
    """An error whatever this batch holds: its spans may happen to be short."""
    batch = make_masker(max_span_targets=15, max_words=1, mask_ratio=0.05)(IDS)
    assert int(batch.target_offsets.max()) < 10
    with pytest.raises(IndexError, match="max_span_targets=15.*max_span_targets=10.*same number"):
        SBOHead(8, max_span_targets=10)(torch.zeros(2, 60, 8), batch)


@pytest.mark.parametrize("scheme", ["span", "piece"])
def test_a_head_with_more_positions_is_fine(backend, scheme):
    """The embeddings behind the masker's number get no gradient."""
    head = SBOHead(8, max_span_targets=15)
    batch = make_masker(max_span_targets=3, mask_ratio=0.5, scheme=scheme)(IDS)
    head(torch.randn(2, 60, 8), batch).sum().backward()
    gradient = head.position_embeddings.weight.grad
    assert bool((gradient[3:] == 0).all())
    assert bool((gradient[:3] != 0).any()) == (scheme == "span")


def test_a_batch_made_by_hand_needs_no_number(backend):
    batch = make_masker()(IDS)
    plain = MaskedBatch(**{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)})
    assert plain.max_span_targets is None
    head = SBOHead(8)
    hidden = torch.randn(2, 60, 8)
    assert torch.equal(head(hidden, plain), head(hidden, batch))
