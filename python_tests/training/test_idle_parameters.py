"""Parameters that get no gradient: they have no moments, and a run goes on all the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spanbert_ext.errors import StorageError
from spanbert_ext.training.checkpoint import OPTIMIZER
from spanbert_ext.training.config import OptimizerOptions
from spanbert_ext.training.loop import update
from spanbert_ext.training.optimizer import build_optimizer, set_learning_rate
from spanbert_ext.training.state import (
    RunState,
    load_optimizer,
    take_snapshot,
    write_training_state,
)

CPU = torch.device("cpu")


class Model(nn.Module):
    """A layer that trains, one that is frozen, one that nobody reads, and one that is read late."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.used, self.frozen, self.unused, self.late = (nn.Linear(4, 4) for _ in range(4))
        self.frozen.requires_grad_(False)

    def forward(self, x, step):
        hidden = self.frozen(self.used(x))
        return self.late(hidden) if step >= 3 else hidden

    def save_pretrained(self, directory, state_dict=None):
        save_file(self.state_dict(), directory / "model.safetensors")


def train(model, optimizer, steps):
    for step in steps:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        model(x, step).square().mean().backward()
        set_learning_rate(optimizer, 0.1)
        update(model, optimizer, 1.0)


def begun():
    model = Model()
    return model, build_optimizer(model, OptimizerOptions(peak_lr=0.1))


@pytest.fixture
def stopped(tmp_path):
    """A checkpoint after two steps."""
    model, optimizer = begun()
    train(model, optimizer, range(2))
    write_training_state(tmp_path, model, take_snapshot(model, optimizer, CPU), RunState(), None)
    return tmp_path


def whole():
    model, optimizer = begun()
    train(model, optimizer, range(6))
    return model.state_dict()


def assert_equal(model, expected):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_goes_on_bit_for_bit(stopped):
    model, optimizer = begun()
    model.load_state_dict(load_file(stopped / "model.safetensors"))
    load_optimizer(stopped, model, optimizer)
    train(model, optimizer, range(2, 6))
    assert_equal(model, whole())


def test_a_run_goes_back_behind_a_first_gradient(stopped):
    """The moments of a parameter that had none then begin anew."""
    model, optimizer = begun()
    train(model, optimizer, range(6))
    model.load_state_dict(load_file(stopped / "model.safetensors"))
    load_optimizer(stopped, model, optimizer)
    train(model, optimizer, range(2, 6))
    assert_equal(model, whole())


def test_a_file_that_does_not_list_them(stopped):
    """As release 0.1.0 wrote it."""
    save_file(load_file(stopped / OPTIMIZER), stopped / OPTIMIZER)
    model, optimizer = begun()
    model.load_state_dict(load_file(stopped / "model.safetensors"))
    load_optimizer(stopped, model, optimizer)
    train(model, optimizer, range(2, 6))
    assert_equal(model, whole())


@pytest.mark.parametrize("listed", [True, False])
def test_state_of_another_model_is_refused(stopped, listed):
    class Smaller(Model):
        def __init__(self):
            super().__init__()
            del self.used

    model = Smaller()
    optimizer = build_optimizer(model, OptimizerOptions(peak_lr=0.1))
    if not listed:
        save_file(load_file(stopped / OPTIMIZER), stopped / OPTIMIZER)
    with pytest.raises(StorageError, match="differing parameters: used.bias, used.weight"):
        load_optimizer(stopped, model, optimizer)


def test_lost_state_is_refused(stopped):
    kept = {n: t for n, t in load_file(stopped / OPTIMIZER).items() if "used.bias" not in n}
    idle = ["unused.weight", "unused.bias", "frozen.weight", "frozen.bias"]
    idle += ["late.weight", "late.bias"]
    save_file(kept, stopped / OPTIMIZER, metadata={"idle": json.dumps(idle)})
    model, optimizer = begun()
    with pytest.raises(StorageError, match="differing parameters: used.bias"):
        load_optimizer(stopped, model, optimizer)
