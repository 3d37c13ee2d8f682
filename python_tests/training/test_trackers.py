"""Curves outside metrics.jsonl: real event files, real packages, and trackers that fail."""

import importlib.util
import json
import logging
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import build
from spanbert_ext.training import trackers
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.pretrain import pretrain


def logged(run, event):
    """step -> row of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["event"] == event}


def read_events(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def damage(run, *steps):
    for step in steps:
        path = run / f"step-{step:07d}" / "optimizer.safetensors"
        path.write_bytes(path.read_bytes()[:-8])


def test_tensorboard_shows_what_metrics_hold_even_after_a_rewind(tiny, change, tmp_path, capsys):
    config, run = change(tiny, report_to=["tensorboard"]), tmp_path / "run"
    pretrain(config)
    assert f"curves: tensorboard --logdir {run / 'tensorboard'}" in capsys.readouterr().out
    damage(run, 12, 8)
    pretrain(config)  # steps 5..12 again
    events = read_events(run)
    for group in ("train", "validation"):
        rows = logged(run, group)
        for name in ("mlm_loss", "sbo_loss", *(["lr", "grad_norm"] if group == "train" else [])):
            found = [(e.step, e.value) for e in events.Scalars(f"{group}/{name}")]
            assert [step for step, _ in found] == sorted(rows)
            assert [value for _, value in found] == pytest.approx(
                [rows[step][name] for step in sorted(rows)], rel=1e-6
            )
    (text,) = {e.tensor_proto.string_val[0] for e in events.Tensors("settings/text_summary")}
    assert b"    masking.mask_ratio: 0.15" in text


def test_tensorboard_forgets_what_a_rollback_undid(tmp_path):
    opened = trackers.Trackers(["tensorboard"], tmp_path, {}, 0)
    for step in (1, 2, 3):
        opened.log(step, "train", {"mlm_loss": 9.0})
    opened.go_back(1)
    for step in (2, 3):
        opened.log(step, "train", {"mlm_loss": 5.0})
    opened.close()
    found = [(e.step, e.value) for e in read_events(tmp_path).Scalars("train/mlm_loss")]
    assert found == [(1, 9.0), (2, 5.0), (3, 5.0)]


def test_a_tracker_that_cannot_open_does_not_stop_the_run(tiny, change, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("not a directory")
    with caplog.at_level(logging.WARNING, "spanbert_ext"):
        assert pretrain(change(tiny, report_to=["tensorboard"])).state.step == 12
    (warning,) = [r.getMessage() for r in caplog.records if "report_to" in r.getMessage()]
    assert "tensorboard failed and gets nothing more" in warning
    assert len(logged(run, "train")) == 12


class Failing:
    """A tracker whose third line fails, and what it was asked."""

    where = "nowhere"

    def __init__(self, run, settings, next_step):
        self.calls = []
        Failing.last = self

    def log(self, step, values):
        self.calls.append(step)
        if len(self.calls) == 3:
            raise ConnectionError("the server\nwent away")

    def close(self):
        raise AssertionError("a failed tracker is left alone")


def test_a_tracker_that_fails_is_named_once_and_left_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(trackers._KINDS, "wandb", Failing)
    with caplog.at_level(logging.WARNING, "spanbert_ext"):
        opened = trackers.Trackers(["wandb", "tensorboard"], tmp_path, {}, 0)
        for step in range(6):
            opened.log(step, "train", {"mlm_loss": float("nan") if step == 1 else 2.5})
        opened.close()
    assert Failing.last.calls == [0, 1, 2]
    (record,) = caplog.records
    assert "wandb failed" in record.getMessage()
    assert "ConnectionError: the server went away" in record.getMessage()
    assert [e.step for e in read_events(tmp_path).Scalars("train/mlm_loss")] == list(range(6))


def test_a_missing_package_is_found_with_the_settings(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(ConfigError) as caught:
        build(PretrainConfig, {"report_to": "tensorboard,wandb", "log_every": 0})
    lines = str(caught.value).splitlines()
    assert '  - report_to: wandb is not installed; `pip install "spanbert-ext[wandb]"`' in lines
    assert len(lines) == 3


def test_a_bare_directory_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "not_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("not_a_tracker") is not None
    assert trackers.missing(["not_a_tracker"])
    assert "torch" in sys.modules  # else the next line would say nothing
    assert not trackers.missing(["torch"])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("tensorboard", ["tensorboard"]),
        ("tensorboard, tensorboard", ["tensorboard", "tensorboard"]),
        ("[tensorboard]", ["tensorboard"]),
        ("", []),
        (["tensorboard"], ["tensorboard"]),
    ],
)
def test_names_come_as_a_list_or_with_commas(given, names):
    assert build(PretrainConfig, {"report_to": given}).report_to == names


def test_an_unknown_tracker():
    with pytest.raises(ConfigError, match="must be one of tensorboard, wandb; got 'mlf'"):
        build(PretrainConfig, {"report_to": "tensorboard,mlf"})


def test_the_identity_stays_with_the_directory(tmp_path):
    first = trackers.run_identity(tmp_path)
    assert trackers.run_identity(tmp_path) == first
    (tmp_path / trackers.IDENTITY).write_text("{half a li")
    second = trackers.run_identity(tmp_path)
    assert second != first
    assert trackers.run_identity(tmp_path) == second


def test_weights_and_biases_offline(tiny, change, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb brings 21 packages; pip install wandb to run this")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config, run = change(tiny, report_to=["wandb"]), tmp_path / "run"
    pretrain(config)
    damage(run, 12, 8)
    time.sleep(1)  # W&B names its folders by the second
    pretrain(config)
    identity = trackers.run_identity(run)
    parts = sorted(run.glob(f"wandb/offline-run-*-{identity}"))
    assert len(parts) == 2
    deadline = time.monotonic() + 20  # its own process writes, perhaps after we have finished
    for file in [next(p.glob("*.wandb")) for p in parts]:
        while b"train/mlm_loss" not in file.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
