"""Exact match and F1 of answers, as the official scorers of SQuAD 1.1, SQuAD 2.0 and MRQA."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """What is compared: lower case, without ASCII punctuation, then without the words a, an and
    the, white space as single blanks (SQuAD 1.1 scorer)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, gold: str) -> float:
    """1 if both are the same once normalised, else 0."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str, empty_matches: bool = False) -> float:
    """Harmonic mean of precision and recall over the words of the normalised texts, in [0, 1].

    Args:
        empty_matches: what two texts without words are worth: the scorers of SQuAD 1.1 and MRQA
            say 0, that of SQuAD 2.0 says 1.
    """
    words, gold_words = normalise(answer).split(), normalise(gold).split()
    if not words or not gold_words:
        return float(empty_matches and words == gold_words)
    common = sum((Counter(words) & Counter(gold_words)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def squad_scores(golds: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """`exact` and `f1` in percent, each question counting its best gold answer (scorers of SQuAD
    1.1 and MRQA).

    Args:
        golds: right answers of each question; a question without any counts 0.
        answers: one for each question, "" where there is none.
    """
    pairs = list(zip(answers, golds, strict=True))
    return {
        "exact": _percent([max((exact(a, g) for g in gold), default=0.0) for a, gold in pairs]),
        "f1": _percent([max((f1(a, g) for g in gold), default=0.0) for a, gold in pairs]),
    }


class BestThreshold(NamedTuple):
    """A score in percent and the threshold that reaches it."""

    score: float
    threshold: float


def best_threshold(scores: np.ndarray, diffs: np.ndarray, answerable: np.ndarray) -> BestThreshold:
    """The threshold on the difference of scores above which it is best to say "no answer".

    As the SQuAD 2.0 scorer adds up, but the threshold always reaches the score. The scorer counts
    within equal differences, which pass a threshold together; it names 0 where every question is
    best left without an answer, here a number below all differences if 0 is not; and it takes a
    point off for an answer of nothing but articles to a question without one, which it then counts
    as right.

    Args:
        scores: [n] in [0, 1], of each question's best answer, without any threshold.
        diffs: [n] score of no answer minus that of the best answer.
        answerable: [n] bool, the question has a gold answer.
    """
    if not len(diffs):
        return BestThreshold(0.0, 0.0)
    # A question whose answer is let through: one without gold answers had a point before.
    gains = scores - ~answerable
    order = _by_threshold(gains, diffs)
    total = best = int(np.sum(~answerable))
    threshold = 0.0 if diffs[order[0]] > 0 else float(diffs[order[0]]) - 1.0
    for place in order.tolist():
        total += float(gains[place])
        if total > best:
            best, threshold = total, float(diffs[place])
    return BestThreshold(100.0 * best / len(diffs), threshold)


def _by_threshold(gains: np.ndarray, diffs: np.ndarray) -> np.ndarray:
    """Questions in the order in which a rising threshold lets their answers through. Of equal
    differences, which pass together, losses come first: no sum between them exceeds both ends."""
    return np.lexsort((gains, diffs))


def search_order(
    golds: Sequence[Sequence[str]], answers: Sequence[str], diffs: Sequence[float]
) -> list[int]:
    """The order of questions in which the SQuAD 2.0 scorer, which sorts them by their differences
    and keeps the order of equal ones, finds the score that `best_threshold` finds for F1.

    Args:
        golds, answers, diffs: as for `squad2_scores`.
    """
    answerable = np.array([len(gold) > 0 for gold in golds], dtype=bool)
    scores = np.array([_squad2("f1", *pair) for pair in zip(answers, golds, strict=True)])
    return _by_threshold(scores - ~answerable, np.array(diffs, np.float64)).tolist()


def squad2_scores(
    golds: Sequence[Sequence[str]],
    answers: Sequence[str],
    diffs: Sequence[float],
    threshold: float,
) -> dict[str, float]:
    """Scores of SQuAD 2.0 in percent; the totals count questions, the thresholds are such.

    Args:
        golds: right answers of each question; none where it has no answer.
        answers: the best answer to each question, whatever the threshold.
        diffs: score of no answer minus that of the best answer.
        threshold: answers with a larger difference are replaced by "no answer".

    Returns:
        exact, f1, total; the same for questions with an answer (HasAns_) and without (NoAns_),
        where there are such; best_exact, best_f1 with best_exact_thresh, best_f1_thresh, over all
        thresholds.
    """
    diffs = np.array(diffs, dtype=np.float64)
    answerable = np.array([len(gold) > 0 for gold in golds], dtype=bool)
    kept = diffs <= threshold
    raw, found = {}, {}
    for name in ("exact", "f1"):
        pairs = zip(answers, golds, strict=True)
        raw[name] = np.array([_squad2(name, answer, gold) for answer, gold in pairs])
        # Without an answer a question is right if it has none.
        found[name] = np.where(kept, raw[name], ~answerable)
    report = {name: _percent(values) for name, values in found.items()}
    report["total"] = float(len(diffs))
    for label, group in (("HasAns", answerable), ("NoAns", ~answerable)):
        if group.any():
            report |= {f"{label}_{name}": _percent(found[name][group]) for name in found}
            report[f"{label}_total"] = float(group.sum())
    for name, values in raw.items():
        best = best_threshold(values, diffs, answerable)
        report |= {f"best_{name}": best.score, f"best_{name}_thresh": best.threshold}
    return report


def _squad2(name: str, answer: str, golds: Sequence[str]) -> float:
    # A gold answer of nothing but articles and punctuation is none.
    golds = [gold for gold in golds if normalise(gold)] or [""]
    if name == "exact":
        return max(exact(answer, gold) for gold in golds)
    return max(f1(answer, gold, empty_matches=True) for gold in golds)


def _percent(values: Sequence[float] | np.ndarray) -> float:
    # Added up one after the other like the official scorers, to the last digit.
    return 100.0 * sum(map(float, values)) / len(values) if len(values) else 0.0
