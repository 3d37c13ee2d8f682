"""The benchmark of what pre-training costs besides training, on a tiny corpus."""

import pytest

from benchmarks import overheads


def test_a_process_is_measured(corpus_dir, tmp_path):
    rows = overheads.memory_rows([corpus_dir], tmp_path, steps=3)
    held = {row["variant"]: row["value"] for row in rows}
    assert 50 < held["without file pages"] < held["resident"] <= held["peak resident"] < 3000
    assert rows[0]["shapes"].startswith("pieces=")


def test_a_run_that_fails_is_no_measurement(corpus_dir, tmp_path):
    options = overheads.settings(corpus_dir, tmp_path / "run", "tiny", 10**6, 64, 2)
    with pytest.raises(RuntimeError, match="exit code 65"):
        overheads.PretrainProcess(options, threads=1)
