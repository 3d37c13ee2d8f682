"""Metrics of question answering: rule by rule, against torchmetrics, against all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_ext.tasks.qa.metrics import (
    best_threshold,
    exact,
    f1,
    normalise,
    squad2_scores,
    squad_scores,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("Paris", "paris"),
        ("ÉCOLE", "école"),
        ("  in \t Paris\n\u3000", "in paris"),
        ("The Tower", "tower"),
        ("a tower, an oak and the sea", "tower oak and sea"),
        # Articles are whole words.
        ("theatre another bathe", "theatre another bathe"),
        # Punctuation goes first, and leaves no blank.
        ("it's", "its"),
        ("U.S.", "us"),
        ("3.5-4", "354"),
        ("a-b", "ab"),
        ("T.h.e end", "end"),
        ("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", ""),
        # Only that of ASCII.
        ("“Paris” – 5 €", "“paris” – 5 €"),
        # A word boundary beside it makes an article of what is none.
        ("the–sea", "–sea"),
        ("a", ""),
        ("The. A! an?", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "both"),
    [
        ("The Tower!", "tower", (1, 1)),
        ("in Paris", "Paris", (0, 2 / 3)),
        ("Paris", "in the city of Paris", (0, 0.4)),
        ("Paris Paris", "Paris", (0, 2 / 3)),
        ("Paris Paris", "Paris Paris Rome", (0, 0.8)),
        ("Rome", "Paris", (0, 0)),
        ("Paris in", "in Paris", (0, 1)),
        ("", "Paris", (0, 0)),
        ("Paris", "the", (0, 0)),
        ("", "", (1, 0)),
        ("the", "a", (1, 0)),
    ],
)
def test_exact_and_f1(answer, gold, both):
    assert exact(answer, gold) == both[0]
    assert f1(answer, gold) == pytest.approx(both[1])
    if not normalise(answer) and not normalise(gold):
        assert f1(answer, gold, empty_matches=True) == 1


def test_scores_of_squad_1():
    golds = [["in Paris", "Paris, France"], ["1889"], []]
    found = squad_scores(golds, ["Paris", "1889.", "x"])
    assert found == pytest.approx({"exact": 100 / 3, "f1": 100 * (2 / 3 + 1) / 3})
    assert squad_scores([], []) == {"exact": 0.0, "f1": 0.0}


_WORDS = st.sampled_from(
    ["the", "a", "an", "Paris", "paris", "in", "U.S.", "!", "'", "\u2013", " "]
)
_TEXTS = st.lists(st.one_of(_WORDS, st.characters()), max_size=6).map(" ".join)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(_TEXTS, st.lists(_TEXTS, min_size=1, max_size=3)), min_size=1, max_size=5)
)
def test_against_torchmetrics(cases):
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    answers = [answer for answer, _ in cases]
    golds = [gold for _, gold in cases]
    theirs = squad(
        [{"id": str(n), "prediction_text": a} for n, a in enumerate(answers)],
        [
            {"id": str(n), "answers": {"text": g, "answer_start": [0] * len(g)}}
            for n, g in enumerate(golds)
        ],
    )
    ours = squad_scores(golds, answers)
    assert ours["exact"] == pytest.approx(float(theirs["exact_match"]), rel=1e-5)
    # They count two texts without words as equal, as SQuAD 2.0 does.
    with_empty = [
        max(f1(a, g, empty_matches=True) for g in gold)
        for a, gold in zip(answers, golds, strict=True)
    ]
    assert 100 * np.mean(with_empty) == pytest.approx(float(theirs["f1"]), rel=1e-5)
    if all(normalise(a) for a in answers):
        assert ours["f1"] == pytest.approx(float(theirs["f1"]), rel=1e-5)


_QUESTIONS = st.lists(
    st.tuples(
        st.sampled_from([(), ("Paris",), ("Paris", "the"), ("the",), ("in Paris",)]),
        st.sampled_from(["Paris", "in Paris", "Rome", "the", ""]),
        st.one_of(st.integers(-3, 3), st.floats(-50, 50)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300)
@given(_QUESTIONS)
def test_best_threshold_against_all(questions):
    golds, answers, diffs = (list(column) for column in zip(*questions, strict=True))
    found = squad2_scores(golds, answers, diffs, 0.0)
    every = [*diffs, min(diffs) - 1]
    by_threshold = [squad2_scores(golds, answers, diffs, threshold) for threshold in every]
    for name in ("exact", "f1"):
        assert found[f"best_{name}"] == pytest.approx(max(s[name] for s in by_threshold))
        threshold = found[f"best_{name}_thresh"]
        reached = squad2_scores(golds, answers, diffs, threshold)[name]
        assert reached == pytest.approx(found[f"best_{name}"])


def test_best_threshold():
    answerable = np.array([True, False, True, False])
    scores, diffs = np.array([1.0, 0.0, 0.5, 0.0]), np.array([-4.0, -1.0, -2.0, 3.0])
    # Both answers let through, both questions without one left alone.
    assert best_threshold(scores, diffs, answerable) == (87.5, -2.0)
    # Nothing is worth letting through: 0 where that is below all, else a number that is.
    assert best_threshold(scores * 0, diffs + 9, answerable) == (50.0, 0.0)
    assert best_threshold(scores * 0, diffs, answerable) == (50.0, -5.0)
    assert best_threshold(np.zeros(0), np.zeros(0), np.zeros(0, bool)) == (0.0, 0.0)


def test_scores_of_squad_2():
    golds = [["Paris"], ["in Paris"], ["1889", "the"], [], []]
    answers = ["Paris", "Paris", "1889", "Rome", ""]
    diffs = [-5.0, -2.0, 4.0, -3.0, 1.0]
    found = squad2_scores(golds, answers, diffs, 0.0)
    assert found == pytest.approx(
        {
            "exact": 40.0,
            "f1": 100 * (1 + 2 / 3 + 1) / 5,
            "total": 5,
            "HasAns_exact": 100 / 3,
            "HasAns_f1": 100 * (1 + 2 / 3) / 3,
            "HasAns_total": 3,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
            "best_exact": 60.0,
            "best_exact_thresh": -5.0,
            "best_f1": 100 * (1 + 2 / 3 + 1 + 1) / 5,
            "best_f1_thresh": 4.0,
        }
    )
    assert "NoAns_total" not in squad2_scores(golds[:2], answers[:2], diffs[:2], 0.0)
    assert "HasAns_total" not in squad2_scores(golds[3:], answers[3:], diffs[3:], 0.0)
    # A gold answer of nothing but an article does not count beside another; alone, it is that the
    # question is answered by no words.
    assert squad2_scores([["the", "Paris"]], ["a"], [-1.0], 0.0)["HasAns_f1"] == 0
    assert squad2_scores([["the"]], ["a"], [-1.0], 0.0)["HasAns_f1"] == 100
