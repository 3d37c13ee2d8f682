import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from spanbert_ext.tasks.relation.metrics import RelationScore, micro, per_relation

NULL = "no_relation"
LABELS = [NULL, "born_in", "died_in", "owns"]
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1)


def total(gold, guessed, null=NULL):
    return micro(per_relation(gold, guessed, null).values())


def test_counts_by_hand():
    gold = ["born_in", "born_in", NULL, "owns", NULL, "died_in"]
    guessed = ["born_in", NULL, "owns", "owns", NULL, "born_in"]
    assert per_relation(gold, guessed, NULL) == {
        "born_in": RelationScore(gold=2, guessed=2, correct=1),
        "died_in": RelationScore(gold=1, guessed=0, correct=0),
        "owns": RelationScore(gold=1, guessed=2, correct=1),
    }
    score = total(gold, guessed)
    assert (score.gold, score.guessed, score.correct) == (4, 4, 2)
    assert (score.precision, score.recall, score.f1) == (50.0, 50.0, 50.0)


@pytest.mark.parametrize(
    ("gold", "guessed", "wanted"),
    [
        # TACRED's scorer: nothing guessed is precise, nothing to find is not found.
        (["owns"], [NULL], (100.0, 0.0, 0.0)),
        ([NULL], ["owns"], (0.0, 0.0, 0.0)),
        ([NULL], [NULL], (100.0, 0.0, 0.0)),
        (["owns"], ["born_in"], (0.0, 0.0, 0.0)),
        (["owns"], ["owns"], (100.0, 100.0, 100.0)),
        ([], [], (100.0, 0.0, 0.0)),
    ],
)
def test_conventions_at_the_edge(gold, guessed, wanted):
    score = total(gold, guessed)
    assert (score.precision, score.recall, score.f1) == wanted


@given(pairs, st.sampled_from([NULL, None, "owns"]))
def test_micro_is_that_of_scikit_learn(both, null):
    gold, guessed = map(list, zip(*both, strict=True))
    labels = [label for label in LABELS if label != null]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label that never occurs
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, guessed, labels=labels, average="micro", zero_division=0
        )
    score = total(gold, guessed, null)
    assert score.f1 == pytest.approx(100 * f1)
    assert score.recall == pytest.approx(100 * recall)
    if any(label != null for label in guessed):
        assert score.precision == pytest.approx(100 * precision)


@given(pairs)
def test_each_relation_is_that_of_scikit_learn(both):
    gold, guessed = map(list, zip(*both, strict=True))
    found = per_relation(gold, guessed, NULL)
    assert list(found) == sorted({*gold, *guessed} - {NULL})
    if not found:
        return
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, guessed, labels=list(found), zero_division=0
    )
    for n, score in enumerate(found.values()):
        assert score.f1 == pytest.approx(100 * f1[n])
        assert score.recall == pytest.approx(100 * recall[n])
        assert not score.guessed or score.precision == pytest.approx(100 * precision[n])
        assert score.gold == support[n]


def test_as_many_predictions_as_pairs():
    with pytest.raises(ValueError, match="zip"):
        per_relation(["owns"], [], NULL)
