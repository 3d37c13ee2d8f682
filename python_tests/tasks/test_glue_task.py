"""The GLUE tasks as the machinery sees them: inputs, predictions, scores, the submission."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.tasks.classification.config import GlueOptions
from spanbert_ext.tasks.classification.data import GlueExample
from spanbert_ext.tasks.classification.task import (
    GlueTask,
    LabelPrediction,
    ValuePrediction,
    cut_pair,
)
from spanbert_ext.tasks.rejects import Rejects

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefgh",
    *(f"##{c}" for c in "abcdefgh"),
]
UNK, CLS, SEP = 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordPiece({p: n for n, p in enumerate(PIECES)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    )


def ids(text):
    """Of pieces written with blanks between them."""
    return [PIECES.index(piece) for piece in text.split()]


def features(name, tokenizer, *texts, gold=None, length=128):
    task = GlueTask(name, GlueOptions(length))
    (feature,) = task.features([GlueExample("x", texts, gold)], tokenizer)
    return feature


def test_a_sentence(tokenizer):
    feature = features("cola", tokenizer, "Ab c?", gold="1")
    assert feature.input_ids.tolist() == [CLS, *ids("a ##b c"), UNK, SEP]
    assert feature.input_ids.dtype == np.int64
    assert feature.token_type_ids is None
    assert (feature.labels.tolist(), feature.labels.dtype, feature.labels.shape) == (1, "int64", ())
    assert features("cola", tokenizer, "a").labels is None


def test_a_pair(tokenizer):
    feature = features("mnli", tokenizer, "a b", "c d e", gold="neutral")
    assert feature.input_ids.tolist() == [CLS, *ids("a b"), SEP, *ids("c d e"), SEP]
    assert feature.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert feature.token_type_ids.dtype == np.int64
    assert feature.labels.tolist() == 2
    feature = features("sts-b", tokenizer, "a", "b", gold=2.5)
    assert feature.labels == np.array(2.5, np.float32)
    assert (feature.labels.dtype, feature.labels.shape) == ("float32", ())


def test_what_is_too_long_is_cut(tokenizer):
    assert features("cola", tokenizer, "a b c d e f", length=5).input_ids.tolist() == [
        CLS, *ids("a b c"), SEP,
    ]  # fmt: skip
    feature = features("rte", tokenizer, "a b c d e f", "g h", length=7)
    assert feature.input_ids.tolist() == [CLS, *ids("a b"), SEP, *ids("g h"), SEP]
    feature = features("rte", tokenizer, "a b c d", "e f g h", length=6)
    assert feature.input_ids.tolist() == [CLS, *ids("a b"), SEP, *ids("e"), SEP]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 40))
def test_a_pair_is_popped_from_the_longer(first, second, room):
    a, b = list(range(first)), list(range(second))
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    cut = cut_pair(np.arange(first), np.arange(second), room)
    assert [part.tolist() for part in cut] == [a, b]


@given(st.lists(st.tuples(st.text("ab ?é\u202e\0👍", max_size=30), st.text(max_size=30))))
def test_any_text_gives_an_input_within_the_length(tokenizer, pairs):
    examples = [GlueExample("x", pair) for pair in pairs]
    found = GlueTask("qqp", GlueOptions(9)).features(examples, tokenizer)
    assert [feature.example for feature in found] == list(range(len(pairs)))
    for feature in found:
        assert len(feature.input_ids) == len(feature.token_type_ids) <= 9
        assert (feature.input_ids == SEP).sum() == 2
        first = feature.input_ids.tolist().index(SEP)
        assert feature.token_type_ids.tolist() == [
            int(n > first) for n in range(len(feature.input_ids))
        ]


class Counting:
    """A tokenizer that keeps what it was asked."""

    def __init__(self, tokenizer):
        self.inner, self.asked = tokenizer, []
        self.cls_token_id, self.sep_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.model_input_names = tokenizer.model_input_names

    def __call__(self, texts, *second, **settings):
        self.asked += texts if isinstance(texts, list) else []  # the others show the layout
        return self.inner(texts, *second, **settings)


def test_each_text_is_tokenised_once(tokenizer):
    counting = Counting(tokenizer)
    examples = [GlueExample(str(n), (f"a {n % 3}", "a 1")) for n in range(9)]
    GlueTask("qqp", GlueOptions()).features(examples, counting)
    assert sorted(counting.asked) == ["a 0", "a 1", "a 2"]


def test_many_texts_are_tokenised_in_batches(tokenizer, monkeypatch):
    examples = [GlueExample(str(n), (letter * n,)) for n, letter in enumerate("abcdefg", 1)]
    task = GlueTask("cola", GlueOptions())
    at_once = task.features(examples, tokenizer)
    monkeypatch.setattr("spanbert_ext.text.tokens._AT_ONCE", 3)
    parts = task.features(examples, tokenizer)
    assert [f.input_ids.tolist() for f in parts] == [f.input_ids.tolist() for f in at_once]


def test_a_long_text_gives_no_warning(tokenizer, caplog, recwarn):
    features("cola", tokenizer, "a " * 5000)
    assert not caplog.records
    assert not recwarn.list


def row(*numbers):
    return np.array(numbers, np.float32)


def predict(name, examples, *outputs):
    return GlueTask(name, GlueOptions()).decode(examples, [None] * len(outputs), outputs)


def test_probabilities_and_their_json():
    example = GlueExample("7", ("a", "b"), "neutral")
    (found,) = predict("mnli", [example], row(0, math.log(3), math.log(4)))
    task = GlueTask("mnli", GlueOptions())
    assert found.label == "neutral"
    line = task.as_json(example, found)
    assert line["label"] == "neutral"
    assert line["score"] == line["scores"]["neutral"] == pytest.approx(0.5)
    assert line["scores"] == pytest.approx(
        {"contradiction": 0.125, "entailment": 0.375, "neutral": 0.5}
    )
    (extreme,) = predict("rte", [example], row(3e4, -3e4))
    assert extreme == LabelPrediction("entailment", {"entailment": 1.0, "not_entailment": 0.0})


def test_a_value_and_its_json():
    example = GlueExample("7", ("a", "b"))
    (found,) = predict("sts-b", [example], row(5.25))
    assert found == ValuePrediction(5.25)
    assert GlueTask("sts-b", GlueOptions()).as_json(example, found) == {"value": 5.25}


def test_the_page_shows_both_texts():
    task = GlueTask("mnli", GlueOptions())
    example = GlueExample("7", ("one", "other"), "neutral")
    block = task.marked(example, LabelPrediction("entailment", {"entailment": 0.75}))
    assert (block.title, block.text) == ("7", "one\n\nother")
    assert dict(block.facts) == {"label": "entailment", "probability": "0.750", "gold": "neutral"}
    block = GlueTask("sts-b", GlueOptions()).marked(
        GlueExample("7", ("a", "b")), ValuePrediction(2)
    )
    assert block.facts == (("score", "2.000"),)


def test_scores_are_in_percent():
    examples = [GlueExample(str(n), ("a",), gold) for n, gold in enumerate("0110")]
    outputs = [row(1, 0), row(0, 1), row(1, 0), row(1, 0)]
    found = predict("cola", examples, *outputs)
    assert GlueTask("cola", GlueOptions()).score(examples, found) == pytest.approx(
        {"accuracy": 75, "matthews": 100 / math.sqrt(3)}
    )
    rated = [GlueExample(str(n), ("a", "b"), float(n)) for n in range(1, 4)]
    found = predict("sts-b", rated, row(1), row(3), row(2))
    assert GlueTask("sts-b", GlueOptions()).score(rated, found) == pytest.approx(
        {"pearson": 50, "spearman": 50, "pearson_and_spearman": 50}
    )


@pytest.mark.parametrize("name", ["cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "wnli"])
def test_the_metric_that_picks_the_best_model_is_there(name):
    task = GlueTask(name, GlueOptions())
    gold = task.layout.labels[0] if task.layout.labels else 1.0
    examples = [GlueExample("1", ("a", "b"), gold)] * 2
    found = task.decode(examples, [None] * 2, [np.zeros(len(task.labels()), np.float32)] * 2)
    assert 0 <= task.score(examples, found)[task.best_metric] <= 100


def test_a_test_set_becomes_a_submission(tmp_path, tokenizer):
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    task = GlueTask("rte", GlueOptions())
    examples = task.read(tmp_path / "test.tsv", Rejects())
    found = task.decode(examples, task.features(examples, tokenizer), [row(2, 1), row(1, 2)])
    assert task.score(examples, found) == {}
    task.write_predictions(tmp_path / "RTE.tsv", examples, found)
    assert (tmp_path / "RTE.tsv").read_bytes() == (
        b"index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RTE.tsv", "test.tsv"]


def test_submissions_of_labels_and_of_scores(tmp_path):
    examples = [GlueExample(str(n), ("a", "b")) for n in range(4)]
    values = [ValuePrediction(value) for value in (-0.2, 5.3, 2.71828, 4)]
    GlueTask("sts-b", GlueOptions()).write_predictions(tmp_path / "s", examples, values)
    assert (tmp_path / "s").read_text().split() == (
        ["index", "prediction", "0", "0.000", "1", "5.000", "2", "2.718", "3", "4.000"]
    )
    labels = [LabelPrediction(label, {label: 1.0}) for label in "0110"]
    GlueTask("qqp", GlueOptions()).write_predictions(tmp_path / "q", examples, labels)
    assert (tmp_path / "q").read_text().split()[2::2] == ["0", "1", "2", "3"]
    assert (tmp_path / "q").read_text().split()[3::2] == ["0", "1", "1", "0"]
    with pytest.raises(StorageError, match=r"cannot write .*absent/q: No such file"):
        GlueTask("qqp", GlueOptions()).write_predictions(tmp_path / "absent/q", examples, labels)


def test_a_test_set_trains_nothing(tokenizer):
    task = GlueTask("mnli", GlueOptions())
    task.learn([GlueExample("1", ("a", "b"), "neutral")], tokenizer)
    assert task.facts == {}
    with pytest.raises(DataError, match=r"example 2 .*no gold label \(column gold_label or la"):
        task.learn([GlueExample("2", ("a", "b"))], tokenizer)


def test_options():
    assert GlueOptions().faults() == []
    assert GlueOptions(5).faults() == []
    assert GlueOptions(4).faults() == ["glue.length: must be at least 5; got 4"]


def test_no_torch_is_imported():
    code = "import sys, spanbert_ext.tasks.classification.task; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
