"""Answers are stretches of the context to the character, with tokenizers of every kind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_helpers import FakePredictor, example, gold_outputs, texts
from tokenizer_kinds import KINDS, tokenizer_of

from spanbert_ext import ExtractiveQA
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.features import features_of

CONTEXT = (
    "Anna  moved (from Paris) to Rome in 1998, where she isn't \u201cBoris\u201d \ufb01n\u00e9."
)
WORDS = ["Anna", "moved", "from", "Paris", "to", "Rome", "in", "1998", "where", "she", "Boris"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_model_answers_with_the_whole_word(kind):
    predictor = FakePredictor(tokenizer=tokenizer_of(kind), outputs=gold_outputs, length=128)
    for word in [*WORDS, "Paris) to Rome", "moved (from"]:
        [prediction] = predictor([example(CONTEXT, word)])
        best = prediction.answers[0]
        assert (best.text, best.start) == (word, CONTEXT.index(word))


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_begins_or_ends_inside_a_word(kind):
    qa = ExtractiveQA(FakePredictor(tokenizer=tokenizer_of(kind), length=96, max_answer=12))
    found = qa("Where did Anna go?", CONTEXT, top_k=60)
    assert len(found) > 20
    for answer in found:
        start, end = answer["start"], answer["end"]
        assert CONTEXT[start:end] == answer["answer"] != ""
        assert not CONTEXT[max(0, start - 1) : start + 1].isalpha() or start == 0
        assert not CONTEXT[end - 1 : end + 1].isalpha() or end == len(CONTEXT)


@settings(max_examples=40)
@pytest.mark.parametrize("kind", KINDS)
@given(context=texts(), question=texts(10), whole=st.booleans())
def test_any_text(kind, context, question, whole):
    qa = ExtractiveQA(FakePredictor(tokenizer=tokenizer_of(kind)))
    for answer in qa(question, context, top_k=3, align_to_words=whole):
        start, end = answer["start"], answer["end"]
        assert context[start:end] == answer["answer"] == answer["answer"].strip()


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_around_a_question_takes_no_room(kind):
    """A question is stripped before it is cut."""
    tokenizer = tokenizer_of(kind)
    options = QAOptions(length=40, max_question=8)
    for question in ("Where was Anna", "Where was Anna " * 9):
        plain, padded = (
            features_of([example(CONTEXT, question=asked)], tokenizer, options)
            for asked in (question.strip(), f" \t\n\u3000{question}\u2003\n " + " " * 50)
        )
        assert [f.input_ids.tolist() for f in plain] == [f.input_ids.tolist() for f in padded]
    [blank] = features_of([example("in Rome", question=" \n ")], tokenizer, options)
    [empty] = features_of([example("in Rome", question="")], tokenizer, options)
    assert blank.input_ids.tolist() == empty.input_ids.tolist()


@pytest.mark.parametrize("field", ["question", "context"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair(kind, field):
    qa = ExtractiveQA(FakePredictor(tokenizer=tokenizer_of(kind), length=64))
    texts = {"question": "Where was Anna?", "context": "Anna was in Rome."}
    broken, whole = (
        qa(**texts | {field: texts[field].replace("was", sign)}, top_k=3)
        for sign in ("w\ud83ds", "w\ufffds")
    )
    places = [[(a["start"], a["end"], a["score"]) for a in found] for found in (broken, whole)]
    assert places[0] == places[1]
