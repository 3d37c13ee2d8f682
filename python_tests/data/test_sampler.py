"""The order of rows: a keyed bijection, and batches by arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.data import KeyedPermutation, batch_of_step


def test_bijection_for_every_small_size():
    for n in range(1, 2001):
        images = KeyedPermutation(n, seed=n * 7, epoch=n % 5)(np.arange(n))
        assert np.array_equal(np.sort(images), np.arange(n)), n


@given(st.integers(1, 1 << 62), st.integers(-(2**63), 2**64), st.integers(0, 2**40), st.data())
def test_images_stay_in_range_and_do_not_collide(n, seed, epoch, data):
    ids = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    images = KeyedPermutation(n, seed, epoch)(np.asarray(ids))
    assert images.dtype == np.int64
    assert images.min() >= 0
    assert images.max() < n
    assert np.unique(images).size == len(ids)


def test_literal_table():
    # Resuming depends on these numbers: a change of the function makes old runs unresumable.
    assert KeyedPermutation(10, seed=0, epoch=0)(np.arange(10)).tolist() == [
        4,
        2,
        8,
        7,
        1,
        9,
        6,
        3,
        5,
        0,
    ]
    assert KeyedPermutation(10, seed=0, epoch=1)(np.arange(10)).tolist() == [
        6,
        3,
        0,
        9,
        4,
        2,
        7,
        5,
        1,
        8,
    ]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(KeyedPermutation(50, seed, epoch)(np.arange(50)).tolist())
        for seed in range(20)
        for epoch in range(20)
    }
    assert len(orders) == 400


@pytest.mark.parametrize("n", [2, 3, 6, 17])
def test_places_are_uniform_over_epochs(n):
    # Chi-square over n * n cells; 12 standard deviations of it have a false-alarm rate below 1e-6.
    epochs = 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), KeyedPermutation(n, 1, epoch)(np.arange(n))] += 1
    expected = epochs / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert chi_square < freedom + 12 * np.sqrt(2 * freedom)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 99))
def test_an_epoch_visits_different_rows(batch_rows, extra, seed):
    num_rows = batch_rows + extra
    steps = num_rows // batch_rows
    seen = np.concatenate([batch_of_step(s, batch_rows, num_rows, seed)[1] for s in range(steps)])
    assert np.unique(seen).size == steps * batch_rows
    assert batch_of_step(steps - 1, batch_rows, num_rows, seed)[0] == 0
    assert batch_of_step(steps, batch_rows, num_rows, seed)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 2, 4, 0), "step must be at least 0"),
        ((0, 5, 4, 0), "num_rows = 4.*got 5"),
        ((0, 0, 4, 0), "batch_rows"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_of_step(*arguments)


def test_bad_ids_are_refused():
    permutation = KeyedPermutation(4, 0, 0)
    with pytest.raises(IndexError, match=r"\[0, 4\); got 1..4"):
        permutation(np.array([1, 4]))
    with pytest.raises(TypeError, match="integers; got float64"):
        permutation(np.array([0.5]))
    with pytest.raises(ValueError, match="n must"):
        KeyedPermutation(0, 0, 0)
