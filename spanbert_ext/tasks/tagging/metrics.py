"""Precision, recall and F1 over entities, as the CoNLL-2003 shared task counts them.

An entity is right if its first word, its last one and its type are those of a gold entity. What is
divided by nothing counts as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from spanbert_ext.tasks.scores import confusion
from spanbert_ext.tasks.tagging.schemes import Span


def entity_scores(pairs: Iterable[tuple[Collection[Span], Collection[Span]]]) -> dict[str, float]:
    """Scores of whole documents.

    Args:
        pairs: gold and predicted spans of each document, in words.

    Returns:
        In percent: f1, precision and recall over all entities; macro_f1 and so on, the means over
        the types that occur; TYPE.f1 and so on, of each type.
    """
    gold: Counter[str] = Counter()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for expected, predicted in pairs:
        expected, predicted = set(expected), set(predicted)
        gold.update(span.type for span in expected)
        found.update(span.type for span in predicted)
        right.update(span.type for span in expected & predicted)
    scores = _scores(right.total(), found.total(), gold.total())
    by_type = {kind: _scores(right[kind], found[kind], gold[kind]) for kind in sorted(gold | found)}
    for name in list(scores):
        values = [own[name] for own in by_type.values()]
        scores[f"macro_{name}"] = sum(values) / len(values) if values else 0.0
    for kind, own in by_type.items():
        scores.update({f"{kind}.{name}": value for name, value in own.items()})
    return scores


def _scores(right: int, found: int, gold: int) -> dict[str, float]:
    precision = 100.0 * right / found if found else 0.0
    recall = 100.0 * right / gold if gold else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0  # conlleval's order, to the last digit
    return {"f1": f1, "precision": precision, "recall": recall}


def word_confusion(
    gold: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]], words: Sequence[int]
) -> tuple[list[str], np.ndarray]:
    """How often a word of each type was taken for each; O stands for words of no entity.

    Args:
        gold, found: spans of each example, in words.
        words: how many each example has.

    Returns:
        Names, O first, and [names, names] int64 counts with gold types in rows.
    """
    names = ["O", *sorted({span.type for spans in (*gold, *found) for span in spans})]
    ids = {name: id for id, name in enumerate(names)}
    sides = np.zeros((2, sum(words)), np.int64)
    begins = np.cumsum([0, *words])
    for side, every in zip(sides, (gold, found), strict=True):
        for begin, spans in zip(begins[:-1], every, strict=True):
            for span in spans:
                side[begin + span.start : begin + span.end] = ids[span.type]
    return names, confusion(*sides, len(names))
