"""The benchmark of the coreference model's growth, on a small document."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Behind everything else: an installed package stays the one that is measured.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import coref_growth  # noqa: E402


@pytest.mark.parametrize("mode", coref_growth.MODES)
def test_a_document_is_measured(mode):
    words = ["--one", mode, "--lengths", "600", "--hidden", "16", "--layers", "1", "--ffnn", "8"]
    found = coref_growth.measure(coref_growth.arguments([*words, "--recompute"]))
    assert 0 < found["seconds"] < 60
    assert 0 <= found["growth_mb"] < found["peak_mb"] < 8000


def test_a_document_has_the_asked_length():
    document = coref_growth.document(1100)
    assert document["cu_seqlens"].tolist() == [0, 512, 1024, 1100]
    assert document["sentence_map"].shape == document["input_ids"].shape == (1100,)
    assert document["sentence_map"][[0, 511, 512, 1099]].tolist() == [-1] * 4
    assert bool((document["gold_ends"] < 1100).all())
