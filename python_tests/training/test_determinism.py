"""`runtime.deterministic`: torch's switches are on inside a run and as before behind it."""

import os

import pytest
import torch

from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.training.config import FREE_ON_RESUME, RuntimeOptions
from spanbert_ext.training.determinism import deterministic
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.run import Run

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def switches():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def test_the_switches_are_on_inside_and_as_before_behind():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    before = switches()
    with deterministic(True):
        assert switches() == (True, False, True, False, False, ":4096:8")
    assert switches() == before == (True, True, False, True, True, None)
    with pytest.raises(ValueError), deterministic(True):
        raise ValueError
    assert switches() == before
    with deterministic(False):
        assert switches() == before


def test_a_workspace_that_is_set_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_an_operation_without_such_an_algorithm_stops():
    with deterministic(True), pytest.raises(RuntimeError, match="deterministic"):
        torch.empty(10, device="cpu").put_(torch.tensor([0]), torch.tensor([1.0]))


@pytest.mark.parametrize("wanted", [False, True])
def test_a_run_trains_inside(tiny, change, tmp_path, monkeypatch, wanted):
    """On a CPU the setting changes no number."""
    seen, before = [], switches()
    finish = Run.finish
    monkeypatch.setattr(Run, "finish", lambda run: (seen.append(switches()[0]), finish(run))[1])
    short = {"steps": 2, "optimizer.warmup_steps": 1, "validation.every": 0}
    result = pretrain(change(tiny, **short, **{"runtime.deterministic": wanted}))
    assert (result.state.step, seen, switches()) == (2, [wanted], before)
    plain = pretrain(change(tiny, output=str(tmp_path / "plain"), **short))
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, expected = (r.checkpoint / name for r in (result, plain))
        assert found.read_bytes() == expected.read_bytes()


def test_the_default_is_what_runs_did_before_there_was_a_choice():
    assert RuntimeOptions().deterministic is False
    assert FinetuneConfig("m", ["t"]).runtime.deterministic is False
    assert "runtime.deterministic" in FREE_ON_RESUME
