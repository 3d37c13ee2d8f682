"""Outputs that are not finite: an error that names the record, in every task."""

import json
import math

import numpy as np
import pytest
import torch
from coref_runs import coref_words
from record_formats import write
from test_finetune import config_of
from toy_tasks import sentiment_words

from spanbert_ext.cli import command
from spanbert_ext.errors import NumericsError
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.predictor import Predictor

TEXTS = ["Anna was in Paris .", "Anna was in Paris with Boris .", "Anna was in Rome ."]
SPOILED = "Boris"


def records(task):
    """One of each text."""
    for number, text in enumerate(TEXTS):
        record = {"id": f"n{number}"}
        if task in ("squad", "squad2", "mrqa"):
            yield record | {"question": "was Anna in ?", "context": text}
        elif task == "tacred":
            places = {"subject": [0, 4], "object": [12, 16]}
            yield record | {"text": text, "subject_type": "PERSON", "object_type": "CITY"} | places
        elif task in ("sts-b", "mnli"):
            yield record | {"sentence1": text, "sentence2": "a film"}
        else:
            yield record | {"sentence" if task == "cola" else "text": text}


TASKS = ["squad", "squad2", "mrqa", "tacred", "ner", "cola", "mnli", "sts-b", "coref"]


@pytest.fixture(scope="module", params=TASKS)
def trained(request, toy_bert, tmp_path_factory):
    """(task, run) after a step."""
    task, home = request.param, tmp_path_factory.mktemp("finite")
    run = home / "run"
    if task == "coref":
        words = coref_words(toy_bert, home, run, max_steps=1)
    else:
        data = write(home, task, good=6)
        words = ["finetune", task, f"--model={toy_bert}", f"--train={data}", f"--output={run}"]
        words += ["--max_steps=1", "--device=cpu", "--precision=fp32"]
        words += ["--tagging.length=32", "--tagging.overlap=8"] if task == "ner" else []
    assert command.main(words) == 0
    return task, run


def spoil(predictor, value):
    """The model overflows wherever it reads one word."""
    row = predictor.tokenizer.convert_tokens_to_ids(SPOILED)
    with torch.no_grad():
        predictor.model.get_input_embeddings().weight[row] = value
    return predictor


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_record_is_named_and_the_others_are_predicted(trained, value):
    task, run = trained
    predictor = Predictor.load(run, "cpu", "fp32")
    examples = [predictor.task.parse(record, record["id"]) for record in records(task)]
    lines = [
        predictor.task.as_json(x, p) for x, p in zip(examples, predictor(examples), strict=True)
    ]
    spoil(predictor, value)
    found = [prediction for _, prediction in predictor.attempts(iter(examples))]
    assert isinstance(found[1], NumericsError) and str(found[1]).startswith("n1: the model's out")
    for n in (0, 2):
        assert predictor.task.as_json(examples[n], found[n]) == lines[n]
    with pytest.raises(NumericsError, match="n1: the model's outputs are not finite"):
        predictor(examples)
    (alone,) = [prediction for _, prediction in predictor.attempts(iter(examples[1:2]))]
    assert isinstance(alone, NumericsError)


def test_predict_and_evaluate_name_it(trained, tmp_path, monkeypatch, capsys):
    task, run = trained
    load = Predictor.load.__func__
    monkeypatch.setattr(
        Predictor, "load", classmethod(lambda *a, **k: spoil(load(*a, **k), math.nan))
    )
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records(task)))
    words = [f"--model={run}", "--device=cpu", "--precision=fp32"]
    files = [str(source), str(tmp_path / "out.jsonl")]
    assert command.main(["predict", task, *files, *words]) == NumericsError.exit_code
    error = capsys.readouterr().err
    assert "in.jsonl:2: n1: the model's outputs are not finite" in error
    assert "--on_error skip" in error
    assert command.main(["predict", task, *files, *words, "--on_error=skip"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["n0", "n1", "n2"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "not finite" in lines[1]["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_evaluation_in_training_ends_the_run(toy_bert, tmp_path, monkeypatch, value):
    """No such model is the best one; what was saved stays."""
    from spanbert_ext.tasks import packed_objective

    compute, calls = packed_objective.outputs_of, []

    def outputs(*arguments, **named):
        found = compute(*arguments, **named)
        calls.append(1)
        if len(calls) == 3:
            found[5][0] = value
        return found

    monkeypatch.setattr(packed_objective, "outputs_of", outputs)
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=12, evals_per_epoch=20)
    with pytest.raises(NumericsError, match=r"the evaluation after step 2 met .* not finite"):
        finetune(config_of(words))
    scores = json.loads((tmp_path / "run/best/scores.json").read_text())
    assert scores["step"] == 1
