"""Scores of entities, by hand, against nervaluate and against counting one by one."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nervaluate.evaluator import Evaluator

from spanbert_ext.tasks.tagging.metrics import entity_scores
from spanbert_ext.tasks.tagging.schemes import Span, tag_text, tags_of

TYPES = ("LOC", "ORG", "PER")


@st.composite
def documents(draw):
    """Gold and predicted spans of some documents of 10 words; predictions are often near gold."""

    def spans():
        found, start = [], 0
        while start < 10:
            end = draw(st.integers(start, min(10, start + 3)))
            if end > start:
                found.append(Span(start, end, draw(st.sampled_from(TYPES))))
            start = max(end, start + 1)
        return found

    pairs = []
    for _ in range(draw(st.integers(0, 4))):
        gold, other = spans(), spans()
        taken = [span for span in gold if draw(st.booleans())]
        free = {word for span in taken for word in range(span.start, span.end)}
        taken += [span for span in other if not free & set(range(span.start, span.end))]
        pairs.append((gold, sorted(taken)))
    return pairs


def test_by_hand():
    gold = [Span(0, 2, "PER"), Span(3, 4, "LOC"), Span(5, 6, "PER")]
    found = [Span(0, 2, "PER"), Span(3, 4, "ORG"), Span(5, 7, "PER"), Span(8, 9, "PER")]
    scores = entity_scores([(gold, found), ([], [])])
    assert scores["precision"] == 25.0 and scores["recall"] == pytest.approx(100 / 3)
    assert scores["f1"] == pytest.approx(200 / 7)
    assert scores["PER.precision"] == pytest.approx(100 / 3) and scores["PER.recall"] == 50.0
    assert scores["PER.f1"] == 40.0 and scores["LOC.f1"] == scores["ORG.f1"] == 0.0
    assert scores["macro_f1"] == pytest.approx(40 / 3)
    assert scores["macro_recall"] == pytest.approx(50 / 3)


def test_nothing_to_find_and_nothing_found():
    assert set(entity_scores([]).values()) == {0.0}
    assert set(entity_scores([([], [])]).values()) == {0.0}
    assert entity_scores([([Span(0, 1, "X")], [])])["f1"] == 0.0


@given(documents())
def test_against_counting_one_by_one(pairs):
    scores = entity_scores(pairs)
    kinds = sorted({span.type for pair in pairs for spans in pair for span in spans})
    for kind in (None, *kinds):
        right = wrong = missed = 0
        for gold, found in pairs:
            for span in found:
                if kind in (None, span.type):
                    hit = any(tuple(span) == tuple(other) for other in gold)
                    right, wrong = right + hit, wrong + (not hit)
            missed += sum(kind in (None, span.type) and span not in found for span in gold)
        prefix = f"{kind}." if kind else ""
        precision = right / (right + wrong) if right + wrong else 0
        recall = right / (right + missed) if right + missed else 0
        f1 = 2 * precision * recall / (precision + recall) if right else 0
        expected = {"precision": precision, "recall": recall, "f1": f1}
        for name, value in expected.items():
            assert scores[prefix + name] == pytest.approx(100 * value)
    for name in ("f1", "precision", "recall"):
        values = [scores[f"{kind}.{name}"] for kind in kinds]
        assert scores[f"macro_{name}"] == pytest.approx(sum(values) / max(1, len(values)))


def in_bio(spans):
    return list(map(tag_text, tags_of(spans, 10)))


@given(documents())
def test_against_nervaluate(pairs):
    assume(pairs)
    gold, found = ([in_bio(pair[side]) for pair in pairs] for side in (0, 1))
    results = Evaluator(gold, found, tags=list(TYPES), loader="list").evaluate()
    scores = entity_scores(pairs)
    for prefix, theirs in (("", results["overall"]["strict"]), *_by_type(results, scores)):
        assert scores[f"{prefix}precision"] == pytest.approx(100 * theirs.precision)
        assert scores[f"{prefix}recall"] == pytest.approx(100 * theirs.recall)
        assert scores[f"{prefix}f1"] == pytest.approx(100 * theirs.f1)


def _by_type(results, scores):
    kinds = [kind for kind in TYPES if f"{kind}.f1" in scores]
    return [(f"{kind}.", results["entities"][kind]["strict"]) for kind in kinds]
