"""ExtractiveQA: what it takes, what it gives, and any text."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_helpers import HARD, FakePredictor, byte_level, texts

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks import ExtractiveQA
from spanbert_ext.tasks.qa.pipeline import default_task

CONTEXT = "The tower was built in Paris, by who? When: 1889."
ASKED = {"question": "When?", "context": CONTEXT}


def null_outputs(features):
    """Any answer is worth 0; that there is none is worth 4."""
    found = [np.zeros((len(f.input_ids), 2), np.float32) for f in features]
    for scores in found:
        scores[0] = 2
    return found


@pytest.fixture(scope="module")
def qa():
    return ExtractiveQA(FakePredictor())


def test_one_question_in_every_form(qa):
    answer = qa(question="When?", context=CONTEXT)
    assert set(answer) == {"score", "start", "end", "answer"}
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"] != ""
    assert 0 < answer["score"] <= 1
    assert qa("When?", CONTEXT) == qa(ASKED) == qa(inputs=ASKED) == answer


def test_several_questions_in_every_form(qa):
    other = {"question": "Who built it?", "context": CONTEXT * 3}
    expected = qa([ASKED, other])
    assert len(expected) == 2 and expected == qa(inputs=[ASKED, other])
    assert expected == qa(["When?", "Who built it?"], [CONTEXT, CONTEXT * 3])
    # One context for all, one question for all; a list of one gives a list of one.
    one_context = [ASKED, {**ASKED, "question": "Who?"}]
    assert qa(["When?", "Who?"], CONTEXT) == qa(one_context)
    assert qa("When?", [CONTEXT, "In Paris."]) == qa([ASKED, {**ASKED, "context": "In Paris."}])
    assert len(qa([ASKED])) == 1 and qa([]) == []


def test_top_k(qa):
    several = qa(ASKED, top_k=5)
    assert [len(several), len({a["answer"].lower() for a in several})] == [5, 5]
    assert [a["score"] for a in several] == sorted((a["score"] for a in several), reverse=True)
    assert several[0] == qa(ASKED)
    assert len(qa(ASKED, top_k=50)) == 50  # more than the default keeps
    assert len(qa(question="?", context="Paris 1889", top_k=9)) == 3
    # For each question its own, in one call.
    mixed = qa([{**ASKED, "top_k": 3}, ASKED, {**ASKED, "top_k": 2}], top_k=1)
    assert (len(mixed[0]), len(mixed[2])) == (3, 2) and mixed[1] == several[0]
    assert len(qa([ASKED], top_k=2)[0]) == 2


def test_no_answer():
    trained = ExtractiveQA(FakePredictor("squad2", outputs=null_outputs))
    none = trained(ASKED)
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert none["score"] == pytest.approx(np.exp(4) / (np.exp(4) + 20))
    assert trained(ASKED, handle_impossible_answer=False)["answer"] != ""
    both = trained(ASKED, top_k=3)
    assert len(both) == 3 and both[0] == none and both[1]["answer"] != ""
    # The stored threshold decides, not 0.
    facts = {"null_threshold": 4.5}
    held = ExtractiveQA(FakePredictor("squad2", outputs=null_outputs, facts=facts))
    assert held(ASKED)["answer"] != ""
    untrained = ExtractiveQA(FakePredictor("squad", outputs=null_outputs))
    assert untrained(ASKED)["answer"] != ""
    assert untrained(ASKED, handle_impossible_answer=True) == none


def test_a_context_with_nothing_to_read(qa):
    nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert qa("When?", "\0\u200d") == nothing
    assert qa("When?", "\0", top_k=3) == [nothing]
    assert qa("When?", "\0", handle_impossible_answer=True) == {**nothing, "score": 1.0}
    assert qa("\0", CONTEXT)["answer"]  # a question of which nothing is left


def test_length_and_words():
    qa = ExtractiveQA(FakePredictor(tokenizer=byte_level()))
    words = ["The", "tower", "was", "built", "in", "Paris", ",", "by", "who", "?", "When", ":"]
    words += ["1889", "."]
    for answer in qa(ASKED, top_k=9, max_answer_len=1):
        assert answer["answer"] in words
    cut = qa(ASKED, top_k=9, max_answer_len=2, align_to_words=False)
    assert all(len(answer["answer"]) <= 2 for answer in cut)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(texts(30), texts(8)), min_size=1, max_size=3), st.booleans(), st.booleans()
)
def test_any_text(pairs, whole_words, may_be_none):
    tokenizer = byte_level() if len(pairs) == 2 else None
    qa = ExtractiveQA(FakePredictor("squad2", tokenizer, length=20, stride=3, max_question=6))
    found = qa(
        [{"question": q, "context": c} for c, q in pairs],
        top_k=3,
        align_to_words=whole_words,
        handle_impossible_answer=may_be_none,
    )
    for (context, _), answers in zip(pairs, found, strict=True):
        assert answers
        for answer in answers:
            assert context[answer["start"] : answer["end"]] == answer["answer"]
            assert 0 <= answer["score"] <= 1


@pytest.mark.parametrize("unit", [HARD, "a", "\u05e9\u05dc ", "\U0001f600", "The tower. "])
def test_long_contexts(unit):
    qa = ExtractiveQA(FakePredictor(length=384, stride=256))
    context = unit * (1_000_000 // len(unit.encode("utf-8", "surrogatepass")))
    for answer in qa("When?", context, top_k=3):
        assert context[answer["start"] : answer["end"]] == answer["answer"] != ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"question": "When?"}, "question: expected question and context|inputs: expected"),
        ({"context": CONTEXT}, "there is no question"),
        ({"question": "", "context": CONTEXT}, "question 0: question: .* it is empty"),
        ({"question": "When?", "context": " "}, "question 0: context: .* it is empty"),
        ({"question": ["When?", None], "context": CONTEXT}, "question 1: question: .*NoneType"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions, but 1 contexts"),
        ({"inputs": [ASKED, {"question": "When?"}]}, "question 1: context: .*NoneType"),
        ({"inputs": ["When?"]}, "expected a dict"),
        ({"question": "When?", "inputs": ASKED}, "either question and context, or inputs"),
        ({"question": 7, "context": CONTEXT}, "question: expected"),
        ({}, "there is no question; give question and context"),
    ],
)
def test_refusals(qa, arguments, reason):
    with pytest.raises(DataError, match=reason):
        qa(**arguments)


@pytest.mark.parametrize(
    "settings", [{"top_k": 0}, {"top_k": 1.5}, {"max_answer_len": 0}, {"top_k": True}]
)
def test_impossible_settings(qa, settings):
    with pytest.raises(ConfigError, match="whole number from 1 on"):
        qa(ASKED, **settings)


def test_another_model_is_refused():
    other = SimpleNamespace(task=SimpleNamespace(name="tacred"))
    with pytest.raises(DataError, match="fine-tuned for tacred"):
        ExtractiveQA(other)


def test_the_task_of_a_plain_model():
    def length(**config):
        task = default_task(SimpleNamespace(**config))
        assert task.name == "squad" and task.options.faults() == []
        return task.options.length

    assert length(max_position_embeddings=512, model_type="bert") == 384
    assert length(max_position_embeddings=128, model_type="bert") == 128
    assert length(max_position_embeddings=130, model_type="roberta", pad_token_id=1) == 128
    assert length(model_type="xlnet") == 384
