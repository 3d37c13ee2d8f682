"""Probabilities and counts of labels against scipy and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import confusion_matrix

from spanbert_ext.tasks.scores import confusion, log_softmax, softmax

CLASSES = 4
pairs = st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 2), min_size=1)


@given(pairs)
def test_confusion_is_that_of_scikit_learn(both):
    gold, guessed = map(list, zip(*both, strict=True))
    counts = confusion(gold, guessed, CLASSES)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, confusion_matrix(gold, guessed, labels=range(CLASSES)))


def test_no_pairs_no_confusion():
    assert confusion([], [], CLASSES).tolist() == [[0] * CLASSES] * CLASSES


def test_softmax_of_large_logits():
    logits = np.array([[1e4, 1e4 - 2, -1e4], [-3e38, 0, 1]], np.float32)
    found = softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, special.softmax(logits.astype(np.float64), axis=1))


def test_log_softmax_of_large_logits():
    logits = np.array([[1000.0, 1000.0, -1000.0], [-5000.0, -5000.0, -5000.0]], dtype=np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float32
    assert np.exp(found) == pytest.approx(np.array([[0.5, 0.5, 0.0], [1 / 3] * 3]), abs=1e-6)
    assert log_softmax(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
