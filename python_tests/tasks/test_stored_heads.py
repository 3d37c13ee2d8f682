"""A trained head beside the encoder: its rows are taken by the names of labels, or not at all."""

import pytest
import torch
from other_encoders import KINDS, encoder_folder
from record_formats import write
from toy_tasks import toy_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)

from spanbert_ext.cli import command
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.models import load_head, start_model
from spanbert_ext.tasks.stored_heads import is_head, label_rows
from spanbert_ext.weights.sources import open_start

OURS = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
THEIRS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BUILDERS = {
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
}


def names(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def started(folder, head="token-classification", labels=OURS):
    """(model, report)"""
    torch.manual_seed(1)
    with open_start(str(folder)) as start:
        return start_model(start, head, labels, 1)


@pytest.mark.parametrize(
    ("stored", "labels", "rows"),
    [
        (THEIRS, OURS, [0, 3, 1, 4, 2]),
        (OURS, OURS, [0, 1, 2, 3, 4]),
        (["NEUTRAL", "Contradiction", "entailment"],)
        + (["contradiction", "entailment", "neutral"], [1, 2, 0]),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], [0, 1]),
        (["LABEL_1", "LABEL_0"], ["bad", "good"], None),  # these are names
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["bad", "good"], None),
        (["bad", "good", "none"], ["bad", "good"], None),
        (["bad", "bad"], ["bad", "good"], None),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["B-PER", "O"], ["B-LOC", "O"], None),
        (["LABEL_0"], ["score"], [0]),
        (["toxicity"], ["score"], None),
        ([], ["bad", "good"], [0, 1]),
    ],
)
def test_rows_by_name(stored, labels, rows):
    assert label_rows({"id2label": {str(n): x for n, x in enumerate(stored)}}, labels)[0] == rows


def test_heads_of_other_kinds():
    ner, none = {"architectures": ["DistilBertForTokenClassification"]}, {}
    assert is_head(ner, "token-classification") and not is_head(ner, "sequence-classification")
    assert is_head(none, "question-answering")
    assert is_head({"architectures": ["BertModel"]}, "question-answering")


@pytest.mark.parametrize("head", BUILDERS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_another_order(tmp_path, kind, head):
    """The numbers of each label are those that the start gave it."""
    folder = encoder_folder(kind, tmp_path / "m", builder=BUILDERS[head], **names(THEIRS))
    before = load_head(folder, head).eval()
    model, report = started(folder, head)
    ids, borders = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 4])
    theirs = before(ids, cu_seqlens=borders, max_seqlen=4).logits
    ours = model.eval()(ids, cu_seqlens=borders, max_seqlen=4).logits
    assert model.config.id2label == dict(enumerate(OURS))
    for column, label in enumerate(OURS):
        torch.testing.assert_close(
            ours[:, column], theirs[:, THEIRS.index(label)], rtol=1e-5, atol=1e-6
        )
    assert not report.new
    assert report.notes == ("rows of its head are taken by the names of labels",)


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels(tmp_path, kind):
    """As many, under other names: the head is new, and the report says so."""
    others = ["O", "B-ORG", "I-ORG", "B-MISC", "I-MISC"]
    folder = encoder_folder(
        kind, tmp_path / "m", builder=AutoModelForTokenClassification, **names(others)
    )
    before, (model, report) = load_head(folder, "token-classification"), started(folder)
    (name,) = [name for name, p in before.named_parameters() if p.shape == (5, 32)]
    old, new = (dict(own.named_parameters())[name] for own in (before, model))
    assert not (new == old).any() and 0 < new.std() < 0.5
    assert sum(report.new.values()) == 2
    assert "O, B-ORG, I-ORG, B-MISC, I-MISC" in report.notes[0]
    assert "starts from random weights" in str(report)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_labels_without_names(tmp_path, kind):
    folder = encoder_folder(
        kind, tmp_path / "m", builder=AutoModelForTokenClassification, num_labels=5
    )
    before, (model, report) = load_head(folder, "token-classification"), started(folder)
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new)
    assert "have no names" in report.notes[0]
    assert sum(started(folder, labels=["O", "B-X"])[1].new.values()) == 2


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_head_of_another_kind(tmp_path, kind):
    """Parameters of the same names and sizes, which tag tokens."""
    folder = encoder_folder(
        kind, tmp_path / "m", builder=AutoModelForTokenClassification, **names(OURS)
    )
    _, report = started(folder, "sequence-classification")
    assert report.new["classifier"] == 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_questions_after_entities(tmp_path, kind):
    """A start with five labels: the head of question answering has two rows all the same."""
    folder = encoder_folder(
        kind, tmp_path / "m", builder=AutoModelForTokenClassification, **names(OURS)
    )
    data = write(tmp_path, "squad", good=4)
    words = [f"--model={folder}", f"--train={data}", f"--output={tmp_path}/run", "--device=cpu"]
    assert command.main(["finetune", "squad", *words, "--max_steps=1", "--qa.length=48"]) == 0
    model = load_head(tmp_path / "run/best", "question-answering")
    assert model.config.num_labels == 2


def test_genres_of_a_coreference_head(tmp_path):
    """Row 0 is that of unknown genres, the others go by name."""
    tokenizer = toy_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    options = {"ffnn_size": 8, "feature_size": 4, "max_span_width": 4}
    config.coref = CorefModelOptions(**options, genres=["nw", "bc", "tc"]).to_dict()
    before = SpanBertForCoreference(config)
    before.save_pretrained(tmp_path)
    table = "coref.antecedents.features.genre.weight"
    old = before.state_dict()[table]
    for genres, rows in ((["bc", "nw", "tc"], [0, 2, 1, 3]), (["bc", "mz", "tc"], None)):
        fields = {"coref": CorefModelOptions(**options, genres=genres).to_dict()}
        with open_start(str(tmp_path)) as start:
            model, report = start_model(start, "coreference", [], 1, fields=fields)
        new = model.state_dict()[table]
        if rows is None:
            assert not torch.equal(new, old) and report.new["coreference head"] > 10
            assert "knows other genres (nw, bc, tc)" in report.notes[-1]
        else:
            assert torch.equal(new, old[rows]) and not report.new
