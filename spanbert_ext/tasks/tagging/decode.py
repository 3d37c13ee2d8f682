"""From the probabilities of labels to one label for each word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spanbert_ext.tasks.tagging.schemes import OUTSIDE, Scheme, Tag, follows


class Transitions:
    """Which labels of a model may follow each other.

    Args:
        tags: the model's labels.
        scheme: bio or bilou.
    """

    def __init__(self, tags: Sequence[Tag], scheme: Scheme):
        # [K, K] bool, from the row to the column; [K] bool, at the edges of a sentence.
        self.allowed = np.array([[follows(a, b, scheme) for b in tags] for a in tags])
        self.first = np.array([follows(None, tag, scheme) for tag in tags])
        self.last = np.array([follows(tag, None, scheme) for tag in tags])
        if OUTSIDE not in tags:
            raise ValueError("a model without the label O may have no path at all")

    def best_path(self, scores: np.ndarray) -> np.ndarray:
        """The allowed sequence of labels with the largest sum of scores.

        Args:
            scores: [n, K] float, log-probabilities of one sentence.

        Returns:
            [n] int64.
        """
        best = scores.argmax(axis=1)
        # Where the best labels are an allowed sequence, no other has a larger sum: most sentences.
        return best if self._is_allowed(best) else self._viterbi(scores)

    def _is_allowed(self, path: np.ndarray) -> bool:
        if not len(path):
            return True
        inner = self.allowed[path[:-1], path[1:]].all()
        return bool(inner and self.first[path[0]] and self.last[path[-1]])

    def _viterbi(self, scores: np.ndarray) -> np.ndarray:
        scores = scores.astype(np.float64)
        barred = np.where(self.allowed, 0.0, -np.inf)
        columns = np.arange(len(barred))
        total = scores[0] + np.where(self.first, 0.0, -np.inf)
        came_from = np.zeros(scores.shape, dtype=np.int64)
        for place in range(1, len(scores)):
            step = total[:, None] + barred
            came_from[place] = step.argmax(axis=0)
            total = step[came_from[place], columns] + scores[place]
        path = np.empty(len(scores), dtype=np.int64)
        path[-1] = (total + np.where(self.last, 0.0, -np.inf)).argmax()
        for place in range(len(scores) - 1, 0, -1):
            path[place - 1] = came_from[place, path[place]]
        return path
