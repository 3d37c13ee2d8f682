"""Which checkpoint is continued, and what may differ from it."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training import checkpoint
from spanbert_ext.training.config import FREE_ON_RESUME, PretrainConfig
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.resume import choose_start, content_sample
from spanbert_ext.training.state import RunState, check_same_run, read_state


def save(run, step, resume="auto"):
    """A checkpoint of a run that was started with `resume`."""

    def write(directory):
        (directory / "model.safetensors").write_bytes(b"weights")
        (directory / checkpoint.OPTIMIZER).write_bytes(b"moments")
        (directory / "state.json").write_text(json.dumps({"settings": {"resume": resume}}))

    run.mkdir(exist_ok=True)
    return checkpoint.save(run, step, write, keep=9)


def start(run, resume="auto", **rules):
    return choose_start(run, PretrainConfig(resume=str(resume), **rules))


@pytest.fixture
def two_runs(tmp_path):
    """Directories of two runs with checkpoints of steps 5 and 10."""
    runs = tmp_path / "one", tmp_path / "two"
    for run in runs:
        save(run, 5)
        save(run, 10)
    return runs


def test_newest_by_itself(two_runs, tmp_path):
    run, _ = two_runs
    assert start(run) == run / "step-0000010"
    assert start(tmp_path / "empty") is None
    assert start(tmp_path / "empty", "never") is None
    with pytest.raises(ConfigError, match="already holds 2 checkpoint"):
        start(run, "never")


def test_a_named_checkpoint_or_run(two_runs, tmp_path, monkeypatch):
    run, other = two_runs
    empty = tmp_path / "empty"
    assert start(run, run / "step-0000005") == run / "step-0000005"
    assert start(empty, other / "step-0000005") == other / "step-0000005"
    assert start(empty, other) == other / "step-0000010"
    with pytest.raises(ConfigError, match="belongs to another run.*leave resume out"):
        start(run, other)
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="neither a checkpoint .* nor a run that holds one"):
            start(empty, nothing)
    monkeypatch.chdir(tmp_path)  # one directory under two names is one run
    assert start(run, "one/step-0000005") == run / "step-0000005"


def test_the_same_command_goes_on_from_what_it_added(two_runs, tmp_path):
    """Whatever `resume` names: a scheduler starts the same command again after every stop."""
    run, other = two_runs
    new = tmp_path / "new"
    assert start(new, other) == other / "step-0000010"
    save(new, 15, resume=str(other))
    assert start(new, other) == new / "step-0000015"
    save(run, 8, resume="one/step-0000005")
    assert [step for step, _ in checkpoint.list_steps(run)] == [5, 8]
    assert start(run, "one/step-0000005") == run / "step-0000008"
    assert start(run, run / "step-0000005") == run / "step-0000005"  # another command goes back
    (save(run, 9, resume="one/step-0000005") / checkpoint.OPTIMIZER).unlink()
    assert start(run, "one/step-0000005") == run / "step-0000008"
    with pytest.raises(StorageError, match="step-0000009 is damaged"):
        start(run, "one/step-0000005", strict_resume=True)


def test_a_damaged_one(two_runs, tmp_path):
    run, other = two_runs
    for path in (run, other):
        (path / "step-0000010" / checkpoint.OPTIMIZER).unlink()
    assert start(run) == run / "step-0000005"
    assert start(tmp_path / "empty", other) == other / "step-0000005"
    for where in (run, tmp_path / "empty"):
        resume = "auto" if where == run else other
        with pytest.raises(StorageError, match="step-0000010 is damaged: optimizer.safetensors is"):
            start(where, resume, strict_resume=True)
    with pytest.raises(StorageError, match="damaged: optimizer.safetensors is missing"):
        start(tmp_path / "empty", other / "step-0000010")
    assert start(run, run / "step-0000005", strict_resume=True) == run / "step-0000005"
    assert start(run, weights_only=True) == run / "step-0000010"
    named = other / "step-0000010"
    assert start(tmp_path / "empty", named, weights_only=True) == named


def test_a_run_from_a_named_checkpoint(tiny, change, tmp_path):
    """It ends like the run it came from, and the same command then finds nothing to do."""
    whole = pretrain(tiny).checkpoint
    other = change(tiny, output=str(tmp_path / "other"), resume=f"{tmp_path}/run/step-0000004")
    result = pretrain(other)
    for name in ("model.safetensors", checkpoint.OPTIMIZER, "rng-0.safetensors"):
        assert (result.checkpoint / name).read_bytes() == (whole / name).read_bytes()
    assert pretrain(other).was_finished


def test_a_finished_run_is_that_of_its_settings_alone(tiny, change):
    """Nothing is to do only for the same command; another one is told what differs."""
    pretrain(tiny)
    assert pretrain(change(tiny, log_every=3, precision="auto")).was_finished
    others = {"seed": 99, "steps": 4, "precision": "bf16", "loss.sbo_weight": 0.5}
    for name, value in (others | {"steps": 90}).items():
        with pytest.raises(ConfigError, match=rf"\n  - {name} was .*, is {value}"):
            pretrain(change(tiny, **{name: value}))


@pytest.mark.parametrize("name", sorted(as_flat_dict(PretrainConfig())))
def test_every_setting_is_refused_or_free(name, tmp_path):
    """A setting that is not listed as free must keep its value; both are shown."""
    before = as_flat_dict(PretrainConfig())
    stored, current = RunState(settings=before), RunState(settings=before | {name: "other"})
    if name in FREE_ON_RESUME:
        check_same_run(stored, current, tmp_path, PretrainConfig)
        return
    with pytest.raises(ConfigError) as caught:
        check_same_run(stored, current, tmp_path, PretrainConfig)
    assert f"  - {name} was {before[name]}, is other" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("corpus", "the corpus had fingerprint a, has b"),
        ("corpus_sample", "the corpus's token files had the sample digest a, have b"),
        ("vocabulary", "the tokenizer had hash a, has b"),
    ],
)
def test_other_data_is_refused(tmp_path, name, part):
    stored, current = RunState(**{name: "a"}), RunState(**{name: "b"})
    with pytest.raises(ConfigError, match=part):
        check_same_run(stored, current, tmp_path, PretrainConfig)


def test_other_versions_are_told(tmp_path, caplog):
    stored, current = (RunState(versions={"torch": v, "numpy": "2"}) for v in ("2.10", "2.13"))
    check_same_run(stored, current, tmp_path, PretrainConfig)
    assert "versions changed since the checkpoint (torch 2.10 -> 2.13)" in caplog.text


@pytest.mark.parametrize("stored, now, told", [(2, 1, True), (2, 2, False), (0, 1, False)])
def test_another_number_of_threads_is_told(tmp_path, caplog, stored, now, told):
    """0: by an earlier version, or on a GPU."""
    check_same_run(RunState(threads=stored), RunState(threads=now), tmp_path, PretrainConfig)
    said = "computed with 2 thread(s), now it has 1: equal, but perhaps not bit for bit"
    assert (said in caplog.text) == told


def test_a_checkpoint_records_the_threads_and_may_lack_them(tiny, change, tmp_path, caplog):
    start = pretrain(change(tiny, steps=4)).checkpoint
    path = start / "state.json"
    state = json.loads(path.read_text())
    assert state["threads"] == torch.get_num_threads() == 1
    path.write_text(json.dumps({k: v for k, v in state.items() if k != "threads"}))
    assert read_state(start).threads == 0


@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_a_sample_sees_an_exchanged_file(size):
    def sample(*parts):
        return content_sample(SimpleNamespace(shards=[SimpleNamespace(tokens=p) for p in parts]))

    one, two = (np.random.default_rng(i).integers(0, 60000, size).astype("<u2") for i in (0, 1))
    assert len(sample(one)) == 32
    assert sample(one) == sample(one.copy())
    assert sample(one) != sample(two)
    assert sample(one, two) != sample(two, one)
    late = one.copy()
    late[-size // 50 :] = two[-size // 50 :]  # another end alone
    assert sample(one) != sample(late)


def test_the_state_is_read_back(tmp_path):
    state = RunState(step=3, corpus="a", corpus_sample="b")
    (tmp_path / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
    from spanbert_ext.training.state import read_state

    assert read_state(tmp_path) == state
    (tmp_path / "state.json").write_text('{"stepp": 3}')
    with pytest.raises(StorageError, match="state.json cannot be read"):
        read_state(tmp_path)
