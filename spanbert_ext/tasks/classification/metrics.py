"""The measures of GLUE, in numpy. All are fractions; what is not defined counts as 0.0.

Not defined are: Matthews and F1 where their denominator is 0 (one class only; nothing positive),
both correlations where one side is constant or there are fewer than two values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spanbert_ext.tasks.classification.layouts import Measure
from spanbert_ext.tasks.scores import confusion


def accuracy(counts: np.ndarray) -> float:
    """Share of the diagonal of a confusion matrix."""
    total = int(counts.sum())
    return int(np.trace(counts)) / total if total else 0.0


def f1(counts: np.ndarray, positive: int = 1) -> float:
    """F1 of one class of a confusion matrix."""
    hits = int(counts[positive, positive])
    either = int(counts[positive].sum() + counts[:, positive].sum())
    return 2 * hits / either if either else 0.0


def matthews(counts: np.ndarray) -> float:
    """Matthews' correlation coefficient of a confusion matrix of any size (Gorodkin 2004)."""
    gold, predicted = counts.sum(1).tolist(), counts.sum(0).tolist()
    total = sum(gold)
    covariance = int(np.trace(counts)) * total - _dot(gold, predicted)
    # Whole numbers of Python: products of four counts do not fit into 64 bits.
    variances = (total**2 - _dot(gold, gold)) * (total**2 - _dot(predicted, predicted))
    return covariance / math.sqrt(variances) if variances else 0.0


def _dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation of two [n] arrays of finite numbers."""
    a, b = _direction(gold), _direction(predicted)
    # Rounding may pass 1 by a few units in the last place.
    return float(np.clip(a @ b, -1, 1)) if a is not None and b is not None else 0.0


def _direction(values: np.ndarray) -> np.ndarray | None:
    """The values less their mean, of norm 1; None if they are constant."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or values.min() == values.max():
        return None
    values = values / np.abs(values).max()
    centred = values - values.mean()
    norm = np.linalg.norm(centred)
    return centred / norm if norm else None


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's correlation of two [n] arrays: Pearson's of the ranks, ties averaged."""
    return pearson(_ranks(gold), _ranks(predicted))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place.reshape(-1)]


def measures(name: Measure, gold: Sequence, predicted: Sequence, classes: int) -> dict[str, float]:
    """What GLUE reports of a task, in percent.

    Args:
        name: the measure that picks the best model; among the results.
        gold, predicted: [n] class numbers, or scores for "pearson_and_spearman".
        classes: how many there are.
    """
    if name == "pearson_and_spearman":
        found = {"pearson": pearson(gold, predicted), "spearman": spearman(gold, predicted)}
        found[name] = (found["pearson"] + found["spearman"]) / 2
    else:
        counts = confusion(gold, predicted, classes)
        found = {"accuracy": accuracy(counts)}
        if name == "matthews":
            found[name] = matthews(counts)
        if name == "accuracy_and_f1":
            found["f1"] = f1(counts)
            found[name] = (found["accuracy"] + found["f1"]) / 2
    return {key: 100 * value for key, value in found.items()}
