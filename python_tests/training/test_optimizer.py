"""Schedule and parameter groups."""

import pytest
import torch
from torch import nn

from spanbert_ext.training.config import OptimizerOptions
from spanbert_ext.training.loop import update
from spanbert_ext.training.optimizer import build_optimizer, learning_rate, parameter_groups


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (5, 5 / 6), (7, 0.5), (9, 1 / 6)],
)
def test_schedule_literal(step, expected):
    """Ten steps, four of warm-up: up by quarters, then down by sixths to one sixth before the
    end.
    """
    assert learning_rate(step, 10, 4, 1.0) == pytest.approx(expected)


def test_schedule_without_warmup_starts_at_the_peak_and_scales():
    assert [learning_rate(s, 4, 0, 2e-4) for s in range(4)] == pytest.approx(
        [2e-4, 1.5e-4, 1e-4, 0.5e-4]
    )


def test_published_schedule():
    """Peak 1e-4 at step 10000 of 2.4 million, half of it half-way down."""
    assert learning_rate(9_999, 2_400_000, 10_000, 1e-4) == 1e-4
    assert learning_rate(10_000, 2_400_000, 10_000, 1e-4) == 1e-4
    assert learning_rate(1_205_000, 2_400_000, 10_000, 1e-4) == pytest.approx(0.5e-4)


class Small(nn.Module):
    """One parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(5, 4)
        self.dense = nn.Linear(4, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.layer_norm1 = nn.LayerNorm(4)
        self.sbo_bias = nn.Parameter(torch.zeros(5))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def test_biases_and_layer_norms_have_no_decay():
    model = Small()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.1)
    assert [names[id(p)] for p in decayed["params"]] == ["word_embeddings.weight", "dense.weight"]
    assert {names[id(p)] for p in plain["params"]} == {
        "sbo_bias",
        "dense.bias",
        "LayerNorm.weight",
        "LayerNorm.bias",
        "layer_norm1.weight",
        "layer_norm1.bias",
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_update_clips_to_the_norm():
    """A gradient of norm 5 and a limit of 1: what AdamW sees is a fifth, here read back from its
    first moment.
    """
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, OptimizerOptions(beta1=0.0))
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    norm, skipped = update(model, optimizer, clip_norm=1.0)
    assert norm.item() == 5.0
    assert skipped.item() == 0.0
    torch.testing.assert_close(optimizer.state[model.weight]["exp_avg"], torch.tensor([[0.6, 0.8]]))
    assert model.weight.grad is None


def test_clip_norm_zero_does_not_clip():
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, OptimizerOptions(beta1=0.0))
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    update(model, optimizer, clip_norm=0.0)
    torch.testing.assert_close(optimizer.state[model.weight]["exp_avg"], torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(model, OptimizerOptions())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(model, optimizer, clip_norm=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    moments = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    model.weight.grad = torch.tensor([[1.0, bad]])
    model.bias.grad = torch.ones(1)
    _, skipped = update(model, optimizer, clip_norm=1.0)
    assert skipped.item() == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            assert torch.equal(value, moments[id(parameter)][name]), name
