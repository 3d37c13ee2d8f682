"""Tagging as a task: features, predictions and what is written of them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tagging_helpers import gold_outputs, letter_tokenizer, outputs_for, tagging_task

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample
from spanbert_ext.tasks.tagging.schemes import Span, parse_tag, spans_of
from spanbert_ext.tasks.tagging.task import TaggingTask, gold_spans

CONLL = """Ada\tB-PER
Lovelace\tI-PER
met\tO
Babbage\tB-PER

in\tO
old\tO
London\tB-LOC
"""


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(CONLL, encoding="utf-8")
    (example,) = tagging_task().read(path, Rejects())
    return example


@st.composite
def documents(draw):
    """Sentences of words of 1 to 9 pieces, tagged."""
    words, tags, starts = [], [], []
    for size in draw(st.lists(st.integers(1, 14), min_size=1, max_size=5)):
        starts.append(len(words))
        words += [draw(st.sampled_from("abcd")) * draw(st.integers(1, 9)) for _ in range(size)]
        tags += ["O"] * size
        for place in range(starts[-1], len(words)):
            before = tags[place - 1] if place > starts[-1] else "O"
            again = [f"I-{before[2:]}"] if before != "O" else []
            tags[place] = draw(st.sampled_from(["O", "B-PER", "B-LOC", *again]))
    return TaggedExample("d", tuple(words), tuple(tags), tuple(starts))


def test_features_by_hand(document):
    task, tokenizer = tagging_task(), letter_tokenizer()
    assert task.labels() == ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
    (feature,) = task.features([document], tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(feature.input_ids)
    assert pieces[:5] == ["[CLS]", "a", "##d", "##a", "l"] and pieces[-1] == "[SEP]"
    firsts = [pieces[row] for row in feature.rows]
    assert firsts == ["a", "l", "m", "b", "i", "o", "l"]
    assert feature.labels.tolist() == [2, 4, 0, 2, 0, 0, 1]
    assert feature.input_ids.dtype == feature.rows.dtype == feature.labels.dtype == np.int64
    alone = tagging_task(join=False).features([document], tokenizer)
    assert [len(x.rows) for x in alone] == [4, 3] and [x.example for x in alone] == [0, 0]


def test_bilou_labels(document):
    task = tagging_task(scheme="bilou")
    (feature,) = task.features([document], letter_tokenizer())
    named = [task.labels()[n] for n in feature.labels]
    assert named == ["B-PER", "L-PER", "O", "U-PER", "O", "O", "U-LOC"]


@given(
    st.lists(documents(), min_size=1, max_size=3),
    st.sampled_from(["bio", "bilou"]),
    st.booleans(),
    st.integers(8, 40),
    st.booleans(),
)
def test_a_perfect_model_scores_100_in_any_windows(examples, scheme, join, length, constrained):
    options = {"scheme": scheme, "join": join, "length": length, "overlap": length // 4}
    task = tagging_task(**options, constrained=constrained)
    features = task.features(examples, letter_tokenizer())
    assert [x.example for x in features] == sorted(x.example for x in features)
    assert {x.example for x in features} == set(range(len(examples)))
    assert all(len(x.input_ids) <= length and len(x.rows) == len(x.labels) for x in features)
    words = sum(len(x.words) for x in examples)
    assert sum(int((x.labels >= 0).sum()) for x in features) == words
    predictions = task.decode(examples, features, gold_outputs(features, task.labels()))
    for example, prediction in zip(examples, predictions, strict=True):
        assert list(prediction.spans) == gold_spans(example)
        assert all(0.99 < score <= 1 for score in prediction.scores)
    scores = task.score(examples, predictions)
    assert scores["f1"] == (100.0 if any(map(gold_spans, examples)) else 0.0)
    assert task.best_metric in scores


def noise(features, labels, seed):
    rng = np.random.default_rng(seed)
    return outputs_for(features, labels, lambda feature, row: 3 * rng.normal(size=len(labels)))


@given(documents(), st.integers(0, 999), st.sampled_from(["begin", "drop"]), st.booleans())
def test_no_entity_crosses_a_sentence(example, seed, repair, constrained):
    task = tagging_task(repair=repair, constrained=constrained, length=16, overlap=4)
    features = task.features([example], letter_tokenizer())
    (found,) = task.decode([example], features, noise(features, task.labels(), seed))
    for span in found.spans:
        assert any(a <= span.start < span.end <= b for a, b in example.sentence_ranges())
    assert list(found.spans) == sorted(found.spans)
    if not constrained:
        labels = [task.labels()[n] for n in found.log_probabilities.argmax(axis=1)]
        expected = []
        for start, stop in example.sentence_ranges():
            expected += spans_of(map(parse_tag, labels[start:stop]), repair, start)
        assert list(found.spans) == expected


def test_the_score_is_the_mean_probability(document):
    task = tagging_task()
    features = task.features([document], letter_tokenizer())
    sure = {0: ("B-PER", 0.9), 1: ("I-PER", 0.6), 6: ("B-LOC", 0.7)}

    def row(feature, number):
        label, probability = sure.get(number, ("O", 0.8))
        values = np.full(5, (1 - probability) / 4)
        values[task.labels().index(label)] = probability
        return np.log(values)

    (found,) = task.decode([document], features, outputs_for(features, task.labels(), row))
    assert found.spans == (Span(0, 2, "PER"), Span(6, 7, "LOC"))
    assert found.scores == pytest.approx((0.75, 0.7))


def predict(task, example, outputs):
    features = task.features([example], letter_tokenizer())
    (found,) = task.decode([example], features, outputs(features))
    return found


def test_json_of_a_text_and_of_words(document):
    task = tagging_task()
    names = {"ada": "B-PER", "lovelace": "I-PER", "london": "B-LOC"}

    def by_word(example):
        def row(feature, number):
            word = example.words[feature.place.start + number].lower()
            return 9 * np.eye(5)[task.labels().index(names.get(word, "O"))]

        return predict(task, example, lambda x: outputs_for(x, task.labels(), row))

    text = task.parse({"text": "\u00a0Ada  Lovelace's London", "id": 7}, "in:1")
    assert text.id == "7" and text.words == ("Ada", "Lovelace", "'s", "London")
    line = task.as_json(text, by_word(text))
    assert json.loads(json.dumps(line)) == line
    shown = [(x["start"], x["end"], x["type"], x["text"]) for x in line["entities"]]
    assert shown == [(1, 14, "PER", "Ada  Lovelace"), (17, 23, "LOC", "London")]
    words = task.parse({"words": list(document.words)}, "in:2")
    assert words.id == "in:2"
    shown = [tuple(x.values())[:4] for x in task.as_json(words, by_word(words))["entities"]]
    assert shown == [(0, 2, "PER", "Ada Lovelace"), (6, 7, "LOC", "London")]


def test_marked_text_and_the_file_for_the_scorer(document, tmp_path):
    task = tagging_task()
    found = predict(task, document, lambda x: gold_outputs(x, task.labels()))
    page = task.marked(document, found)
    assert page.text == "Ada Lovelace met Babbage\nin old London"
    shown = [(page.text[m.start : m.end], m.label) for m in page.marks]
    assert shown == [("Ada Lovelace", "PER"), ("Babbage", "PER"), ("London", "LOC")]
    empty = TaggedExample("e", ())
    nothing = predict(task, empty, lambda x: noise(x, task.labels(), 0))
    assert task.marked(empty, nothing).text == ""
    path = tmp_path / "out.conll"
    task.write_predictions(path, [document], [found])
    rows = [x.split("\t") for x in CONLL.splitlines()]
    doubled = "".join(" ".join([*x, *x[1:]]) + "\n" for x in rows)
    assert path.read_text(encoding="utf-8") == doubled + "\n"


def test_written_tags_are_bio_whatever_the_model_predicts(document, tmp_path):
    task, path = tagging_task(scheme="bilou"), tmp_path / "out.conll"
    found = predict(task, document, lambda x: gold_outputs(x, task.labels()))
    task.write_predictions(path, [document], [found])
    rows = [x.split(" ") for x in path.read_text(encoding="utf-8").splitlines() if x]
    assert [gold for _, gold, _ in rows] == [tag for _, _, tag in rows] == list(document.tags)


def test_learning(document):
    task = TaggingTask("ner", TaggingOptions(scheme="bilou"))
    task.learn([document], letter_tokenizer())
    assert task.facts["types"] == ["LOC", "PER"]
    assert task.facts["labels"][:3] == ["O", "B-LOC", "B-PER"] and len(task.labels()) == 9
    assert json.loads(json.dumps(task.facts)) == task.facts
    with pytest.raises(DataError, match="every tag is O"):
        task.learn([TaggedExample("x", ("a",), ("O",))], letter_tokenizer())


def test_known_types_are_asked_of_a_file(document, tmp_path):
    task = tagging_task(types=("PER",))
    with pytest.raises(DataError, match=r"x\.conll:8.*'LOC' was not in the training data"):
        task.read(tmp_path / "x.conll", Rejects())
    (feature,) = task.features([document], letter_tokenizer())
    assert feature.labels[-1] == -100  # read before the types were known: trained on nothing


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "fields there: none"),
        ({"tokens": ["a"]}, "fields there: 'tokens'"),
        ({"text": "a", "words": ["a"]}, "one of the fields"),
        ({"text": 3}, "'text' must be text; got int"),
        ({"words": "a b"}, "'words' must be a list of texts"),
        ({"words": ["a", None]}, "'words' must be a list of texts"),
    ],
)
def test_records_that_cannot_be_tagged(record, reason):
    with pytest.raises(DataError, match=reason) as caught:
        tagging_task().parse(record, "in.jsonl:17")
    assert str(caught.value).startswith("in.jsonl:17: ")


@pytest.mark.parametrize("words", [(), ("",), ("\0",), ("\ud800", "a"), ("a" * 5000,), ("\u0301",)])
def test_every_word_has_a_row(words):
    task = tagging_task(length=8, overlap=2)
    example = TaggedExample("x", words)
    features = task.features([example], letter_tokenizer())
    assert sum(len(x.rows) for x in features) == len(words)
    assert all(len(x.input_ids) <= 8 and x.labels is None for x in features)
    (found,) = task.decode([example], features, noise(features, task.labels(), 0))
    assert found.log_probabilities.shape == (len(words), 5)
    with pytest.raises(DataError, match="no gold tags"):
        task.score([example], [found])


def test_labels_that_are_no_tags():
    task = TaggingTask("ner", TaggingOptions(), {"labels": ["O", "LABEL_1"]})
    with pytest.raises(ConfigError, match="'LABEL_1' is no tag"):
        task.model_tags()


def test_impossible_settings_are_all_named():
    assert TaggingOptions().faults() == []
    faults = TaggingOptions(length=4, overlap=-1, token_column=1, tag_column=1).faults()
    assert [fault.split(":")[0] for fault in faults] == [
        "tagging.length",
        "tagging.overlap",
        "tagging.tag_column",
    ]
    assert "half of tagging.length = 64" in TaggingOptions(length=64, overlap=33).faults()[0]
