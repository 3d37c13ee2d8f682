"""The three heads: equal to transformers' own classes, packed or padded, saved as those, and right
under gradient accumulation in transformers.Trainer."""

import copy

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)

from spanbert_ext.tasks.heads import HEADS
from spanbert_ext.tasks.losses import label_loss, span_loss

PLAIN = {
    "question-answering": BertForQuestionAnswering,
    "token-classification": BertForTokenClassification,
    "sequence-classification": BertForSequenceClassification,
}
AUTO = {
    "question-answering": AutoModelForQuestionAnswering,
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
}
LENGTHS = torch.tensor([9, 3, 12, 7])


def make_config(**changes) -> BertConfig:
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "initializer_range": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
    }
    return BertConfig(**{**fields, **changes})


def pair(head, **changes):
    """(ours, transformers') with the same weights, evaluating in double."""
    changes = {"num_labels": 2 if head == "question-answering" else 3, **changes}
    torch.manual_seed(0)
    theirs = PLAIN[head](make_config(**changes)).double()
    ours = HEADS[head](make_config(**changes)).double()
    weights = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if not name.endswith("position_ids")
    }
    assert ours.load_state_dict(weights, strict=True)
    return ours, theirs


def padded_inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 61, (4, 12), generator=generator)
    mask = (torch.arange(12) < LENGTHS.unsqueeze(1)).long()
    types = torch.randint(0, 2, (4, 12), generator=generator) * mask
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def packed_inputs():
    padded = padded_inputs()
    kept = padded["attention_mask"].bool()
    borders = torch.nn.functional.pad(LENGTHS.cumsum(0), (1, 0))
    return {
        "input_ids": padded["input_ids"][kept],
        "token_type_ids": padded["token_type_ids"][kept],
        "cu_seqlens": borders,
        "max_seqlen": 12,
    }, kept


def labels_of(head):
    if head == "question-answering":
        starts, ends = torch.tensor([2, 0, 11, 6]), torch.tensor([5, 0, 11, 6])
        return {"start_positions": starts, "end_positions": ends}
    if head == "token-classification":
        generator = torch.Generator().manual_seed(2)
        labels = torch.randint(0, 3, (4, 12), generator=generator)
        mask = padded_inputs()["attention_mask"].bool()
        return {"labels": torch.where(mask, labels, -100)}
    return {"labels": torch.tensor([0, 2, 1, 1])}


def logits_of(output):
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


@pytest.mark.parametrize("head", PLAIN)
def test_packed_and_padded_equal_transformers(head):
    ours, theirs = pair(head)
    mask = padded_inputs()["attention_mask"].bool()
    expected = logits_of(theirs(**padded_inputs()))
    padded = logits_of(ours(**padded_inputs()))
    packed, kept = packed_inputs()
    stream = logits_of(ours(**packed))
    if head == "sequence-classification":
        torch.testing.assert_close(padded.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(stream, padded)
    else:
        torch.testing.assert_close(padded[mask].double(), expected[mask], rtol=0, atol=1e-5)
        torch.testing.assert_close(stream, padded[kept])


@pytest.mark.parametrize("head", ["token-classification", "sequence-classification"])
def test_losses_and_gradients_equal_transformers(head):
    ours, theirs = pair(head)
    labels = labels_of(head)
    expected = theirs(**padded_inputs(), **labels).loss
    loss = ours(**padded_inputs(), **labels).loss
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    expected.backward()
    loss.backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs_by_name[name].grad, rtol=1e-4, atol=1e-6, msg=name
        )


def test_question_answering_loss_is_over_tokens_only():
    """transformers' softmax runs over padding too; without padding both are the same."""
    ours, theirs = pair("question-answering")
    ids = padded_inputs()["input_ids"][2:3]
    positions = {"start_positions": torch.tensor([3]), "end_positions": torch.tensor([7])}
    torch.testing.assert_close(
        ours(ids, **positions).loss.double(), theirs(ids, **positions).loss, rtol=1e-6, atol=0
    )
    labels = labels_of("question-answering")
    packed, _ = packed_inputs()
    torch.testing.assert_close(
        ours(**packed, **labels).loss, ours(**padded_inputs(), **labels).loss
    )


def test_span_loss_by_hand():
    """Two sequences of two tokens: p = softmax([0, log 3]) = [1/4, 3/4]."""
    logits = torch.tensor([[0.0, 3.0], [3.0, 0.0]]).log1p().repeat(2, 1)
    logits[:, 0] = torch.tensor([0.0, 3.0, 0.0, 3.0]).clamp(min=1).log()
    logits[:, 1] = torch.tensor([3.0, 1.0, 3.0, 1.0]).log()
    starts, lengths = torch.tensor([0, 2]), torch.tensor([2, 2])
    gold = torch.tensor([[1, 0], [0, 1]])
    loss = span_loss(logits, starts, lengths, 2, gold)
    quarter, most = torch.tensor(4.0).log(), torch.tensor(4 / 3).log()
    torch.testing.assert_close(loss, (most + most + quarter + quarter) / 4)
    outside = torch.tensor([[1, 0], [-100, -100]])
    torch.testing.assert_close(span_loss(logits, starts, lengths, 2, outside), most)
    nothing = torch.full((2, 2), -100)
    assert span_loss(logits, starts, lengths, 2, nothing) == 0


def test_regression_loss_by_hand():
    logits = torch.tensor([[1.0], [2.0], [5.0]])
    labels = torch.tensor([0.0, 4.0, float("nan")])
    assert label_loss(logits, labels) == (1 + 4) / 2
    assert label_loss(logits, labels, divisor=5) == 1
    empty = torch.full((3,), float("nan"))
    assert label_loss(logits, empty) == 0


def test_rows_choose_tokens():
    ours, _ = pair("token-classification")
    packed, _ = packed_inputs()
    everything = ours(**packed).logits
    rows = torch.tensor([0, 4, 9, 30])
    torch.testing.assert_close(ours(**packed, rows=rows).logits, everything[rows])


@pytest.mark.parametrize("head", PLAIN)
def test_what_is_saved_loads_in_plain_transformers(head, tmp_path):
    torch.manual_seed(3)
    ours = HEADS[head](make_config(id2label={0: "a", 1: "b", 2: "c"})).eval()
    ours.save_pretrained(tmp_path)
    theirs, info = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is PLAIN[head]
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = HEADS[head].from_pretrained(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert torch.equal(theirs.state_dict()[name], tensor), name
    if head != "question-answering":
        assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}


class _Rows(Dataset):
    def __init__(self, head):
        self.columns = {**padded_inputs(), **labels_of(head)}

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


@pytest.mark.parametrize("head", PLAIN)
def test_trainer_accumulates_to_the_big_batch(head, tmp_path):
    """Four batches of one, accumulated, and one batch of four make the same update.

    Token labels are averaged over a batch, so its rows get as many each.
    """
    torch.manual_seed(5)
    start = HEADS[head](make_config())
    data = _Rows(head)
    if head == "token-classification":
        labels = data.columns["labels"]
        data.columns["labels"] = torch.where(torch.arange(12) < 3, labels, -100)
    updates = []
    for size, steps in ((4, 1), (1, 4)):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=1.0,
            optim="sgd",
            max_grad_norm=0,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=data).train()
        before = dict(start.named_parameters())
        moved = [(p - before[n]).flatten() for n, p in model.named_parameters()]
        updates.append(torch.cat(moved))
    whole, accumulated = updates
    assert whole.norm() > 0
    assert abs(float((accumulated.norm() / whole.norm()).detach()) - 1) < 1e-4
    torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-5)
