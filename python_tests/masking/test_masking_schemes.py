"""The masking schemes besides span, and internal endpoints: answers typed by hand, and what a call
must and must not say. That native and reference agree is the business of test_masking.py, how often
what is drawn that of test_masking_frequencies.py."""

import dataclasses

import pytest
import torch
from back_ends import refuses
from strategies import (
    CLS,
    SEP,
    assert_same_batch,
    make_masker,
    marks_for,
    naming,
    rewound,
    spans_of,
    word_text,
)

from spanbert_ext.ops import span_mask as mask_op
from spanbert_ext.ops.reference import span_mask as mask_reference

BEGINS, ON, OUT = 1, 2, 0
ALWAYS, NEVER = 0, 2**32 - 1  # a draw's first word, against candidate_threshold


class Draws:
    """Draws that were written down: (first word, rank of the place, places to choose from)."""

    def __init__(self, *spans):
        self.words = [(kind, -(-(rank << 32) // count)) for kind, rank, count in spans]

    def span(self, number):
        return self.words[number]


def masked_places(marks, spans, n=10, eligible=None, starts=None, **options):
    settings = make_masker(**{"scheme": "entity", **options}).settings
    eligible, starts = eligible or [True] * n, starts or [True] * n
    masked = mask_reference.sample_mask(eligible, starts, settings, Draws(*spans), marks)
    return [i for i, flag in enumerate(masked) if flag]


# Candidate spans ---------------------------------------------------------------------------------


def test_neighbours_are_two_candidates_and_a_headless_one_counts():
    marks = [OUT, BEGINS, ON, BEGINS, ON, ON, OUT, ON]
    spans = mask_reference.candidate_spans
    assert spans(marks, [True] * 8) == [(1, 3), (3, 6), (7, 8)]
    assert spans([], [True] * 8) == spans([OUT] * 8, [True] * 8) == []
    assert spans([ON, ON, BEGINS], [True] * 3) == [(0, 2), (2, 3)]


def test_a_special_token_belongs_to_no_candidate_and_ends_one():
    marks = [BEGINS, ON, ON, ON, BEGINS]
    eligible = [False, True, False, True, True]
    assert mask_reference.candidate_spans(marks, eligible) == [(1, 2), (3, 4), (4, 5)]


MARKS = [OUT, BEGINS, ON, BEGINS, ON, ON, OUT, OUT, OUT, BEGINS]


def test_a_draw_takes_a_candidate_or_a_word():
    assert masked_places(MARKS, [(ALWAYS, 1, 3)], mask_ratio=0.3) == [3, 4, 5]
    assert masked_places(MARKS, [(NEVER, 4, 10)], mask_ratio=0.1) == [4]
    # The second draw chooses among two candidates, the third among eight pieces less three.
    draws = [(ALWAYS, 1, 3), (ALWAYS, 1, 2), (NEVER, 3, 6)]
    assert masked_places(MARKS, draws, mask_ratio=0.5) == [3, 4, 5, 6, 9]


def test_the_budget_cuts_a_candidate():
    assert masked_places(MARKS, [(ALWAYS, 1, 3)], mask_ratio=0.2) == [3, 4]


def test_a_candidate_is_open_while_a_piece_of_it_is():
    """A word inside the second candidate leaves it among three; then its rest is drawn."""
    draws = [(NEVER, 4, 10), (ALWAYS, 1, 3)]
    assert masked_places(MARKS, draws, mask_ratio=0.3) == [3, 4, 5]
    # A word of two pieces ends the one-piece candidate in it: two are left.
    starts = [True] * 8 + [True, False]
    draws = [(NEVER, 9, 10), (ALWAYS, 1, 2)]
    assert masked_places(MARKS, draws, starts=starts, mask_ratio=0.5) == [3, 4, 5, 8, 9]


def test_without_an_open_candidate_every_draw_takes_a_word():
    marks = [BEGINS] + [OUT] * 9
    draws = [(ALWAYS, 0, 1), (ALWAYS, 8, 9), (ALWAYS, 0, 8)]
    assert masked_places(marks, draws, mask_ratio=0.3) == [0, 1, 9]
    assert masked_places([OUT] * 10, [(ALWAYS, 3, 10)], mask_ratio=0.1) == [3]
    assert masked_places(MARKS, [(ALWAYS, 3, 10)], mask_ratio=0.1, candidate_prob=0.0) == [3]


def test_candidate_prob_becomes_a_threshold():
    def threshold(**options):
        return make_masker(**{"scheme": "phrase", **options}).settings.candidate_threshold

    assert threshold() == 2**31
    assert threshold(candidate_prob=1.0) == 2**32
    assert threshold(scheme="span") == threshold(scheme="word") == threshold(scheme="piece") == 0
    one_word = make_masker(scheme="entity", min_words=3, max_words=7).settings
    assert (one_word.min_words, one_word.length_thresholds) == (1, (2**32,))


def test_one_seed_is_pinned_for_ever(backend):
    """As its namesake in test_reference.py: draw 0 of seed 1, epoch 2, sample 3 is (2361869905,
    509561228), shares 0.5499 and 0.1186. So a word with candidate_prob 0.5, the one at free piece
    16 * 0.1186 = 1; with 0.6 the first of three candidates, 4 and 5 being its pieces."""
    marks = torch.zeros(16, dtype=torch.uint8)
    marks[[4, 8, 13]], marks[[5, 9, 10]] = BEGINS, ON

    def places(**options):
        masker = make_masker(seed=1, scheme="entity", **options)
        ends, sample = torch.tensor([0, 16]), torch.tensor([3])
        batch = masker.packed(torch.arange(20, 36), ends, sample, 2, candidates=marks)
        return (batch.labels != -100).nonzero().squeeze(1).tolist()

    assert places(mask_ratio=1 / 16) == [1]
    assert places(mask_ratio=1 / 8, candidate_prob=0.6) == [4, 5]
    assert places(mask_ratio=1 / 16, candidate_prob=0.6) == [4]


@pytest.mark.parametrize("scheme", ["entity", "phrase"])
def test_padded_and_packed_take_the_same_candidates(backend, scheme):
    masker = make_masker(seed=4, scheme=scheme, mask_ratio=0.4)
    ids = word_text(5 * 40, seed=2).view(5, 40)
    marks = marks_for(masker, ids)["candidates"]
    padded = masker(ids, candidates=marks)
    packed = rewound(masker).packed(
        ids.view(-1), torch.arange(0, 201, 40), candidates=marks.view(-1)
    )
    assert torch.equal(padded.labels.view(-1), packed.labels)
    unmarked = rewound(masker)(ids, candidates=torch.zeros_like(marks))
    assert not torch.equal(padded.labels, unmarked.labels)
    # What the attention mask hides is special: marks there say nothing.
    hidden = torch.ones(5, 40)
    hidden[:, 20:] = 0
    changed = torch.where(hidden == 0, BEGINS, marks).to(torch.uint8)
    assert_same_batch(
        rewound(masker)(ids, candidates=changed, attention_mask=hidden),
        rewound(masker)(ids, candidates=marks, attention_mask=hidden),
    )


# Pieces and words --------------------------------------------------------------------------------


def test_pieces_have_no_boundaries(backend):
    """Everything masked but the specials: two runs, listed as spans, none for the SBO."""
    masker = make_masker(scheme="piece", mask_ratio=1.0, mask_prob=1.0, random_prob=0.0)
    batch = masker(torch.tensor([[10, 101, 102, SEP, 11, 103, CLS, 12]]))
    assert batch.input_ids.tolist() == [[3, 3, 3, SEP, 3, 3, CLS, 3]]
    assert batch.target_spans.tolist() == [0, 0, 0, 1, 1, 2, 0, 0]
    assert batch.target_offsets.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert batch.sbo_ids.tolist() == [-100] * 8
    assert not batch.span_left.any() and not batch.span_right.any()


def test_pieces_are_replaced_one_by_one():
    assert make_masker(scheme="piece").settings.per_piece
    assert not any(make_masker(scheme=s).settings.per_piece for s in ("span", "word", "entity"))
    assert make_masker(scheme="word", replacement="piece").settings.per_piece


def test_only_the_last_word_may_be_cut(backend):
    """Words of three pieces, budget 7: two whole words and the first piece of a third."""
    ids = torch.tensor([10, 101, 102] * 7).expand(200, -1).contiguous()
    selected = make_masker(scheme="word", mask_ratio=1 / 3)(ids).labels != -100
    words = selected.view(200, 7, 3).long()
    assert words.sum(2).sort(1).values.tolist() == [[0, 0, 0, 0, 1, 3, 3]] * 200
    assert bool(
        (words[:, :, 0] >= words[:, :, 1]).all() and (words[:, :, 1] >= words[:, :, 2]).all()
    )


@pytest.mark.parametrize("scheme", ["piece", "word", "entity", "phrase"])
def test_every_target_may_be_a_span(scheme):
    """Spans of a word, that is of a piece, leave no room below the number of targets."""
    masker, ids = make_masker(scheme=scheme, mask_ratio=0.5), torch.full((4, 100), 10)
    batch = masker(ids, **marks_for(masker, ids, seed=2))
    assert batch.span_left.shape == batch.target_ids.shape
    assert int(batch.dropped_spans) == 0 and len(spans_of(batch)) > 60


# Internal endpoints ------------------------------------------------------------------------------


def test_internal_endpoints_by_hand(backend):
    """All is masked; a single first token has no boundaries, every other span is its own."""
    masker = make_masker(
        endpoints="internal", mask_ratio=1.0, mask_prob=1.0, random_prob=0.0, max_span_targets=2
    )
    ids = [10, CLS, 11, SEP, 12, 13, 14]
    batch = masker.packed(torch.tensor([*ids, 20, SEP, 21, 22]), torch.tensor([0, 7, 11]))
    assert batch.target_positions[:8].tolist() == [0, 2, 4, 5, 6, 7, 9, 10]
    assert batch.target_spans[:8].tolist() == [0, 1, 2, 2, 2, 3, 4, 4]
    assert batch.span_left[:5].tolist() == [0, 2, 4, 0, 9]
    assert batch.span_right[:5].tolist() == [0, 2, 6, 0, 10]
    assert batch.sbo_ids[:8].tolist() == [-100, 11, 12, 13, -100, -100, 21, 22]
    first = masker(torch.tensor([[10, 11, SEP]]))
    assert (first.span_left[0], first.span_right[0]) == (0, 1)
    assert first.sbo_ids.tolist() == [10, 11, -100]


def test_endpoints_change_boundaries_only(backend):
    ids = word_text(8 * 64, seed=3).view(8, 64)
    ids[:, 0], ids[:, -1] = CLS, SEP
    external, internal = (
        make_masker(seed=5, mask_ratio=0.3, endpoints=ends)(ids)
        for ends in ("external", "internal")
    )
    same = {f.name for f in dataclasses.fields(external)} - {"sbo_ids", "span_left", "span_right"}
    for name in same:
        assert torch.equal(getattr(external, name), getattr(internal, name)), name
    both = external.span_right > 0
    assert torch.equal(internal.span_left[both], external.span_left[both] + 1)
    assert torch.equal(internal.span_right[both], external.span_right[both] - 1)
    # All spans of a sequence behind a [CLS] qualify, those beside [CLS] and [SEP] among them.
    assert int((internal.span_right > 0).sum()) == len(spans_of(internal)) > int(both.sum())


# Contract ----------------------------------------------------------------------------------------

IDS = torch.tensor([[CLS, 10, 11, 12, SEP], [CLS, 20, 21, 22, SEP]])
GOOD = torch.zeros(2, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    "marks, error, message",
    [
        (None, ValueError, "entity needs candidates.*uint8"),
        (GOOD.tolist(), TypeError, "candidates.*tensor.*list"),
        (GOOD[:1], ValueError, r"candidates.*\(2, 5\).*\(1, 5\)"),
        (GOOD.view(-1), ValueError, r"candidates.*\(2, 5\).*\(10,\)"),
        (GOOD.int(), TypeError, "candidates.*uint8.*int32"),
        (GOOD.bool(), TypeError, "candidates.*uint8.*bool"),
        (GOOD.to("meta"), ValueError, "candidates.*cpu.*meta"),
        (torch.zeros(5, 2, dtype=torch.uint8).t(), ValueError, "candidates.*contiguous"),
        (GOOD + 3, IndexError, naming("candidates", 3)),
    ],
)
def test_bad_candidates(backend, marks, error, message):
    masker = make_masker(scheme="entity")
    with refuses(error, match=message):
        masker(IDS, candidates=marks)
    if isinstance(marks, torch.Tensor) and marks.shape == IDS.shape and marks.is_contiguous():
        with refuses(error, match=message.replace(r"\(2, 5\)", r"\(10,\)")):
            masker.packed(IDS.view(-1), torch.tensor([0, 10]), candidates=marks.view(-1))


@pytest.mark.parametrize(
    "marks, error",
    [(GOOD.view(-1)[:9], ValueError), (GOOD.view(-1).long(), TypeError), (GOOD, ValueError)],
)
def test_the_operation_itself_rejects_bad_candidates(backend, marks, error):
    one, masker = torch.tensor([0]), make_masker(scheme="entity")
    rows = (one, one + 10, one, one)
    tables = (torch.ones(200, dtype=torch.uint8), one + 150)
    with pytest.raises(error, match="candidates"):
        mask_op.span_mask(IDS.view(-1), *rows, *tables, masker.settings, 9, 9, marks)


@pytest.mark.parametrize("scheme", ["span", "piece", "word"])
def test_candidates_that_nobody_reads_are_refused(backend, scheme):
    masker = make_masker(scheme=scheme)
    assert not masker.needs_candidates
    with pytest.raises(ValueError, match=f"{scheme} has no use for candidates"):
        masker(IDS, candidates=GOOD)
    with pytest.raises(ValueError, match=f"{scheme} has no use for candidates"):
        masker.packed(IDS.view(-1), torch.tensor([0, 10]), candidates=GOOD.view(-1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scheme": "entities"}, "scheme must be one of span, piece, word, entity, phrase"),
        ({"candidate_prob": -0.1}, "candidate_prob.*-0.1"),
        ({"candidate_prob": 1.1, "scheme": "entity"}, "candidate_prob.*1.1"),
        ({"endpoints": "outer"}, "endpoints must be one of external, internal.*outer"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_masker(**options)


def test_empty_batches(backend):
    masker = make_masker(scheme="entity")
    batch = masker(torch.zeros(0, 5, dtype=torch.int64), candidates=GOOD[:0])
    assert batch.target_ids.shape == (0,)
    nothing = masker.packed(torch.arange(0), torch.tensor([0, 0]), candidates=GOOD.view(-1)[:0])
    assert nothing.labels.shape == (0,)
