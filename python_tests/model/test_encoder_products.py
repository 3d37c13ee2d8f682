"""The products of an encoder's layer: prepared where they can be, called where they must be, and
what `for_predictions` keeps of them."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import config, random_weights

from spanbert_ext.model import products
from spanbert_ext.model.encoder import PackedBert, for_predictions
from spanbert_ext.model.products import Prepared

BORDERS = torch.tensor([0, 5, 5, 16])
MANY, FEW = 4096, 16
PROJECTIONS = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@pytest.fixture
def bert():
    return random_weights(PackedBert(config())).eval()


def states(bert, **more):
    ids = torch.arange(16) * 3 % 50
    return bert(ids, BORDERS, **more)


class Adapter(torch.nn.Linear):
    """As libraries of adapters put in the place of a projection."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 37])
@torch.no_grad()
def test_prepared_projections_are_the_projections(dtype, blocked, rows, monkeypatch):
    """Against double; the bounds are roundings of the result, and of fp32 sums of 48 numbers."""
    if not blocked:
        monkeypatch.setattr(products, "_has_blocks", lambda weight: False)
    torch.manual_seed(7)
    layers = [torch.nn.Linear(48, size) for size in (32, 24)]
    x = torch.randn(rows, 48).to(dtype)
    parameters = ([p.to(dtype).double() for p in dense.parameters()] for dense in layers)
    exact = torch.cat([F.linear(x.double(), *pair) for pair in parameters], 1)
    prepared = Prepared(layers, dtype)
    bound = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    )
    for found, expected in ((prepared(x), exact), (prepared(x, gelu=True), F.gelu(exact))):
        assert (found.shape, found.dtype) == ((rows, 56), dtype)
        torch.testing.assert_close(found.double(), expected, **bound)


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("rows", [None, torch.tensor([0, 7, 15])], ids=["every row", "chosen rows"])
@torch.no_grad()
def test_a_replaced_or_hooked_projection_is_called(bert, name, rows):
    expected, calls = states(bert, rows=rows), []
    layer = bert.encoder.layer[1]
    dense = layer.get_submodule(name)
    handle = dense.register_forward_hook(lambda *_: calls.append("hook"))
    with for_predictions(bert, MANY):
        torch.testing.assert_close(states(bert, rows=rows), expected)
    handle.remove()
    adapter = Adapter(dense.in_features, dense.out_features)
    adapter.load_state_dict(dense.state_dict())
    layer.set_submodule(name, adapter)
    with for_predictions(bert, MANY):
        torch.testing.assert_close(states(bert, rows=rows), expected)
    assert (calls, adapter.calls) == (["hook"], 1)


@torch.no_grad()
def test_a_projection_without_bias(bert):
    layer = bert.encoder.layer[0]
    for name in PROJECTIONS:
        dense = layer.get_submodule(name)
        layer.set_submodule(
            name, torch.nn.Linear(dense.in_features, dense.out_features, bias=False)
        )
    expected = states(bert)
    with for_predictions(bert, MANY):
        torch.testing.assert_close(states(bert), expected)


@torch.no_grad()
def test_few_tokens_prepare_nothing(bert, monkeypatch):
    """One question must not pay for what thousands save."""
    made = []
    monkeypatch.setattr(products.Prepared, "__init__", lambda *_: made.append(1))
    with for_predictions(bert, FEW):
        states(bert)
    assert not made


@pytest.mark.parametrize("tokens", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@torch.no_grad()
def test_predictions_are_the_models(bert, autocast, tokens):
    """As exact as a product in fp32; under autocast the stream is narrow, and the states as it."""
    chosen = torch.tensor([2, 9])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wide = states(bert), states(bert, rows=chosen)
        with for_predictions(bert, tokens):
            # The second pass has the prepared parameters of the first.
            found = [(states(bert), states(bert, rows=chosen)) for _ in range(2)]
    for own, again, expected in zip(*found, wide, strict=True):
        assert torch.equal(own, again)
        assert own.dtype == (torch.bfloat16 if autocast else torch.float32)
        if autocast:
            assert (own.float() - expected).abs().max() < 0.15
        else:
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_parameters_count_again_behind_predictions(bert):
    """Also when a prediction fails."""
    with pytest.raises(RuntimeError), for_predictions(bert, MANY):
        before = states(bert)
        raise RuntimeError
    bert.encoder.layer[0].attention.self.key.weight.mul_(-1)
    assert not torch.equal(states(bert), before)
    with for_predictions(bert, MANY):
        assert not torch.equal(states(bert), before)
