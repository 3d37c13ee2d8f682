"""Encoders of other families: the numbers are those of plain transformers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from other_encoders import KINDS, encoder_folder, tokenizer_of
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from spanbert_ext.cli import command
from spanbert_ext.tasks.batching import FeatureBatches, TrainingOrder, pack
from spanbert_ext.tasks.classification.config import GlueOptions
from spanbert_ext.tasks.classification.data import GlueExample
from spanbert_ext.tasks.classification.task import GlueTask
from spanbert_ext.tasks.hf_heads import HfHead
from spanbert_ext.tasks.models import head_outputs, load_head, stream_multiple
from spanbert_ext.tasks.packed_objective import count_labels, head_loss
from spanbert_ext.tasks.predictor import outputs_of
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.features import features_of
from spanbert_ext.tasks.task import Feature

BUILDERS = {
    "sequence-classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "token-classification": AutoModelForTokenClassification,
}
# Of the families here these have no other attention.
EAGER_ONLY = ("deberta-v2", "mpnet")
PAIRS = [("the film was good", "a story"), ("Anna", "very dull and awful ending with a film")]


def features_of_pairs(head, tokenizer):
    if head == "sequence-classification":
        examples = [GlueExample(str(n), pair) for n, pair in enumerate(PAIRS)]
        return GlueTask("mrpc", GlueOptions()).features(examples, tokenizer)
    examples = [QAExample(str(n), a, b) for n, (a, b) in enumerate(PAIRS)]
    return features_of(examples, tokenizer, QAOptions(length=64))


@pytest.mark.parametrize("head", ["sequence-classification", "question-answering"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pair_has_the_numbers_of_plain_transformers(tmp_path, kind, head):
    folder = encoder_folder(kind, tmp_path / "model", builder=BUILDERS[head])
    tokenizer = tokenizer_of(kind)
    plain = BUILDERS[head].from_pretrained(folder).eval()
    features = features_of_pairs(head, tokenizer)
    batch = pack(features, head, tokenizer.pad_token_id)
    found = head_outputs(load_head(folder, head).eval(), batch, head)
    place = 0
    for row, (a, b) in enumerate(PAIRS):
        output = plain(**tokenizer(a, b, return_tensors="pt"))
        if head == "sequence-classification":
            torch.testing.assert_close(found[row], output.logits[0], rtol=1e-4, atol=1e-5)
        else:
            expected = torch.stack([output.start_logits, output.end_logits], -1)[0]
            own = found[place : place + len(expected)]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
            place += len(expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", BUILDERS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bert"])
def test_a_sequence_without_tokens_is_no_nan(tmp_path, kind, head, attention):
    """Neither in the numbers of others nor in gradients; in no attention of transformers."""
    folder = encoder_folder(kind, tmp_path / "model", builder=BUILDERS[head])
    model = BUILDERS[head].from_pretrained(
        folder, attn_implementation=attention if kind not in EAGER_ONLY else "eager"
    )
    ids = torch.tensor([5, 6, 7, 8, 9, 10])
    borders = torch.tensor([0, 0, 4, 4, 6, 6])
    model = HfHead(model.eval(), head)
    output = model(ids, borders, max_seqlen=4)
    values = output.start_logits if head == "question-answering" else output.logits
    assert torch.isfinite(values).all()
    whole = model(ids, torch.tensor([0, 4, 6]), max_seqlen=4)
    expected = whole.start_logits if head == "question-answering" else whole.logits
    kept = values[[1, 3]] if head == "sequence-classification" else values
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)
    values.square().sum().backward()
    bad = [
        n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    assert not bad


def test_pairs_train_and_predict(tmp_path, capsys):
    """A RoBERTa, whose own tokenizer has no types, and one with BERT's tokenizer, which has."""
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [
        f"{n}\ta film\tthe story\t{('entailment', 'not_entailment')[n % 2]}" for n in range(8)
    ]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "in.jsonl").write_text('{"sentence1": "a film", "sentence2": "the story"}\n')
    for name in ("own", "berts"):
        start = encoder_folder("roberta", tmp_path / name)
        if name == "berts":
            tokenizer_of("bert").save_pretrained(start)
        words = [f"--model={start}", f"--train={tmp_path}/train.tsv", f"--dev={tmp_path}/train.tsv"]
        words += [f"--output={tmp_path}/run-{name}", "--max_steps=2", "--device=cpu"]
        assert command.main(["finetune", "rte", *words, "--glue.length=40"]) == 0
        files = [str(tmp_path / "in.jsonl"), str(tmp_path / f"{name}.jsonl")]
        words = [f"--model={tmp_path}/run-{name}", "--device=cpu"]
        assert command.main(["predict", "rte", *files, *words]) == 0, capsys.readouterr().err
        scores = json.loads((tmp_path / f"{name}.jsonl").read_text())["scores"]
        assert sum(scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("head", BUILDERS)
def test_no_row_is_padding_alone(tmp_path, head):
    """Neither in training nor in predictions."""
    model = load_head(encoder_folder("roberta", tmp_path / "m", builder=BUILDERS[head]), head)
    seen = []
    model.model.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    rows = np.array([1, 2]) if head == "token-classification" else None
    label = {"question-answering": np.array([1, 1]), "token-classification": np.array([0, 1])}
    features = [
        Feature(n, np.arange(5, 9 + n), rows=rows, labels=label.get(head, np.array(1)))
        for n in range(3)
    ]
    task = SimpleNamespace(head=head)
    outputs = outputs_of(model, features, task, 1, torch.device("cpu"), "fp32")
    assert len(outputs) == 3 and all(np.isfinite(own).all() for own in outputs)
    order = TrainingOrder(np.array([4, 5, 6]), 3, 0)
    multiple = stream_multiple(model)
    own = FeatureBatches(features, head, order, 99, 1, "cpu", "abc", multiple=multiple)
    (batch,) = own.batches(0)
    loss = head_loss(model, batch, head, count_labels(batch, head)[0])
    assert torch.isfinite(loss)
    assert [tuple(ids.shape) for ids in seen] == [(3, 6), (3, 6)]
    assert all((ids != 1).any(1).all() for ids in seen)
