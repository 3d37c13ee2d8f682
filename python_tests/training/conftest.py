"""A prepared corpus and settings small enough for a step in milliseconds."""

import dataclasses
import random

import pytest
import torch

from spanbert_ext.data import Corpus, PrepareConfig, prepare
from spanbert_ext.training.config import (
    BatchOptions,
    CheckpointOptions,
    ModelOptions,
    OptimizerOptions,
    PretrainConfig,
    ValidationOptions,
)
from spanbert_ext.training.starting import continue_model

WORDS = [
    "the",
    "small",
    "red",
    "house",
    "stood",
    "beside",
    "an",
    "old",
    "river",
    "where",
    "children",
    "played",
    "until",
    "evening",
    "came",
]


def write_text(path, documents=30, seed=0):
    """Documents of random sentences, blank lines between them."""
    draw = random.Random(seed)
    lines = []
    for _ in range(documents):
        for _ in range(6):
            lines.append(" ".join(draw.choices(WORDS, k=draw.randint(5, 12))).capitalize() + ".")
        lines.append("")
    path.write_text("\n".join(lines), "utf-8")
    return path


def prepared(folder, tokenizer, **settings):
    """A corpus below `folder`."""
    text = write_text(folder / "text.txt")
    names = {"inputs": [str(text)], "output": str(folder / "corpus"), "tokenizer": str(tokenizer)}
    prepare(PrepareConfig(**names, validation_fraction=0.1, **settings))
    return folder / "corpus"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny products gain nothing from threads, and sums must not depend on what else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    """A corpus of about 1600 pieces."""
    home = tmp_path_factory.mktemp("corpus")
    text = write_text(home / "text.txt")
    settings = PrepareConfig(
        inputs=[str(text)], output=str(home / "corpus"), vocab_size=120, validation_fraction=0.1
    )
    prepare(settings)
    return home / "corpus"


@pytest.fixture
def tiny(corpus_dir, tmp_path):
    """Settings of a run of twelve steps with dropout, micro-batches and three checkpoints."""
    return PretrainConfig(
        output=str(tmp_path / "run"),
        corpus=str(corpus_dir),
        preset="tiny",
        steps=12,
        precision="fp32",
        device="cpu",
        log_every=1,
        model=ModelOptions(layers=2, hidden=32, heads=2, feed_forward=64, dropout=0.1),
        optimizer=OptimizerOptions(peak_lr=1e-3, warmup_steps=3),
        batch=BatchOptions(rows=8, max_length=32, micro_rows=4),
        validation=ValidationOptions(every=5, rows=8),
        checkpoint=CheckpointOptions(every=4, keep=3),
    )


@pytest.fixture
def change():
    """`change(config, **{"batch.rows": 4})`: a copy with dotted settings replaced."""

    def replace(config, **settings):
        for name, value in settings.items():
            group, _, field = name.rpartition(".")
            if group:
                inner = dataclasses.replace(getattr(config, group), **{field: value})
                config = dataclasses.replace(config, **{group: inner})
            else:
                config = dataclasses.replace(config, **{field: value})
        return config

    return replace


@pytest.fixture
def continued(tiny, change):
    """Settings of a run of two steps that takes its size from the weights."""
    return change(
        dataclasses.replace(tiny, model=ModelOptions()),
        steps=2,
        **{"optimizer.warmup_steps": 1, "checkpoint.every": 1, "validation.every": 0},
    )


@pytest.fixture
def load(continued, change):
    """`load(folder, corpus=..., **settings)`: (model, report)"""

    def call(folder, corpus=continued.corpus, **settings):
        return continue_model(change(continued, init=str(folder), **settings), Corpus.open(corpus))

    return call
