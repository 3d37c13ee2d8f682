"""The demonstration: its text, its closing numbers, and the whole thing with three steps."""

import dataclasses
import math

import numpy as np
import pytest
from transformers import AutoModelForMaskedLM

from spanbert_ext.cli.demo import run_demonstration, unigram_loss
from spanbert_ext.cli.demo_text import clean_paragraph, documents
from spanbert_ext.training.config import DEMONSTRATION, OptimizerOptions, ValidationOptions


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            'The "try" statement names\nexception *handlers* for a **group** of statements: [1]',
            "The try statement names exception handlers for a group of statements:",
        ),
        ("* One item of a list that is long enough.", "One item of a list that is long enough."),
        ("**Note:** In this case a*b is not emphasis.", "Note: In this case a*b is not emphasis."),
        ("Lambdas\n*******", ""),
        ('   lambda_expr ::= "lambda" [parameter_list] ":" expression', ""),
        (">>> print(1) and so on and so forth", ""),
        ("x = f(1) + g(2) - h(3) ** 4", ""),
        ("Too short.", ""),
    ],
)
def test_clean_paragraph(block, text):
    assert clean_paragraph(block) == text


def test_documents_are_sections_without_repetition():
    topic = "A\n*\n\n" + "First words of the first section here. " * 12 + "\n\nB\n=====\n\nSecond "
    topic += "words of the second section here."
    found = list(documents({"a": topic, "b": topic}))
    assert len(found) == 2
    assert found[1] == ["Second words of the second section here."]


def test_this_python_carries_enough_text():
    found = list(documents())
    paragraphs = [paragraph for document in found for paragraph in document]
    assert len(found) > 80
    assert sum(map(len, paragraphs)) > 150_000
    assert len(set(paragraphs)) == len(paragraphs)


class Rows:
    """One row of given pieces, as PackedRows gives it."""

    def __init__(self, tokens):
        self.tokens = np.array(tokens)

    def __len__(self):
        return 1

    def batch(self, row_ids):
        return self


def test_unigram_loss_literal():
    """Ids 0 and 1 are special. Training counts 2, 1, 0 of the rest, plus one each: 1/2, 1/3,
    1/6.
    """
    loss = unigram_loss(Rows([0, 2, 2, 3, 1]), Rows([0, 2, 3, 4, 4, 1]), 5, [0, 1])
    assert loss == pytest.approx((math.log(2) + math.log(3) + 2 * math.log(6)) / 4)


def test_the_whole_demonstration_with_three_steps(tmp_path, capsys):
    home = tmp_path / "demo"
    config = dataclasses.replace(
        DEMONSTRATION,
        output=str(home),
        steps=3,
        device="cpu",
        optimizer=OptimizerOptions(peak_lr=1e-3, warmup_steps=1),
        validation=ValidationOptions(every=0, rows=8),
    )
    run_demonstration(config)
    text = capsys.readouterr().out
    for part in ("held-out  mlm", "MLM, reads the whole sentence", "SBO fills", "spanbert prepare"):
        assert part in text
    closing = text[text.index("Loss on ") :].splitlines()
    assert len(closing) <= 15
    loaded = AutoModelForMaskedLM.from_pretrained(home / "bert")
    assert loaded.config.model_type == "bert"
    assert "| preset | base | tiny |" in (home / "bert" / "README.md").read_text()
    run_demonstration(config)
    again = capsys.readouterr().out
    assert "is finished" in again
    table = [line for line in text.splitlines() if line.startswith("  ")]
    assert [line for line in again.splitlines() if line.startswith("  ")] == table
