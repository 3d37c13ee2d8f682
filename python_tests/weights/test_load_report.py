"""What is said about the weights a model started from."""

import json

import torch

from spanbert_ext.weights.load_report import LoadReport


def small_model():
    model = torch.nn.Module()
    model.bert = torch.nn.Linear(3, 2)
    model.cls = torch.nn.Module()
    model.cls.sbo = torch.nn.Linear(2, 2)
    model.cls.sbo_bias = torch.nn.Parameter(torch.zeros(5))
    return model


INFO = {
    "missing_keys": {"cls.sbo.weight", "cls.sbo.bias", "cls.sbo_bias"},
    "unexpected_keys": {
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "lm.x.y.w",
        "lm.x.b",
    },
}


def test_text_literal():
    notes = {"notes": ("a remark",), "licence": "theirs"}
    report = LoadReport.of(small_model(), "there", "BERT directory", INFO, **notes)
    assert str(report).splitlines() == [
        "weights of there (BERT directory)",
        "  taken over: 2 tensors, 0.00 M parameters",
        "  new: the SBO head starts from random weights (3 tensors)",
        "  not used: pooler (1 tensor)",
        "  not used: NSP head (1 tensor)",
        "  not used: lm.x (2 tensors)",
        "  note: a remark",
        "  licence: theirs",
    ]


def test_json_literal():
    report = LoadReport.of(small_model(), "there", "BERT directory", INFO)
    assert json.loads(json.dumps(report.as_dict())) == {
        "source": "there",
        "layout": "BERT directory",
        "tensors": 2,
        "parameters": 8,
        "new": {"SBO head": 3},
        "unused": {"pooler": 1, "NSP head": 1, "lm.x": 2},
        "notes": [],
        "licence": None,
    }
