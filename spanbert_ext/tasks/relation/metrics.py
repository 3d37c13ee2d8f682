"""Precision, recall and F1 of relations, by the conventions of TACRED's scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RelationScore:
    """Counts of one relation, or of all.

    Args:
        gold: pairs that have it.
        guessed: pairs for which it was predicted.
        correct: both at once.
    """

    gold: int
    guessed: int
    correct: int

    @property
    def precision(self) -> float:
        """In percent; 100 where nothing was guessed, as TACRED's scorer has it."""
        return 100.0 * self._shares[0]

    @property
    def recall(self) -> float:
        """In percent; 0 where there is nothing to find, as TACRED's scorer has it."""
        return 100.0 * self._shares[1]

    @property
    def f1(self) -> float:
        """In percent; 0 where nothing is correct."""
        precision, recall = self._shares
        both = precision + recall
        return 100.0 * (2.0 * precision * recall / both) if both else 0.0

    @property
    def _shares(self) -> tuple[float, float]:
        """Precision and recall in [0, 1], as the scorer computes with them to the last digit."""
        precision = self.correct / self.guessed if self.guessed else 1.0
        return precision, self.correct / self.gold if self.gold else 0.0


def per_relation(
    gold: Sequence[str], guessed: Sequence[str], null_label: str | None
) -> dict[str, RelationScore]:
    """Counts of every relation that occurs, in order of name, without the null label."""
    in_gold, in_guessed = Counter(gold), Counter(guessed)
    correct = Counter(a for a, b in zip(gold, guessed, strict=True) if a == b)
    names = sorted((in_gold.keys() | in_guessed.keys()) - {null_label})
    return {n: RelationScore(in_gold[n], in_guessed[n], correct[n]) for n in names}


def micro(scores: Iterable[RelationScore]) -> RelationScore:
    """All relations together: the counts are summed."""
    scores = list(scores)
    return RelationScore(
        gold=sum(score.gold for score in scores),
        guessed=sum(score.guessed for score in scores),
        correct=sum(score.correct for score in scores),
    )
