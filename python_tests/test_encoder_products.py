"""The products of an encoder's layer: joined where they can be, called where they must be, and what
`for_predictions` keeps of them."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import config, random_weights

from spanbert_ext import encoder
from spanbert_ext.encoder import PackedBert, for_predictions

BORDERS = torch.tensor([0, 5, 5, 16])


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


def test_a_replaced_or_hooked_inner_layer_is_called(bert, monkeypatch):
    """As on a GPU: adapters replace modules, and hooks must run."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    layer = bert.encoder.layer[0]
    hidden, dense = torch.randn(5, 32), layer.intermediate.dense
    expected, calls = F.gelu(dense(hidden)), []
    torch.testing.assert_close(encoder._inner(dense, hidden), expected)
    handle = dense.register_forward_hook(lambda *_: calls.append("hook"))
    torch.testing.assert_close(encoder._inner(dense, hidden), expected)
    handle.remove()

    adapter = Adapter(32, 48)
    encoder._inner(adapter, hidden)
    assert (calls, adapter.calls) == (["hook"], 1)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("rows", [None, torch.tensor([0, 7, 15])], ids=["every row", "chosen rows"])
@torch.no_grad()
def test_a_replaced_or_hooked_projection_is_called(bert, name, rows):
    expected, calls = states(bert, rows=rows), []
    node = bert.encoder.layer[1].attention.self
    handle = getattr(node, name).register_forward_hook(lambda *_: calls.append("hook"))
    with for_predictions(bert):
        torch.testing.assert_close(states(bert, rows=rows), expected)
    handle.remove()
    adapter = Adapter(32, 32)
    adapter.load_state_dict(getattr(node, name).state_dict())
    setattr(node, name, adapter)
    with for_predictions(bert):
        torch.testing.assert_close(states(bert, rows=rows), expected)
    assert (calls, adapter.calls) == (["hook"], 1)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@torch.no_grad()
def test_predictions_are_the_models(bert, autocast):
    """As exact as a product in fp32; under autocast the stream is narrow, and the states as it."""
    chosen = torch.tensor([2, 9])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wide = states(bert), states(bert, rows=chosen)
        with for_predictions(bert):
            # The second pass has the joined parameters of the first.
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
    with pytest.raises(RuntimeError), for_predictions(bert):
        before = states(bert)
        raise RuntimeError
    bert.encoder.layer[0].attention.self.key.weight.mul_(-1)
    assert not torch.equal(states(bert), before)
    with for_predictions(bert):
        assert not torch.equal(states(bert), before)
