"""Pruning to spans that do not cross: the native choice equals the plain one, and both equal what
was worked out by hand."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.coref.model import pruning, reference
from spanbert_ext.tasks.coref.model.pruning import prune_spans


def kept(spans, scores, keep, length=20):
    starts, ends = (torch.tensor([s[i] for s in spans], dtype=torch.int64) for i in (0, 1))
    values = torch.tensor(scores, dtype=torch.float64)
    return prune_spans(starts, ends, values, length, keep).tolist()


@pytest.mark.parametrize(
    "spans, scores, keep, expected",
    [
        ([], [], 3, []),
        ([(2, 4)], [-7.0], 0, []),
        ([(2, 4)], [-7.0], 1, [0]),
        # The second best crosses the best from the right, the third from the left.
        ([(2, 4), (3, 6), (0, 2), (5, 6)], [4, 3, 2, 1], 4, [0, 3]),
        # Spans may lie inside one another, also at a common end, and may touch.
        (
            [(2, 6), (2, 4), (5, 6), (3, 5), (7, 7), (0, 9)],
            [6, 5, 1, 3, 2, 1.5],
            6,
            [5, 1, 0, 2, 4],
        ),
        # A span that holds a kept one is fine, one that cuts a kept one is not.
        ([(3, 3), (0, 5), (5, 8), (1, 2)], [9, 8, 7, 6], 3, [1, 3, 0]),
        # Of equal scores the earlier candidate wins.
        ([(4, 6), (3, 5), (5, 7)], [1, 1, 1], 2, [0]),
        ([(3, 5), (4, 6), (5, 7)], [1, 1, 1], 2, [0]),
        ([(5, 5), (1, 1), (3, 3)], [0.5, 0.5, 0.5], 2, [1, 0]),
        # The same span twice does not cross itself.
        ([(1, 2), (1, 2)], [1, 2], 5, [0, 1]),
        ([(0, 1), (1, 2), (2, 3)], [math.nan, -math.inf, math.inf], 3, [0, 2]),
        ([(0, 1), (1, 2)], [math.nan, -math.inf], 3, [1]),
    ],
)
def test_by_hand(backend, spans, scores, keep, expected):
    assert kept(spans, scores, keep) == expected


@st.composite
def documents(draw):
    length = draw(st.integers(1, 24))
    size = draw(st.integers(0, 60))
    place = st.integers(0, length - 1)
    spans = [tuple(sorted(draw(st.tuples(place, place)))) for _ in range(size)]
    # Few distinct scores, so that ties are common.
    score = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -1e30]))
    scores = draw(st.lists(score, min_size=size, max_size=size))
    return spans, scores, draw(st.integers(0, size + 1)), length


@given(documents())
def test_the_native_choice_is_the_plain_one(case):
    spans, scores, keep, length = case
    starts, ends = [s for s, _ in spans], [e for _, e in spans]
    columns = [torch.tensor(c, dtype=torch.int64) for c in (starts, ends)]
    ours = pruning._prune_spans(*columns, torch.tensor(scores, dtype=torch.float64), length, keep)
    assert ours.tolist() == reference.prune_spans(starts, ends, scores, keep)
    chosen = ours.tolist()
    assert not any(reference.crosses(*spans[a], *spans[b]) for a in chosen for b in chosen)


def all_spans(length, width):
    starts = torch.arange(length).repeat_interleave(width)
    ends = starts + torch.arange(width).repeat(length)
    inside = ends < length
    return starts[inside], ends[inside]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_spans_of_a_document(dtype):
    starts, ends = all_spans(120, 30)
    scores = torch.randn(starts.numel(), dtype=dtype, generator=torch.Generator().manual_seed(1))
    ours = prune_spans(starts, ends, scores, 120, 48)
    plain = reference.prune_spans(starts.tolist(), ends.tolist(), scores.tolist(), 48)
    assert ours.tolist() == plain
    assert len(plain) == 48


def test_a_long_document_takes_a_moment():
    """20 000 pieces: 600 000 candidates, of which the plain way would make 10^9 comparisons."""
    starts, ends = all_spans(20_000, 30)
    scores = torch.randn(starts.numel(), generator=torch.Generator().manual_seed(2))
    begin = time.perf_counter()
    assert prune_spans(starts, ends, scores, 20_000, 3900).numel() == 3900
    assert time.perf_counter() - begin < 5


def test_the_operation_keeps_its_contract():
    starts, ends = all_spans(9, 4)
    scores = torch.arange(starts.numel(), dtype=torch.float32).cos()
    torch.library.opcheck(torch.ops.spanbert_ext.prune_spans, (starts, ends, scores, 9, 5))


def test_wrong_arguments_are_named(backend):
    starts, ends = torch.tensor([0, 2]), torch.tensor([1, 3])
    scores = torch.zeros(2)
    with pytest.raises(TypeError, match="starts must be torch.int64"):
        prune_spans(starts.int(), ends, scores, 4, 1)
    with pytest.raises(ValueError, match=r"ends must have shape \(2,\)"):
        prune_spans(starts, ends[:1], scores, 4, 1)
    with pytest.raises(TypeError, match="scores must be float32 or float64; got torch.bfloat16"):
        prune_spans(starts, ends, scores.bfloat16(), 4, 1)
    with pytest.raises(ValueError, match="keep must be at least 0; got -1"):
        prune_spans(starts, ends, scores, 4, -1)
    with pytest.raises(IndexError, match="candidate 1 runs from 2 to 3; expected 0 <= start"):
        prune_spans(starts, ends, scores, 3, 1)
    with pytest.raises(IndexError, match="candidate 0 runs from 2 to 1"):
        prune_spans(starts.flip(0), ends, scores, 4, 1)
