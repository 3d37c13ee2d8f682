import json
import random
import subprocess
import sys

import numpy as np
import pytest
from relation_cases import record, task, tokenizer, write_json

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.marked_text import Mark
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.relation.pipeline import RelationClassifier
from spanbert_ext.tasks.relation.task import RelationPrediction, RelationTask

RAW = {
    "text": "She, Ada, left  London.",
    "subject": [5, 8],
    "object": [16, 22],
    "subject_type": "PERSON",
    "object_type": "CITY",
}
RELATIONS = ["born_in", "no_relation", "died_in", "born_in", "owns", "died_in", "born_in"]


def records():
    return [record(id=f"r{n}", relation=name) for n, name in enumerate(RELATIONS)]


@pytest.fixture
def trained(tmp_path):
    """A task that has learned, its examples and the tokenizer."""
    reader, made = tokenizer(), task()
    examples = made.read(write_json(tmp_path / "train.json", records()), Rejects())
    made.learn(examples, reader)
    return made, examples, reader


def prediction(made, label, score=0.9):
    names = made.labels()
    scores = np.full(len(names), (1 - score) / (len(names) - 1), np.float32)
    scores[names.index(label)] = score
    return RelationPrediction(label, score, scores)


class AlwaysSays:
    """Stands in for a `Predictor`: the same logits for everything."""

    def __init__(self, made, reader, logits):
        self.task, self.tokenizer, self.logits = made, reader, np.array(logits, np.float32)

    def __call__(self, examples):
        self.examples = examples
        features = self.task.features(examples, self.tokenizer)
        return self.task.decode(examples, features, [self.logits] * len(features))


# Learning


def test_labels_are_ordered_by_frequency_then_name(trained):
    made, _, _ = trained
    assert made.labels() == ["no_relation", "born_in", "died_in", "owns"]
    assert (made.head, made.best_metric, made.name) == ("sequence-classification", "f1", "tacred")


def test_the_order_of_the_file_changes_nothing(tmp_path):
    rows = [
        record(id=f"{n}", relation=f"r{n % 5}", subj_type=f"S{n % 3}", obj_type=f"O{n % 4}")
        for n in range(60)
    ]
    found = []
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        made = task()
        examples = made.read(write_json(tmp_path / "train.json", rows), Rejects())
        made.learn(examples, tokenizer())
        found.append(json.dumps(made.facts))
    assert len({*found}) == 1
    assert json.loads(found[0])["labels"] == ["no_relation", "r0", "r1", "r2", "r3", "r4"]


def test_facts_survive_json(trained):
    made, examples, reader = trained
    again = RelationTask("tacred", made.options, json.loads(json.dumps(made.facts)))
    assert again.facts == made.facts
    assert list(again.facts["symbols"]) == list(made.facts["symbols"])
    for a, b in zip(made.features(examples, reader), again.features(examples, reader), strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert a.labels == b.labels


def test_the_null_label_is_first_even_if_it_never_occurs(tmp_path, caplog):
    made = task(null_label="Other")
    examples = made.read(write_json(tmp_path / "a.json", records()), Rejects())
    with caplog.at_level("WARNING", logger="spanbert_ext"):
        made.learn(examples, tokenizer())
    assert made.labels() == ["Other", "born_in", "died_in", "no_relation", "owns"]
    assert "no pair has the label 'Other'" in caplog.text


def test_data_without_a_null_label(tmp_path):
    made = task(null_label=None)
    examples = made.read(write_json(tmp_path / "a.json", records()), Rejects())
    made.learn(examples, tokenizer())
    assert made.labels() == ["born_in", "died_in", "no_relation", "owns"]
    guesses = [prediction(made, "no_relation") for _ in examples]
    assert made.score(examples, guesses)["f1"] == pytest.approx(100 / 7)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_learn(tmp_path, count):
    made = task()
    examples = made.read(write_json(tmp_path / "a.json", records()), Rejects())
    with pytest.raises(DataError, match="there is nothing to learn"):
        made.learn(examples[:count], tokenizer())


def test_labels_of_features(trained):
    made, examples, reader = trained
    features = made.features(examples, reader)
    assert [int(f.labels) for f in features] == [1, 0, 2, 1, 3, 2, 1]
    assert [f.example for f in features] == list(range(7))
    [unlabelled] = made.features([made.parse(RAW, "x:1")], reader)
    assert unlabelled.labels is None


def test_a_label_that_came_past_the_reader(trained, tmp_path):
    made, _, reader = trained
    path = write_json(tmp_path / "dev.json", [record(relation="married_to")])
    [example] = task().read(path, Rejects())  # read before anything was learned
    with pytest.raises(DataError, match="record a: relation: 'married_to' was not seen"):
        made.features([example], reader)


def test_long_sentences_are_told_once(trained, caplog):
    made, _, reader = trained
    long = made.parse({**RAW, "text": RAW["text"] + " she" * 200}, "x:1")
    with caplog.at_level("INFO", logger="spanbert_ext"):
        made.features([long, made.parse(RAW, "x:2")], reader)
        made.features([long], reader)
    assert [r.getMessage() for r in caplog.records] == [
        "1 of 2 sentences are longer than 128 pieces and were shortened around their entities"
    ]


# Predictions


def test_decode(trained):
    made, examples, reader = trained
    features = made.features(examples[:3], reader)
    outputs = [np.array(row, np.float32) for row in ([0, 3, 1, 0], [900, 0, 0, -900], [1, 1, 1, 1])]
    found = made.decode(examples[:3], features, outputs)
    assert [p.label for p in found] == ["born_in", "no_relation", "no_relation"]
    assert found[0].score == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(1) + 2), rel=1e-6)
    assert found[1].score == 1.0
    assert found[2].scores.tolist() == [0.25] * 4
    assert found[0].scores.dtype == np.float32
    assert made.decode([], [], []) == []
    assert made.as_json(examples[0], found[2]) == {"label": "no_relation", "score": 0.25}


def test_score_and_confusion(trained):
    made, examples, _ = trained
    names = ["born_in", "owns", "no_relation", "died_in", "owns", "died_in", "born_in"]
    guesses = [prediction(made, name) for name in names]
    # 6 relations, 6 guesses, 4 right; of 7 labels 4 are right.
    assert made.score(examples, guesses) == {
        "f1": pytest.approx(400 / 6),
        "precision": pytest.approx(400 / 6),
        "recall": pytest.approx(400 / 6),
        "accuracy": pytest.approx(400 / 7),
    }
    assert made.per_relation(examples, guesses)["born_in"].correct == 2
    labels, counts = made.confusion(examples, guesses)
    assert labels == made.labels()
    assert counts.tolist() == [[0, 0, 0, 1], [0, 2, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_the_file_of_predictions(trained, tmp_path):
    made, examples, _ = trained
    guesses = [prediction(made, name) for name in RELATIONS]
    files = made.write_predictions(tmp_path / "predictions.txt", examples, guesses)
    assert [path.name for path in files] == ["predictions.txt", "predictions_ids.txt"]
    labels, ids = (path.read_text("utf-8").splitlines() for path in files)
    assert labels == list(RELATIONS)
    assert ids == [f"r{n}" for n in range(len(RELATIONS))]


def test_the_marked_text(trained):
    made, examples, _ = trained
    marked = made.marked(examples[0], prediction(made, "owns", 0.75))
    assert marked.title == "r0: owns"
    assert marked.text == "Ada Byron was born in London ."
    assert marked.marks == (
        Mark(0, 9, "subject PERSON", "subject"),
        Mark(22, 28, "object CITY", "object"),
    )
    assert marked.facts == (("relation", "owns"), ("probability", "0.750"), ("gold", "born_in"))
    raw = made.marked(made.parse(RAW, "x:1"), prediction(made, "owns"))
    assert [raw.text[m.start : m.end] for m in raw.marks] == ["Ada", "London"]
    assert [name for name, _ in raw.facts] == ["relation", "probability"]


# Records to predict


def test_both_kinds_of_record_give_the_same_sequence(trained):
    made, _, reader = trained
    tokens = {
        "id": 3,
        "token": ["She", ",", "Ada", ",", "left", "London", "."],
        "subj_start": 2,
        "subj_end": 2,
        "obj_start": 5,
        "obj_end": 5,
        "subj_type": "PERSON",
        "obj_type": "CITY",
    }
    examples = [made.parse(RAW, "in.jsonl:17"), made.parse(tokens, "in.jsonl:18")]
    assert [example.id for example in examples] == ["in.jsonl:17", "3"]
    first, second = made.features(examples, reader)
    assert first.input_ids.tolist() == second.input_ids.tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": None}, "x:1: subject: expected [start, end]"),
        ({"object": [0, 99]}, "x:1: object: [0, 99] is no stretch of the text"),
        ({"subject_type": 3}, "x:1: subject_type: expected a name"),
        ({"subject_type": None}, "x:1: the field subject_type is missing; this model is shown the "
         "types of both entities and knows PERSON"),
        ({"object_type": None}, "the field object_type is missing; this model is shown the types "
         "of both entities and knows CITY"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_predicted(trained, changes, reason):
    with pytest.raises(DataError) as caught:
        trained[0].parse({**RAW, **changes}, "x:1")
    assert reason in str(caught.value)


def test_missing_types_of_tokens_have_the_name_of_their_field(trained):
    with pytest.raises(DataError, match="the field obj_type is missing"):
        trained[0].parse(record(obj_type=None), "x:1")


def test_a_gold_label_of_a_record_to_predict_may_be_new(trained):
    made, _, reader = trained
    example = made.parse({**RAW, "relation": "married_to"}, "x:1")
    assert made.features([example], reader)[0].labels is None
    assert made.parse({**RAW, "relation": "owns"}, "x:1").relation == "owns"


# RelationClassifier


def test_the_classifier_answers_for_one_text(trained):
    made, _, reader = trained
    predictor = AlwaysSays(made, reader, [0, 1, 3, 2])
    classify = RelationClassifier(predictor)
    answer = classify(RAW["text"], (5, 8), (16, 22), "PERSON", "CITY")
    assert answer["label"] == "died_in"
    assert answer["score"] == pytest.approx(np.exp(3) / np.exp([0, 1, 2, 3]).sum(), rel=1e-6)
    assert predictor.examples[0].tokens[predictor.examples[0].subject[0]] == "Ada"
    ranked = classify(RAW["text"], (5, 8), (16, 22), "PERSON", "CITY", top_k=3)
    assert [r["label"] for r in ranked] == ["died_in", "owns", "born_in"]
    assert ranked[0] == answer
    assert len(classify(RAW, top_k=50)) == 4
    assert classify.labels == made.labels()


def test_the_classifier_answers_for_records(trained):
    made, _, reader = trained
    classify = RelationClassifier(AlwaysSays(made, reader, [0, 1, 3, 2]))
    assert classify(RAW)["label"] == "died_in"
    answers = classify([RAW, record()])
    assert [answer["label"] for answer in answers] == ["died_in"] * 2
    assert [len(answer) for answer in classify([RAW, record()], top_k=2)] == [2, 2]
    assert classify([]) == []


def test_what_the_classifier_refuses(trained):
    made, _, reader = trained
    classify = RelationClassifier(AlwaysSays(made, reader, [0, 1, 3, 2]))
    with pytest.raises(DataError, match="the input: the field object is missing"):
        classify("Ada", (0, 3))
    with pytest.raises(DataError, match="subject_type is missing.*knows PERSON"):
        classify("Ada", (0, 3), (0, 3))
    with pytest.raises(DataError, match=r"record 1: object: \[0, 99\]"):
        classify([RAW, {**RAW, "object": [0, 99]}])
    with pytest.raises(ConfigError, match="top_k: must be at least 1"):
        classify(RAW, top_k=0)
    with pytest.raises(ConfigError, match="subject: belongs into the records"):
        classify([RAW], subject=(0, 3))
    with pytest.raises(DataError, match="record 0: expected an object"):
        classify(["Ada"])


def test_a_model_of_another_task():
    class Other:
        class task:
            name = "squad"

    with pytest.raises(ConfigError, match="it was trained for squad"):
        RelationClassifier(Other())


def test_without_types_nothing_is_asked(tmp_path):
    made, reader = task(input="marker"), tokenizer()
    made.learn(made.read(write_json(tmp_path / "a.json", records()), Rejects()), reader)
    classify = RelationClassifier(AlwaysSays(made, reader, [3, 1, 0, 2]))
    assert classify("Ada of London", (0, 3), (7, 13))["label"] == "no_relation"


def test_no_torch_is_imported():
    code = (
        "import sys, spanbert_ext.tasks.relation.pipeline as c; "
        "assert c.RelationTask and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
