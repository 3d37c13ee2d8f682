"""Masking schemes in pre-training: settings reach the masker, candidates of the corpus its
batches."""

import dataclasses
import re

import pytest
import torch
from conftest import write_text
from test_loop import parts_of

from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, batch_of_step, prepare
from spanbert_ext.errors import DataError


def waters_and_houses(text):
    """Candidates of two words, about a fifth of the text."""
    return [(*m.span(), "entity") for m in re.finditer(r"\w+ (river|house)", text)]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    home = tmp_path_factory.mktemp("annotated")
    text = write_text(home / "text.txt")
    annotation = {"annotate": "entity", "annotator": f"{__name__}:waters_and_houses", "workers": 1}
    settings = {"vocab_size": 120, "validation_fraction": 0.1}
    prepare(
        PrepareConfig(inputs=[str(text)], output=str(home / "corpus"), **settings, **annotation)
    )
    return str(home / "corpus")


ENTITY = {"masking.scheme": "entity", "masking.candidate_prob": 1.0}


@pytest.mark.parametrize("endpoints", ["external", "internal"])
def test_candidates_reach_both_paths(tiny, change, annotated, endpoints):
    """Batches on the device are the host's, and what is masked is what the corpus marks."""
    settings = {"corpus": annotated, "masking.endpoints": endpoints, "batch.resident": "on"}
    objective, _ = parts_of(change(tiny, **settings, **ENTITY))
    rows = PackedRows(Corpus.open(annotated), 32, candidates="entity")
    _, ids = batch_of_step(3, 8, len(rows), tiny.seed)
    objective.data.seek(3)
    selected = marked = 0
    for number, expected in enumerate(objective.data.batches(3)):
        found = objective.data.batch_on_device(number)
        for field in dataclasses.fields(found.masked):
            got, wanted = (getattr(micro.masked, field.name) for micro in (found, expected))
            assert torch.equal(got, wanted), field.name
        marks = torch.from_numpy(rows.batch(ids[4 * number : 4 * number + 4], pad=True).candidates)
        chosen = expected.masked.labels != -100
        selected += int(chosen.sum())
        marked += int((chosen & (marks != 0)).sum())
    assert marked > 0.6 * selected > 20  # words alone would find them a fifth of the time


def test_validation_masks_candidates_too(tiny, change, annotated):
    objective, _ = parts_of(change(tiny, corpus=annotated, **ENTITY))
    (first, *_) = objective.data.held_out_batches()
    assert int(objective.counts(first)[0]) > 0
    assert objective.data._held_out_masker.settings.candidate_threshold == 2**32


def test_a_corpus_without_candidates_is_refused(tiny, change):
    with pytest.raises(DataError, match="entity"):
        parts_of(change(tiny, **ENTITY))
