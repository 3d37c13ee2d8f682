"""Scores of coreference: worked by hand, against plain definitions and against scorch."""

import itertools
import random
import time
from fractions import Fraction as F

import numpy as np
import official_scorers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_ext.tasks.coref.assignment import best_total
from spanbert_ext.tasks.coref.data import without_singletons
from spanbert_ext.tasks.coref.metrics import CONLL, METRICS, CorefScorer

# Recall and precision, worked on paper. Letters are mentions, words are clusters.
HAND_WORKED = {
    # The first case is the reference scorer's: MUC 28.57, B-cubed 40.00, CEAF-e 59.05.
    ("a bc def", "a bcxw dy z"): {
        "mentions": (F(4, 6), F(4, 8)),
        "muc": (F(1, 3), F(1, 4)),
        "bcub": (F(5, 9), F(5, 16)),
        "ceafe": (F(31, 45), F(31, 60)),
        "lea": (F(3, 6), F(5, 24)),
    },
    # The example of Moosavi and Strube 2016: LEA 0.24 and 0.33.
    ("abc defg", "ab cd fghi"): {
        "mentions": (F(6, 7), F(6, 8)),
        "muc": (F(2, 5), F(2, 5)),
        "bcub": (F(5, 12), F(1, 2)),
        "ceafe": (F(13, 20), F(13, 30)),
        "lea": (F(5, 21), F(1, 3)),
    },
    # A pair for each of two true pairs is crossed: nothing is linked rightly.
    ("ab cd", "ac bd"): {
        "mentions": (F(1), F(1)),
        "muc": (F(0), F(0)),
        "bcub": (F(1, 2), F(1, 2)),
        "ceafe": (F(1, 2), F(1, 2)),
        "lea": (F(0), F(0)),
    },
    ("a b", "ab"): {"muc": (F(0), F(0)), "bcub": (F(1), F(1, 2))},
    ("a b c", "a b c"): {"muc": (F(0), F(0)), "bcub": (F(1), F(1))},
    ("abc", "abc"): {"muc": (F(1), F(1)), "lea": (F(1), F(1))},
    ("ab", ""): {name: (F(0), F(0)) for name in METRICS},
    ("", "ab"): {name: (F(0), F(0)) for name in METRICS},
    ("", ""): {name: (F(0), F(0)) for name in METRICS},
}


def scored(*documents) -> CorefScorer:
    scorer = CorefScorer()
    for key, response in documents:
        scorer.update(key, response)
    return scorer


@pytest.mark.parametrize("texts", HAND_WORKED, ids=str)
def test_cases_worked_by_hand(texts):
    found = scored(tuple(text.split() for text in texts)).fractions()
    for name, expected in HAND_WORKED[texts].items():
        assert found[name][:2] == expected, name


def test_result_is_in_percent_and_names_every_part():
    result = scored((["a", "bc", "def"], ["a", "bcxw", "dy", "z"])).result()
    assert {f"{m}.{part}" for m in METRICS for part in ("recall", "precision", "f1")} | {
        "f1"
    } == set(result)
    assert [round(result[f"{m}.f1"], 2) for m in CONLL] == [28.57, 40.0, 59.05]
    assert result["f1"] == pytest.approx((28.5714286 + 40 + 59.0476190) / 3)
    assert result["lea.f1"] == pytest.approx(100 * 5 / 17)


def test_documents_are_added_up_before_dividing():
    """Two links of two, one of three: 3/5, not the mean of 1 and 1/3."""
    found = scored((["abc"], ["abc"]), (["abcd"], ["ab", "c", "d"])).fractions()
    assert found["muc"][:2] == (F(3, 5), F(3, 3))
    # Mentions of different documents never meet, though they are called alike.
    assert found["bcub"][0] == F(3 + 1 + F(1, 4) * 2, 7)


def test_singletons_do_not_move_muc_and_are_dropped_by_the_caller():
    with_them = scored((["ab", "c"], ["ab", "d"])).fractions()
    without = scored(
        tuple(without_singletons(tuple(map(tuple, side))) for side in (["ab", "c"], ["ab", "d"]))
    ).fractions()
    assert with_them["muc"] == without["muc"] == (1, 1, 1)
    assert with_them["bcub"][0] == F(2, 3)
    assert without["bcub"] == (1, 1, 1)


def test_a_repeated_mention_counts_where_the_response_has_it_first():
    scorer = scored((["ab", "cd"], ["abb", "acd", "a"]))
    assert scorer.repeated == 3
    assert scorer.fractions() == scored((["ab", "cd"], ["ab", "cd"])).fractions()


# Recall and precision of keys and responses with repetitions, worked on paper by the rules of the
# reference scorer.
REPEATED = {
    # a stands in two chains; the second is the one it is compared with. MUC: a and b are linked
    # rightly, the link to d is one too many; B-cubed: three mentions of two thirds each, two whole.
    ("ad ab ef", "abd ef"): {
        "mentions": (F(1), F(1)),
        "muc": (F(2, 3), F(2, 3)),
        "bcub": (F(5, 6), F(4, 5)),
        "ceafe": (F(9, 15), F(9, 10)),
    },
    # Compared with the last chain, so their order counts: with "ad" behind, b is the one apart.
    ("ab ad", "ab"): {"muc": (F(0), F(0)), "bcub": (F(3, 8), F(3, 4))},
    ("ad ab", "ab"): {"muc": (F(1, 2), F(1)), "bcub": (F(2, 4), F(1))},
    # Twice in one chain: three mentions, two links, of which the response has one.
    ("aab", "ab"): {
        "mentions": (F(1), F(1)),
        "muc": (F(1, 2), F(1)),
        "bcub": (F(4, 3) / 3, F(1)),
    },
    # In the response what the key has goes the second time; what it has not stays.
    ("ab", "ab bc"): {"muc": (F(1), F(1)), "bcub": (F(1), F(2, 3))},
    ("ab", "ab xc xd"): {"mentions": (F(1), F(2, 5)), "muc": (F(1), F(1, 3)), "bcub": (1, F(2, 6))},
}


@pytest.mark.parametrize("texts", REPEATED, ids=str)
def test_repeated_mentions_worked_by_hand(texts):
    documents = tuple(text.split() for text in texts)
    found = scored(documents).fractions()
    plain = official_scorers.conll2012([tuple(list(map(list, side)) for side in documents)])
    for name, expected in REPEATED[texts].items():
        assert found[name][:2] == expected, name
        assert plain[name][:2] == pytest.approx(tuple(map(float, expected))), name


_CHAINS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), max_size=4)


@settings(max_examples=300)
@given(st.lists(st.tuples(_CHAINS, _CHAINS), min_size=1, max_size=2))
def test_any_repetitions_count_as_in_the_reference_scorer(documents):
    found = scored(*documents).fractions()
    plain = official_scorers.conll2012(documents)
    for name, values in plain.items():
        assert [float(x) for x in found[name]] == pytest.approx(values), name


# Plain definitions, by pairs and permutations.


def plain_muc(one, other):
    def parts(cluster):
        inside = [cluster & o for o in other if cluster & o]
        return len(inside) + len(cluster - set().union(*other))

    return sum(len(c) - parts(c) for c in one), sum(len(c) - 1 for c in one)


def plain_bcub(one, other):
    def of(mention, clusters):
        return next((c for c in clusters if mention in c), set())

    mentions = [m for c in one for m in c]
    return sum(F(len(of(m, one) & of(m, other)), len(of(m, one))) for m in mentions), len(mentions)


def plain_ceaf(one, other, similarity):
    small, large = sorted((one, other), key=len)
    return max(
        sum(similarity(a, b) for a, b in zip(small, chosen, strict=True))
        for chosen in itertools.permutations(large, len(small))
    )


def plain_lea(one, other):
    total = F(0)
    for cluster in one:
        links = list(itertools.combinations(sorted(cluster), 2))
        if links:
            right = sum(any(set(link) <= o for o in other) for link in links)
            total += len(cluster) * F(right, len(links))
        else:
            total += cluster in other
    return total, sum(map(len, one))


def share(top, bottom):
    return F(top) / bottom if bottom else F(0)


def f1(recall, precision):
    return 2 * recall * precision / (recall + precision) if recall + precision else F(0)


@st.composite
def clusterings(draw, most=9, clusters=5):
    """Sets of a partition of some of the letters."""
    owners = draw(st.lists(st.integers(0, clusters), min_size=most, max_size=most))
    groups = {}
    for letter, owner in zip("abcdefghijklmnop", owners, strict=False):
        if owner:
            groups.setdefault(owner, set()).add(letter)
    return list(groups.values())


@settings(max_examples=100)
@given(clusterings(), clusterings(), st.randoms(use_true_random=False))
def test_without_repetitions_no_order_counts(key, response, draw):
    sides = [[sorted(cluster) for cluster in side] for side in (key, response)]
    shuffled = [[draw.sample(c, len(c)) for c in draw.sample(s, len(s))] for s in sides]
    assert scored(sides).fractions() == scored(shuffled).fractions()


@settings(max_examples=200)
@given(clusterings(), clusterings())
def test_scores_equal_the_plain_definitions(key, response):
    found = scored((key, response)).fractions()
    assert found["muc"][:2] == (
        share(*plain_muc(key, response)),
        share(*plain_muc(response, key)),
    )
    for name, plain in (("bcub", plain_bcub), ("lea", plain_lea)):
        expected = share(*plain(key, response)), share(*plain(response, key))
        assert found[name] == (*expected, f1(*expected))
    e = plain_ceaf(key, response, lambda a, b: F(2 * len(a & b), len(a) + len(b)))
    assert found["ceafe"][:2] == (share(e, len(key)), share(e, len(response)))


@settings(max_examples=150)
@given(clusterings(14, 7), clusterings(14, 7))
def test_scores_equal_scorch(key, response):
    scores = pytest.importorskip("scorch.scores")
    found = scored((key, response)).fractions()
    functions = {"muc": scores.muc, "bcub": scores.b_cubed, "ceafe": scores.ceaf_e}
    for name, function in functions.items():
        assert [float(x) for x in found[name]] == pytest.approx(function(key, response)), name


weights = st.dictionaries(
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.fractions(0, 4, max_denominator=12),
    max_size=20,
)


@settings(max_examples=300)
@given(weights)
def test_the_matching_is_the_best_of_all(edges):
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((6, 6))
    for (row, column), weight in edges.items():
        table[row, column] = weight
    rows, columns = linear_sum_assignment(table, maximize=True)
    chosen = sum(edges.get((int(r), int(c)), F(0)) for r, c in zip(rows, columns, strict=True))
    # Floats may misjudge a tie, by less than any difference that matters here.
    assert float(best_total(edges)) == pytest.approx(float(chosen), abs=1e-12)
    assert best_total(edges) >= chosen


def test_a_tie_that_floats_cannot_see_is_decided_exactly():
    tiny = F(1, 10**40)
    assert best_total({(0, 0): 1 + tiny, (0, 1): F(1), (1, 0): F(1), (1, 1): F(1)}) == 2 + tiny
    assert best_total({(0, 0): F(1), (0, 1): 1 + tiny, (1, 0): 1 + tiny}) == 2 + 2 * tiny
    assert best_total({}) == 0


def test_three_hundred_tangled_clusters_take_less_than_a_second():
    rng = random.Random(0)

    def clusters():
        groups = [[] for _ in range(300)]
        for mention in range(4000):
            groups[rng.randrange(300)].append(mention)
        return groups

    key, response = clusters(), clusters()
    begin = time.process_time()
    found = scored((key, response)).fractions()
    assert time.process_time() - begin < 1
    from scipy.optimize import linear_sum_assignment

    table = np.array(
        [[2 * len(set(k) & set(r)) / (len(k) + len(r)) for r in response] for k in key]
    )
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert float(found["ceafe"][0]) == pytest.approx(best / 300)
