"""Packing: nothing lost, nothing over capacity, full rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.data.packing import pack


def rows_of(packing):
    bounds = zip(packing.offsets[:-1], packing.offsets[1:], strict=True)
    return [packing.members[a:b].tolist() for a, b in bounds]


def best_fit_decreasing(lengths, capacity):
    """One sequence at a time: the fullest row that takes it. Returns the number of rows."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda i: rooms[i])
            rooms[best] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([], 8, []),
        ([8], 8, [[0]]),
        ([3, 5], 8, [[0, 1]]),
        ([5, 4, 4], 8, [[0], [1, 2]]),
        ([2, 7, 2, 2, 2, 1], 8, [[1, 5], [0, 2, 3, 4]]),
        ([3, 3, 3, 3], 8, [[0, 1], [2, 3]]),
    ],
)
def test_literal_rows(lengths, capacity, expected):
    assert rows_of(pack(np.array(lengths, dtype=np.int64), capacity)) == expected


@given(st.lists(st.integers(1, 24), max_size=200))
def test_all_are_packed_tightly(lengths):
    packing = pack(np.array(lengths, dtype=np.int64), 24)
    rows = rows_of(packing)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    assert all(row and sum(lengths[i] for i in row) <= 24 for row in rows)
    # Long ones as best fit does it; a row is added for a short one (up to 6) only if none has room.
    long = best_fit_decreasing([n for n in lengths if n > 6], 24)
    assert len(rows) <= max(long, -(-sum(lengths) // 19))
    assert len(rows) == long or min(lengths) <= 6


@pytest.mark.parametrize("mean", [3.0, 4.0])
def test_short_documents_are_spread(mean):
    random = np.random.default_rng(1)
    lengths = np.clip(random.lognormal(mean, 1.0, 20000), 3, 512).astype(np.int64)
    packing = pack(lengths, 512)
    counts = np.diff(packing.offsets)
    assert lengths.sum() / (len(packing) * 512) >= 0.98
    assert counts.max() <= 3 * counts.mean()


@pytest.mark.parametrize("seed", range(5))
def test_realistic_mixtures_fill_98_percent(seed):
    # Long documents cut near 510, their tails, and short documents.
    random = np.random.default_rng(seed)
    cut = 512 - np.minimum(random.geometric(1 / 12, 4000), 200)
    tails = random.integers(3, 512, 1500)
    short = np.clip(random.lognormal(4.5, 0.8, 4000), 3, 512).astype(np.int64)
    lengths = np.concatenate([cut, tails, short])
    packing = pack(lengths, 512)
    assert lengths.sum() / (len(packing) * 512) >= 0.98


def test_lengths_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 8\]; got 3..9"):
        pack(np.array([9, 3]), 8)
    with pytest.raises(ValueError, match="got 0..3"):
        pack(np.array([0, 3]), 8)
