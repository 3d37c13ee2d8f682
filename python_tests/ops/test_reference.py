"""The specification itself, against published numbers and answers typed by hand."""

import math

import pytest
import torch
from row_functions import gather_boundaries
from scipy import stats
from strategies import assert_same_batch, fields, make_masker

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.reference import span_mask as mask_reference

PUBLISHED_LENGTHS = [0.2241, 0.1792, 0.1434, 0.1147, 0.0918, 0.0734, 0.0587, 0.0470, 0.0376, 0.0301]


@pytest.mark.parametrize(
    "counter, key, words",
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, words):
    """The vectors that Random123 publishes for philox4x32-10."""
    parsed = [[int(w, 16) for w in text.split()] for text in (counter, key, words)]
    assert reference.philox4x32(parsed[0], parsed[1]) == tuple(parsed[2])


def test_draws_are_philox_of_number_epoch_and_sample():
    draws = mask_reference.SequenceDraws(
        seed=0x299F31D0A4093822, epoch=0x85A308D3, sample_id=0x0370734413198A2E
    )
    assert draws.span(0x243F6A88) == (0xD16CFE09, 0x94FDCCEB)
    zero = mask_reference.SequenceDraws(0, 0, 0)
    assert zero.span(0) == (0x6627E8D5, 0xE169C58D)
    assert zero.position(3) == reference.philox4x32((0x80000003, 0, 0, 0), (0, 0))[:2]


@pytest.mark.parametrize(
    "pieces, ratio, budget",
    [
        (510, (3, 20), 77),
        (7, (3, 20), 2),
        (0, (3, 20), 0),
        (1, (3, 20), 1),
        (20, (3, 20), 3),
        (21, (3, 20), 4),
        (9, (1, 1), 9),
        (1, (1, 10**6), 1),
        (10**6 + 1, (1, 10**6), 2),
    ],
)
def test_budget(pieces, ratio, budget):
    assert mask_reference.budget_of(pieces, ratio) == budget


def test_mask_ratio_is_held_as_the_fraction_it_was_written_as():
    assert make_masker(mask_ratio=0.15).settings.ratio == (3, 20)
    assert make_masker(mask_ratio=1.0).settings.ratio == (1, 1)
    assert make_masker(mask_ratio=1e-6).settings.ratio == (1, 10**6)


class Draws:
    """Draws that were written down, in place of random ones: (words, rank of the anchor, free
    pieces)."""

    def __init__(self, settings, *spans, kind=0):
        self.words = [
            (settings.length_thresholds[words - settings.min_words] - 1, -(-(rank << 32) // free))
            for words, rank, free in spans
        ]
        self.kind = kind

    def span(self, number):
        return self.words[number]

    def position(self, place):
        return self.kind, 0


def masked_places(n, starts, spans, **options):
    settings = make_masker(**options).settings
    masked = mask_reference.sample_mask([True] * n, starts, settings, Draws(settings, *spans))
    return [i for i, flag in enumerate(masked) if flag]


def test_worked_example_of_the_specification():
    """SPEC 1.2: 20 one-piece words, budget 3; anchor 5 with 2 words, then anchor 7, the fifth free
    piece, with 4."""
    assert masked_places(20, [True] * 20, [(2, 5, 20), (4, 5, 18)]) == [5, 6, 7]


def test_anchor_goes_back_to_its_word_start_and_the_budget_cuts_a_word():
    starts = [True, True, False, False, True, True, False]
    assert masked_places(7, starts, [(1, 3, 7)]) == [
        1,
        2,
    ]  # ceil(0.15 * 7) = 2 of a three-piece word
    assert masked_places(7, starts, [(1, 3, 7)], mask_ratio=3 / 7) == [1, 2, 3]
    assert masked_places(7, starts, [(2, 6, 7), (1, 0, 5)], mask_ratio=3 / 7) == [
        0,
        5,
        6,
    ]  # the end cuts a span


def test_masked_pieces_cost_no_budget_but_extend_the_span():
    # {4}, then three words from 3: piece 4 is passed over and 5 is reached.
    assert masked_places(20, [True] * 20, [(1, 4, 20), (3, 3, 19)]) == [3, 4, 5]


def test_a_special_token_ends_a_span_and_what_follows_it_begins_a_word():
    settings = make_masker(mask_ratio=1.0).settings
    eligible = [True, True, False, True, True]
    # The piece behind the special token is a continuation; the anchor on the last piece still stops
    # there.
    starts = [True, True, False, False, False]
    draws = Draws(settings, (10, 3, 4), (10, 0, 2))
    assert mask_reference.sample_mask(eligible, starts, settings, draws) == eligible
    settings = make_masker(mask_ratio=0.25).settings
    draws = Draws(settings, (1, 3, 4))
    assert mask_reference.sample_mask(eligible, starts, settings, draws) == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_runs():
    flags = [bool(int(c)) for c in "0110111001"]
    assert mask_reference.runs_of(flags) == [(1, 3), (4, 7), (9, 10)]
    assert mask_reference.runs_of([]) == []
    assert mask_reference.runs_of([True]) == [(0, 1)]


def scripted_batch(monkeypatch, spans, kind, ids, **options):
    """`mask_reference.span_mask` of one sequence whose draws are written down."""
    settings = make_masker(random_tokens=[150, 151], **options).settings
    monkeypatch.setattr(
        mask_reference, "SequenceDraws", lambda *_: Draws(settings, *spans, kind=kind)
    )
    flags = torch.full((200,), reference.WORD_START, dtype=torch.uint8)
    flags[:4] = reference.SPECIAL
    n = len(ids)
    columns = mask_reference.span_mask(
        torch.tensor(ids),
        torch.tensor([0]),
        torch.tensor([n]),
        torch.tensor([0]),
        torch.tensor([0]),
        flags,
        torch.tensor([150, 151]),
        settings,
        4,
        2,
    )
    return MaskedBatch(*columns)


TEXT = list(range(10, 30))


def test_worked_example_batch(monkeypatch):
    """The record of SPEC 1.2: boundaries 4 and 8, targets x5 x6 x7, one decision for the merged
    span."""
    batch = scripted_batch(monkeypatch, [(2, 5, 20), (4, 5, 18)], 0, TEXT)
    assert batch.input_ids.tolist() == [*TEXT[:5], 3, 3, 3, *TEXT[8:]]
    assert batch.labels.tolist() == [-100] * 5 + [15, 16, 17] + [-100] * 12
    assert batch.target_positions.tolist() == [5, 6, 7, 0]
    assert batch.target_ids.tolist() == [15, 16, 17, -100]
    assert batch.target_spans.tolist() == [0, 0, 0, 0]
    assert batch.target_offsets.tolist() == [0, 1, 2, 0]
    assert batch.sbo_ids.tolist() == [15, 16, 17, -100]
    assert (batch.span_left.tolist(), batch.span_right.tolist()) == ([4, 0], [8, 0])
    assert batch.dropped_spans.tolist() == [0]


@pytest.mark.parametrize(
    "anchor, places", [(0, [0, 1, 2]), (17, [17, 18, 19])], ids=["first", "last"]
)
def test_a_span_at_an_edge_has_no_boundaries(monkeypatch, anchor, places):
    batch = scripted_batch(monkeypatch, [(3, anchor, 20)], 0, TEXT)
    assert batch.target_positions.tolist() == [*places, 0]
    assert batch.target_ids.tolist() == [TEXT[p] for p in places] + [-100]
    assert batch.sbo_ids.tolist() == [-100] * 4
    assert batch.span_left.tolist() == batch.span_right.tolist() == [0, 0]


def test_a_special_neighbour_is_no_boundary(monkeypatch):
    ids = [1, *TEXT[1:19], 2]  # CLS ... SEP: 18 eligible pieces
    batch = scripted_batch(monkeypatch, [(3, 0, 18)], 0, ids)
    assert batch.target_positions.tolist() == [1, 2, 3, 0]
    assert batch.sbo_ids.tolist() == [-100] * 4


def test_max_span_targets_cuts_the_sbo_and_not_the_mlm(monkeypatch):
    batch = scripted_batch(monkeypatch, [(3, 5, 20)], 0, TEXT, max_span_targets=2)
    assert batch.target_ids.tolist() == [15, 16, 17, -100]
    assert batch.sbo_ids.tolist() == [15, 16, -100, -100]


@pytest.mark.parametrize(
    "share, expected",
    [
        (0.0, [3, 3, 3]),
        (0.79, [3, 3, 3]),
        (0.81, [150] * 3),
        (0.89, [150] * 3),
        (0.91, [15, 16, 17]),
    ],
    ids=["mask", "still mask", "random", "still random", "keep"],
)
def test_replacement_of_a_merged_span(monkeypatch, share, expected):
    """80/10/10; the scripted draw for the random piece is 0, so the first of the pool is taken."""
    batch = scripted_batch(monkeypatch, [(3, 5, 20)], int(share * 2**32), TEXT)
    assert batch.input_ids.tolist() == [*TEXT[:5], *expected, *TEXT[8:]]
    assert batch.labels.tolist() == [-100] * 5 + [15, 16, 17] + [-100] * 12


def test_ratio_one_masks_everything(backend):
    """Typed by hand: with mask_ratio 1 each stretch between specials is one merged span."""
    masker = make_masker(mask_ratio=1.0, mask_prob=1.0, random_prob=0.0)
    batch = masker(torch.tensor([[1, 10, 11, 2, 12, 13], [20, 21, 22, 0, 0, 0]]))
    assert batch.input_ids.tolist() == [[1, 3, 3, 2, 3, 3], [3, 3, 3, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 10, 11, -100, 12, 13], [20, 21, 22, -100, -100, -100]]
    assert batch.target_positions.tolist() == [1, 2, 4, 5, 6, 7, 8] + [0] * 5
    assert batch.target_ids.tolist() == [10, 11, 12, 13, 20, 21, 22] + [-100] * 5
    assert batch.target_spans.tolist() == [0, 0, 1, 1, 2, 2, 2] + [0] * 5
    assert batch.target_offsets.tolist() == [0, 1, 0, 1, 0, 1, 2] + [0] * 5
    assert batch.sbo_ids.tolist() == [-100] * 12
    assert set(batch.span_left.tolist()) == set(batch.span_right.tolist()) == {0}


def test_one_seed_is_pinned_for_ever(backend):
    """A mask is part of a run's identity: seed 1, epoch 2, sample 3 must mean this in every later
    version.

    Reasoned from Philox of key (1, 0) and counters (number, 2, 3, 0): span draw 0 is (2361869905,
    509561228), so four words from free piece 16 * 509561228 / 2^32 = 1, cut at the budget of 3.
    Place 1 has kind 0.8286, random; the second words of places 1, 2, 3 pick numbers 19, 49, 33 of
    the pool of 60 that begins at 140.
    """
    batch = make_masker(seed=1).packed(
        torch.arange(20, 36), torch.tensor([0, 16]), torch.tensor([3]), 2
    )
    assert batch.target_positions.tolist() == [1, 2, 3]
    assert batch.input_ids.tolist() == [20, 159, 189, 173, *range(24, 36)]
    assert batch.sbo_ids.tolist() == [21, 22, 23]
    assert (batch.span_left.tolist(), batch.span_right.tolist()) == ([0, 0, 0], [4, 0, 0])


def test_length_thresholds_are_the_truncated_geometric_distribution():
    thresholds = make_masker().settings.length_thresholds
    steps = [b - a for a, b in zip((0, *thresholds[:-1]), thresholds, strict=True)]
    assert thresholds[-1] == 2**32
    assert [round(s / 2**32, 4) for s in steps] == PUBLISHED_LENGTHS
    mean = sum((i + 1) * s for i, s in enumerate(steps)) / 2**32
    assert round(mean, 3) == 3.797
    exact = [0.2 * 0.8**i / (1 - 0.8**10) for i in range(10)]
    assert all(abs(s / 2**32 - e) < 2**-31 for s, e in zip(steps, exact, strict=True))


def test_lengths_drawn_follow_the_distribution():
    """Chi-square over first draws of 20000 samples; a right sampler fails with probability 1e-6."""
    settings = make_masker(seed=11).settings
    counts = [0] * 10
    for sample in range(20000):
        word = mask_reference.SequenceDraws(settings.seed, 0, sample).span(0)[0]
        counts[sum(word >= t for t in settings.length_thresholds)] += 1
    expected = [20000 * 0.2 * 0.8**i / (1 - 0.8**10) for i in range(10)]
    assert stats.chisquare(counts, expected).pvalue > 1e-6
    mean = sum((i + 1) * c for i, c in enumerate(counts)) / 20000
    assert abs(mean - 3.797) < 5 * 2.6 / math.sqrt(20000)


def test_gelu_and_layer_norm_by_hand():
    x = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    g = [0.0, 0.8413447460685429, -0.15865525393145707]  # x * Phi(x)
    assert torch.allclose(reference.gelu(x)[0], torch.tensor(g, dtype=torch.float64), atol=1e-15)
    mean = sum(g) / 3
    spread = math.sqrt(sum((v - mean) ** 2 for v in g) / 3)
    expected = torch.tensor([[2 * (v - mean) / spread + 0.5 for v in g]], dtype=torch.float64)
    weight, bias = torch.full((3,), 2.0).double(), torch.full((3,), 0.5).double()
    assert torch.allclose(reference.gelu_layer_norm(x, weight, bias, 0.0), expected, atol=1e-14)


def test_boundaries_by_hand(backend):
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    pairs = gather_boundaries(hidden, torch.tensor([0, 0, 1]), torch.tensor([2, 0, 2]))
    assert pairs.tolist() == [[1, 2, 5, 6], [0, 0, 0, 0], [3, 4, 5, 6]]


def test_reference_runs_on_every_field_dtype():
    masker = make_masker(mask_ratio=0.5)
    batch = masker(torch.tensor([[10, 11, 12, 13]], dtype=torch.int32))
    dtypes = {name: value.dtype for name, value in fields(batch).items()}
    assert dtypes.pop("input_ids") == torch.int32
    assert set(dtypes.values()) == {torch.int64}
    assert_same_batch(batch, batch.to("cpu"))
