"""The word embedding's single gradient buffer against two plain uses of the same weight."""

import pytest
import torch
import torch.nn.functional as F
from strategies import randn

from spanbert_ext.ops.cross_entropy import linear_cross_entropy
from spanbert_ext.ops.tied_embedding import tied_lookup

IDS = torch.tensor([3, 0, 3, 3, 6, 1])


def plain(weight, ids):
    return F.embedding(ids, weight), weight


def gradient(use, lookup, ids=IDS):
    weight = randn(7, 4, seed=1).double().requires_grad_()
    rows, output = lookup(weight, ids)
    use(rows, output).backward()
    return weight.grad


USES = {
    "both": lambda rows, output: (rows.sin() @ output.t()).square().sum(),
    "lookup": lambda rows, output: rows.square().sum(),
    "output": lambda rows, output: (output @ output[0].detach()).square().sum(),
    "loss": lambda rows, output: linear_cross_entropy(rows, output, torch.arange(6)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_equals_two_uses_of_one_weight(use, kind):
    """Ids repeat, so their rows must be summed."""
    found, expected = (gradient(use, lookup, IDS.to(kind)) for lookup in (tied_lookup, plain))
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_adds_into_the_output_layers_gradient():
    weight = randn(7, 4, seed=1).requires_grad_()
    rows, output = tied_lookup(weight, IDS)
    arrived = []
    output.register_hook(lambda grad: arrived.append(grad.data_ptr()))
    (rows @ output.t()).sum().backward()
    assert weight.grad.data_ptr() == arrived[0]


def test_loss_gives_its_gradient_away():
    """What the loss computed in its forward pass ends as the weight's gradient: no copy."""
    weight, rows = randn(7, 4, seed=1).requires_grad_(), randn(6, 4, seed=2)
    loss = linear_cross_entropy(rows, weight, torch.arange(6))
    node = loss.grad_fn
    address = node.gradients[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == address
    assert node.gradients is None


def test_repeated_backward_passes_add_up():
    weight = randn(7, 4, seed=1).requires_grad_()
    rows, output = tied_lookup(weight, IDS)
    loss = linear_cross_entropy(rows, output, torch.arange(6))
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_compiles_as_one_graph():
    compiled = torch.compile(tied_lookup, fullgraph=True, backend="aot_eager")
    found, expected = gradient(USES["both"], compiled), gradient(USES["both"], plain)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
