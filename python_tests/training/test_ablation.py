"""The nine models of the paper run on one small corpus, and their losses are recorded."""

import re
import sys
from pathlib import Path

import pytest
from conftest import write_text

from spanbert_ext.data import PrepareConfig, prepare
from spanbert_ext.settings.files import config_names

ROOT = Path(__file__).resolve().parents[2]
# Behind everything else: an installed package stays the one that is measured.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import ablation, records  # noqa: E402

TINY = [
    "--steps=2",
    "--optimizer.warmup_steps=1",
    "--model.layers=1",
    "--model.hidden=16",
    "--model.heads=2",
    "--model.feed_forward=32",
    "--batch.rows=8",
    "--batch.max_length=32",
    "--validation.rows=8",
    "--device=cpu",
    "--precision=fp32",
]


def spans(text):
    """Candidates for the schemes entity and phrase: capitalised words, and what `the` begins."""
    for kind, pattern in (("entity", r"[A-Z]\w+"), ("phrase", r"\bthe( \w+){1,2}")):
        for match in re.finditer(pattern, text):
            yield *match.span(), kind


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    home = tmp_path_factory.mktemp("annotated")
    text = write_text(home / "text.txt")
    annotation = {"annotate": "both", "annotator": f"{__name__}:spans", "workers": 1}
    settings = {"vocab_size": 120, "validation_fraction": 0.1}
    prepare(
        PrepareConfig(inputs=[str(text)], output=str(home / "corpus"), **settings, **annotation)
    )
    return home / "corpus"


def test_every_model_runs_and_is_recorded(annotated, tmp_path, capsys):
    results = tmp_path / "ablation.csv"
    words = ["--corpus", str(annotated), "--results", str(results), *TINY]
    assert ablation.main([*words, "--runs", str(tmp_path / "runs")]) == 0
    rows = {row["variant"]: row for row in records.read(results)}
    assert sorted(rows) == sorted(ablation.MODELS) == config_names()
    shown = capsys.readouterr().out
    for model, row in rows.items():
        found = {name for name in ablation.LOSSES if row[f"{name}_end"]}
        expected = {"mlm_loss"}
        if model == "spanbert":
            expected.add("sbo_loss")
        if model == "our-bert" or model.startswith("scheme-"):
            expected.add("nsp_loss")
        assert found == expected, model
        assert 3 < float(row["mlm_loss_end"]) < 6  # near that of 120 pieces alike
        assert row["size"] == "2" and not row["note"]
        assert f"{model:18s}" in shown.rpartition("model ")[2]
    # The schemes select different tokens of the same text.
    schemes = [rows[model]["mlm_loss_start"] for model in ablation.MODELS[4:]]
    assert len(set(schemes)) == 5


def test_a_model_that_cannot_be_trained_is_named(corpus_dir, tmp_path, capsys):
    words = ["--corpus", str(corpus_dir), "--results", str(tmp_path / "ablation.csv"), *TINY]
    assert ablation.main([*words, "--models", "scheme-entity"]) == 1
    (row,) = records.read(tmp_path / "ablation.csv")
    assert "entity" in row["note"] and not row["mlm_loss_end"]
    assert row["note"].splitlines()[0] in capsys.readouterr().out


def test_wrong_settings_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        ablation.main(["--corpus", "c", "--model", "x", "--stpes=3", "--results", str(tmp_path)])
    assert left.value.code == 2
    assert "stpes: no such setting, did you mean steps?" in capsys.readouterr().err
