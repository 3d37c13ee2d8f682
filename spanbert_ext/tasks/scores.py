"""What the tasks do alike with scores of labels, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, float32 in, float32 out."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def confusion(gold: Sequence[int], guessed: Sequence[int], classes: int) -> np.ndarray:
    """[classes, classes] int64: how often gold label i was taken for label j."""
    pairs = np.asarray(gold, np.int64) * classes + np.asarray(guessed, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
