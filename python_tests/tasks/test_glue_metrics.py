"""GLUE's measures against scikit-learn and scipy."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from spanbert_ext.tasks.classification import metrics
from spanbert_ext.tasks.scores import confusion

CLASSES = 3
labels = st.integers(0, CLASSES - 1)
label_pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)
# Whole numbers make ties; the others make values that differ in their last places alone.
numbers = st.one_of(st.integers(0, 5).map(float), st.floats(-1e6, 1e6, allow_subnormal=False))
number_pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40)


@given(label_pairs)
def test_classification_as_scikit_learn_has_it(pairs):
    gold, predicted = map(list, zip(*pairs, strict=True))
    counts = confusion(gold, predicted, CLASSES)
    wanted = oracle.confusion_matrix(gold, predicted, labels=range(CLASSES))
    assert counts.tolist() == wanted.tolist()
    assert metrics.accuracy(counts) == pytest.approx(oracle.accuracy_score(gold, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = oracle.f1_score(
            gold, predicted, labels=range(CLASSES), average=None, zero_division=0.0
        )
        matthews = oracle.matthews_corrcoef(gold, predicted)
    assert [metrics.f1(counts, n) for n in range(CLASSES)] == pytest.approx(each.tolist())
    assert metrics.matthews(counts) == pytest.approx(matthews, abs=1e-12)


@given(number_pairs)
def test_correlations_as_scipy_has_them(pairs):
    gold, predicted = map(np.array, zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spearman = stats.spearmanr(gold, predicted).statistic
        pearson = stats.pearsonr(gold, predicted).statistic
    assert metrics.spearman(gold, predicted) == pytest.approx(_or_0(spearman), abs=1e-12)
    if min(_relative_spread(gold), _relative_spread(predicted)) > 1e-6:
        assert metrics.pearson(gold, predicted) == pytest.approx(_or_0(pearson), abs=1e-9)
    assert -1 <= metrics.pearson(gold, predicted) <= 1


def _or_0(value):
    return 0.0 if math.isnan(value) else value


def _relative_spread(values):
    largest = np.abs(values).max()
    return np.ptp(values) / largest if np.ptp(values) else 1.0


def test_literal_values():
    counts = np.array([[3, 1], [2, 4]])  # gold x predicted
    assert metrics.accuracy(counts) == 0.7
    assert metrics.f1(counts) == pytest.approx(8 / 11)
    assert metrics.matthews(counts) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 6 * 5 * 5))
    assert metrics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert metrics.pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert metrics.spearman([1, 2, 2, 3], [1, 3, 3, 2]) == pytest.approx(1 / 3)
    assert metrics.spearman([1, 10, 100], [0.1, 0.2, 7]) == pytest.approx(1)


def test_what_is_not_defined_is_0():
    one_sided = confusion([1, 1, 0], [1, 1, 1], 2)
    assert metrics.matthews(one_sided) == 0
    assert metrics.matthews(one_sided.T) == 0
    assert metrics.f1(confusion([0, 0], [0, 0], 2)) == 0
    nothing = confusion([], [], 2)
    assert metrics.accuracy(nothing) == metrics.f1(nothing) == metrics.matthews(nothing) == 0
    for correlation in (metrics.pearson, metrics.spearman):
        assert correlation([1, 2, 3], [0.1, 0.1, 0.1]) == 0
        assert correlation([0.3] * 3, [1, 2, 3]) == 0
        assert correlation([1], [2]) == 0


def test_large_counts_do_not_overflow():
    counts = np.array([[2**40, 2**38], [2**37, 2**40]])
    small = counts // 2**37
    assert metrics.matthews(counts) == pytest.approx(metrics.matthews(small))
    huge = [1e300, -1e300, 5e299]
    assert metrics.pearson(huge, huge) == pytest.approx(1)
    tiny = [1e-300, -1e-300, 5e-301]
    assert metrics.pearson(tiny, huge) == pytest.approx(1)


def test_what_each_task_reports():
    gold, predicted = [0, 1, 1, 0], [0, 1, 0, 0]
    assert metrics.measures("accuracy", gold, predicted, 2) == {"accuracy": 75}
    found = metrics.measures("matthews", gold, predicted, 2)
    assert found == {"accuracy": 75, "matthews": pytest.approx(100 / math.sqrt(3))}
    found = metrics.measures("accuracy_and_f1", gold, predicted, 2)
    assert found == pytest.approx(
        {"accuracy": 75, "f1": 200 / 3, "accuracy_and_f1": (75 + 200 / 3) / 2}
    )
    found = metrics.measures("pearson_and_spearman", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], 0)
    assert found == pytest.approx({"pearson": 50, "spearman": 50, "pearson_and_spearman": 50})
