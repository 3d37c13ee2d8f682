"""The task as the machinery sees it: from a file to scores, lines and official prediction files."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from qa_helpers import example, gold_outputs, random_outputs, wordpiece

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.decode import Answer, QAPrediction
from spanbert_ext.tasks.qa.task import QATask
from spanbert_ext.tasks.rejects import Rejects

CONTEXT = "The tower was built in Paris. " * 6 + "When was it? In 1889."
TOKENIZER = wordpiece()


def v2_file(tmp_path, questions=9):
    qas = []
    for n in range(questions):
        answers = [] if n % 3 == 0 else [{"text": "1889", "answer_start": CONTEXT.index("1889")}]
        qas.append(
            {"id": f"q{n}", "question": "When?", "answers": answers, "is_impossible": n % 3 == 0}
        )
    content = {"version": "v2.0", "data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    path = tmp_path / "v2.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(task, examples, outputs=gold_outputs):
    features = task.features(examples, TOKENIZER)
    return task.decode(examples, features, outputs(features))


def prediction(text, diff, score=0.9):
    start = CONTEXT.index(text)
    return QAPrediction((Answer(start, start + len(text), text, score),), 0.25, diff)


@pytest.mark.parametrize(("name", "best"), [("squad", "f1"), ("mrqa", "f1"), ("squad2", "best_f1")])
def test_names(name, best):
    task = QATask(name, QAOptions())
    assert (task.name, task.best_metric, task.head) == (name, best, "question-answering")
    assert task.labels() == []


def test_a_perfect_model(tmp_path):
    task = QATask("squad2", QAOptions(length=24, stride=6))
    examples = task.read(v2_file(tmp_path), Rejects())
    task.learn(examples, TOKENIZER)
    predictions = run(task, examples)
    task.tune(examples, predictions)
    scores = task.score(examples, predictions)
    wanted = {"exact": 100, "f1": 100, "HasAns_f1": 100, "NoAns_f1": 100, "best_f1": 100}
    assert wanted.items() <= scores.items()
    assert (scores["HasAns_total"], scores["NoAns_total"]) == (6, 3)
    assert task.facts == {
        "null_threshold": scores["best_f1_thresh"],
        "best_f1": 100.0,
        "best_exact": 100.0,
    }
    json.dumps(task.facts)
    # The facts are what a loaded model has.
    loaded = QATask("squad2", task.options, json.loads(json.dumps(task.facts)))
    assert loaded.score(examples, predictions) == scores


def test_squad_1_scores():
    task = QATask("squad", QAOptions())
    examples = [example(CONTEXT, "1889"), example(CONTEXT, "Paris", golds=("Paris", "in Paris"))]
    found = task.score(examples, [prediction("1889", 5.0), prediction("built in Paris", 5.0)])
    assert found == pytest.approx({"exact": 50, "f1": 90})  # whatever the null score says
    task.tune(examples, [prediction("1889", 5.0)] * 2)
    assert task.facts == {}


def test_without_a_threshold_0_is_used_and_said_once(caplog):
    task = QATask("squad2", QAOptions())
    examples = [example(CONTEXT, is_impossible=True), example(CONTEXT, "1889")]
    predictions = [prediction("1889", 0.5), prediction("1889", -0.5)]
    with caplog.at_level(logging.WARNING, logger="spanbert_ext"):
        assert task.score(examples, predictions)["exact"] == 100
        task.score(examples, predictions)
    assert len(caplog.records) == 1 and "no threshold" in caplog.text
    caplog.clear()
    QATask("squad2", QAOptions()).score(examples[1:], predictions[1:])
    QATask("squad2", QAOptions(), {"null_threshold": 0.7}).score(examples, predictions)
    assert not caplog.records


def test_the_stored_threshold_is_respected():
    examples = [example(CONTEXT, is_impossible=True), example(CONTEXT, "1889")]
    predictions = [prediction("1889", 1.5), prediction("1889", 0.5)]
    task = QATask("squad2", QAOptions(), {"null_threshold": 1.0})
    assert task.score(examples, predictions)["exact"] == 100
    assert [
        task.as_json(*pair)["no_answer"] for pair in zip(examples, predictions, strict=True)
    ] == [
        True,
        False,
    ]


def test_prediction_files(tmp_path):
    examples = [example(CONTEXT, id="a"), example(CONTEXT, id="ü")]
    predictions = [prediction("1889", 1.5), prediction("Paris", 0.5)]
    QATask("squad", QAOptions()).write_predictions(tmp_path / "v1.json", examples, predictions)
    assert json.loads((tmp_path / "v1.json").read_bytes()) == {"a": "1889", "ü": "Paris"}
    assert [p.name for p in tmp_path.iterdir()] == ["v1.json"]
    task = QATask("squad2", QAOptions(), {"null_threshold": 1.0})
    task.write_predictions(tmp_path / "v2.json", examples, predictions)
    assert json.loads((tmp_path / "v2.json").read_bytes()) == {"a": "1889", "ü": "Paris"}
    assert json.loads((tmp_path / "v2_na.json").read_bytes()) == {"a": 1.5, "ü": 0.5}
    assert json.loads((tmp_path / "v2_thresholded.json").read_bytes()) == {"a": "", "ü": "Paris"}


def test_lines_of_predict():
    case, start = example(CONTEXT), CONTEXT.index("1889")
    best = {"answer": "1889", "start": start, "end": start + 4, "score": 0.9}
    assert QATask("squad", QAOptions()).as_json(case, prediction("1889", 5.0)) == best
    v2 = QATask("squad2", QAOptions()).as_json(case, prediction("1889", -1.0))
    share = 0.9 * 0.75  # one of four that there is no answer
    assert v2 == {**best, "score": pytest.approx(share), "no_answer": False, "score_diff": -1.0}
    none = {"answer": "", "start": 0, "end": 0, "score": 0.25}
    v2 = QATask("squad2", QAOptions()).as_json(case, prediction("1889", 1.0))
    assert v2 == {**none, "no_answer": True, "score_diff": 1.0}
    several = QATask("squad2", QAOptions(top_k=3)).as_json(case, prediction("1889", -1.0))
    assert [line["answer"] for line in several["n_best"]] == ["1889", ""]
    asked = QATask("squad", QAOptions()).as_json(example(CONTEXT, top_k=2), prediction("1889", 1.0))
    assert asked["n_best"] == [best]
    json.dumps([v2, several, asked])


def test_lines_of_a_real_decoding_are_json():
    task = QATask("squad2", QAOptions(length=24, stride=6, top_k=5))
    case = task.parse({"question": "When?", "context": CONTEXT}, "in.jsonl:1")
    (found,) = run(task, [case], random_outputs)
    line = json.loads(json.dumps(task.as_json(case, found)))
    assert len(line["n_best"]) == 5 and line["n_best"][0]["answer"] == line["answer"]
    assert np.isclose(sum(a.score for a in found.answers), 1)


def test_rank_of_no_answer():
    answers = tuple(Answer(n, n + 1, CONTEXT[n], p) for n, p in enumerate((0.6, 0.3, 0.1)))
    task = QATask("squad2", QAOptions())

    def texts(null, diff, count=9, **options):
        return [a.text for a in task.ranked(QAPrediction(answers, null, diff), count, **options)]

    assert texts(0.3, -1.0) == ["T", "", "h", "e"]
    assert texts(0.001, -6.0) == ["T", "h", "e", ""]
    # The threshold decides about the first place, whatever is more probable.
    assert texts(0.5, 0.1) == ["", "T", "h", "e"]
    assert texts(0.9, -0.1) == ["T", "", "h", "e"]
    assert texts(0.9, 3.0, may_be_none=False) == ["T", "h", "e"]
    assert texts(0.9, 3.0, count=2) == ["", "T"]
    nothing = QAPrediction((), 1.0, 3.0)
    assert task.ranked(nothing, 3) == [Answer(0, 0, "", 1.0)]
    assert task.ranked(nothing, 3, may_be_none=False) == [Answer(0, 0, "", 0.0)]
    assert task.says_no_answer(nothing)


def test_marked_text():
    case = example(CONTEXT, question="When?")
    page = QATask("squad", QAOptions()).marked(case, prediction("1889", 1.0))
    (mark,) = page.marks
    assert (page.title, page.text) == ("When?", CONTEXT)
    assert (CONTEXT[mark.start : mark.end], mark.label, mark.note) == ("1889", "answer", "0.900")
    assert page.facts == (("answer", "1889 (0.900)"),)
    page = QATask("squad2", QAOptions(top_k=2)).marked(case, prediction("1889", 1.0))
    assert page.marks == ()
    assert dict(page.facts) == {
        "answer": "no answer (0.250)",
        "no answer minus answer": "1.00",
        "answer 2": "1889 (0.675)",
    }


def test_plot(monkeypatch, tmp_path):
    drawn = []
    plots = SimpleNamespace(score_plot=lambda *arguments: drawn.append(arguments))
    quantity = "score of no answer minus that of the best answer"
    title = "answers, right where they match exactly"
    monkeypatch.setitem(sys.modules, "spanbert_ext.tasks.plots", plots)
    examples = [example(CONTEXT, "1889"), example(CONTEXT, is_impossible=True)]
    predictions = [prediction("1889", -1.0), prediction("Paris", 2.0, 0.4)]
    path = tmp_path / "scores.png"
    QATask("squad", QAOptions()).plot(path, examples, predictions)
    QATask("squad2", QAOptions(), {"null_threshold": 2.5}).plot(path, examples, predictions)
    QATask("squad2", QAOptions()).plot(path, examples, predictions)
    assert drawn == [
        ([0.9], [0.4], path, None, "probability of the answer", "squad: " + title),
        ([-1.0], [2.0], path, 2.5, quantity, "squad2: " + title),
        ([-1.0, 2.0], [], path, 0.0, quantity, "squad2: " + title),
    ]


def test_examples_that_teach_nothing():
    with pytest.raises(DataError, match="none of the training examples has an answer"):
        QATask("mrqa", QAOptions()).learn([example(CONTEXT, golds=("1889",))], TOKENIZER)
