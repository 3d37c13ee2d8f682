"""Answers from scores: against two plain loops, and over any text."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_helpers import byte_level, example, gold_outputs, random_outputs, texts, wordpiece

from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.decode import decode
from spanbert_ext.tasks.qa.features import features_of
from spanbert_ext.tasks.qa.metrics import normalise

TOKENIZERS = {
    "wordpiece": wordpiece(),
    "bytes": byte_level(),
    "bytes with spaces": byte_level(trim=False),
}
PROSE = "The tower was built in Paris, by who? When: 1889. In the tower the Paris do un was."


def decoded(case, options, outputs=random_outputs, tokenizer=None):
    features = features_of([case], tokenizer or TOKENIZERS["wordpiece"], options)
    (prediction,) = decode([case], features, outputs(features), options)
    return prediction


def by_two_loops(case, features, outputs, options):
    """(start, end, score) of the answers and the lowest null score, as one would write it down."""
    found, nulls = [], []
    for feature, scores in zip(features, outputs, strict=True):
        place = feature.place
        nulls.append(float(scores[0, 0]) + float(scores[0, 1]))
        inside = scores[place.at : place.at + len(place.offsets)]
        own = range(place.first, place.stop)
        starts = sorted(own, key=lambda n: -inside[n, 0])[: options.n_best]  # noqa: B023
        ends = sorted(range(len(inside)), key=lambda n: -inside[n, 1])[: options.n_best]  # noqa: B023
        for first, last in itertools.product(sorted(starts), sorted(ends)):
            if first <= last < first + options.max_answer:
                span = int(place.offsets[first, 0]), int(place.offsets[last, 1])
                found.append((*span, inside[first, 0] + inside[last, 1]))
    found.sort(key=lambda answer: -answer[2])
    kept, seen = [], set()
    for start, end, score in found:
        while start < end and case.context[start].isspace():
            start += 1
        while start < end and case.context[end - 1].isspace():
            end -= 1
        while start < end < len(case.context) and unicodedata.category(case.context[end]) in (
            "Mn",
            "Me",
        ):
            end += 1
        text = case.context[start:end]
        key = normalise(text) or text
        if text and key not in seen and len(kept) < options.n_best:
            seen.add(key)
            kept.append((start, end, float(score)))
    return kept, min(nulls)


@settings(max_examples=120)
@given(
    st.one_of(texts(60), st.just(PROSE)),
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(16, 48),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 99),
    st.sampled_from([0.0, 1.0]),
)
def test_against_two_loops(context, name, length, n_best, max_answer, seed, step):
    options = QAOptions(length=length, stride=5, n_best=n_best, max_answer=max_answer)
    case = example(context)
    features = features_of([case], TOKENIZERS[name], options)
    outputs = random_outputs(features, seed, step)
    kept, null = by_two_loops(case, features, outputs, options)
    if not kept:  # then we look further: another test
        return
    (prediction,) = decode([case], features, outputs, options)
    assert [(a.start, a.end) for a in prediction.answers] == [(s, e) for s, e, _ in kept]
    assert prediction.score_diff == pytest.approx(null - kept[0][2], abs=1e-5)
    logits = np.array([score for _, _, score in kept])
    shares = np.exp(logits) / np.exp(logits).sum()
    assert [a.score for a in prediction.answers] == pytest.approx(shares, abs=1e-5)
    both = np.exp(logits).sum() + np.exp(null)
    assert prediction.null_score == pytest.approx(np.exp(null) / both, abs=1e-5)


@settings(max_examples=250)
@given(texts(), st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 99), st.booleans())
def test_offsets_match_in_any_text(context, name, seed, whole_words):
    options = QAOptions(length=24, stride=5, n_best=4, max_answer=6)
    case = example(context, whole_words=whole_words)
    features = features_of([case], TOKENIZERS[name], options)
    (prediction,) = decode([case], features, random_outputs(features, seed), options)
    for answer in prediction.answers:
        assert context[answer.start : answer.end] == answer.text != ""
        assert answer.text == answer.text.strip()
        assert 0 <= answer.start < answer.end <= len(context)
        assert 0 <= answer.score <= 1
    scores = [answer.score for answer in prediction.answers]
    assert scores == sorted(scores, reverse=True)
    assert not scores or sum(scores) == pytest.approx(1)
    if not prediction.answers:  # only where no piece holds a character that can be seen
        assert not any(
            context[s:e].strip() for feature in features for s, e in feature.place.offsets.tolist()
        )


def test_what_the_labels_say_is_what_a_perfect_model_answers():
    for answer in ("tower", "built in Paris", "Paris, by who", "1889", "The tower was"):
        case = example(PROSE, answer)
        assert decoded(case, QAOptions(length=20, stride=4), gold_outputs).answers[0].text == answer


@settings(max_examples=60)
@given(st.lists(st.tuples(texts(20), st.integers(1, 9)), min_size=2, max_size=6), st.integers(0, 9))
def test_neighbours_change_nothing(cases, seed):
    options = QAOptions(length=20, stride=4, n_best=5)
    examples = [example(context, top_k=top_k, max_answer=top_k) for context, top_k in cases]
    features = features_of(examples, TOKENIZERS["wordpiece"], options)
    outputs = random_outputs(features, seed, step=0.5)
    together = decode(examples, features, outputs, options)
    for number, case in enumerate(examples):
        own = [n for n, feature in enumerate(features) if feature.example == number]
        alone = features_of([case], TOKENIZERS["wordpiece"], options)
        (prediction,) = decode([case], alone, [outputs[n] for n in own], options)
        assert prediction == together[number]


def test_as_many_different_answers_as_there_are():
    # 3 starts and 3 ends make at most 6 spans of this order, and some of those are equal texts.
    context = "in paris in paris in paris in paris who"
    options = QAOptions(n_best=3, max_answer=2)
    possible = {"in", "paris", "in paris", "paris in", "paris who", "who"}
    for top_k in (1, 4, 6, 9):
        found = decoded(example(context, top_k=top_k), options).answers
        assert len(found) == max(min(3, len(found)), min(top_k, 6))
        assert {answer.text for answer in found} <= possible
        assert len({answer.text for answer in found}) == len(found)


def test_one_answer_is_found_where_the_best_starts_and_ends_do_not_meet():
    def outputs(features):
        scores = np.zeros((len(features[0].input_ids), 2), np.float32)
        scores[:, 0], scores[:, 1] = np.arange(len(scores)), -np.arange(len(scores))
        return [scores]

    prediction = decoded(example(PROSE), QAOptions(n_best=2, max_answer=3), outputs)
    assert prediction.answers and prediction.answers[0].text in PROSE


def test_equal_answers_count_once():
    prediction = decoded(example("Paris. The Paris! paris, a ( ("), QAOptions())
    keys = [normalise(answer.text) or answer.text for answer in prediction.answers]
    assert len(keys) == len(set(keys)) and keys.count("paris") == 1
    # Nothing but punctuation and articles: such answers are told apart by their text.
    assert {"(", "a"} <= set(keys)


def test_accents_belong_to_their_letters():
    context = "un cafe\u0301\u20dd who"
    prediction = decoded(example(context), QAOptions(max_answer=4))
    assert "cafe\u0301\u20dd" in [answer.text for answer in prediction.answers]
    assert not [a.text for a in prediction.answers if a.text.endswith("cafe")]


def test_whole_words():
    context = "builder-x, (towers) 18890"
    plain = decoded(example(context, top_k=99), QAOptions(max_answer=1)).answers
    assert {"r", "##r", "builder"} & {answer.text for answer in plain} == {"r"}
    whole = decoded(example(context, top_k=99, whole_words=True), QAOptions(max_answer=1)).answers
    assert {answer.text for answer in whole} == {
        *["builder", "-", "x", ",", "(", "towers", ")", "18890"]
    }


def test_nothing_to_read():
    for context in ("\0", "\u200d\u200b", "\u0301"):
        prediction = decoded(example(context), QAOptions())
        assert (prediction.answers, prediction.null_score) == ((), 1.0)
        assert np.isfinite(prediction.score_diff)


def test_large_scores_do_not_overflow():
    def outputs(features):
        return [o * np.float32(1e4) for o in random_outputs(features)]

    prediction = decoded(example(PROSE), QAOptions(), outputs)
    assert np.isfinite([prediction.null_score, *(a.score for a in prediction.answers)]).all()
