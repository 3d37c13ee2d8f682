"""Fast paths step aside for changed modules: hooks of every kind fire, and adapters are computed
and trained."""

import dataclasses

import pytest
import torch
from model_cases import config, random_weights
from strategies import make_masker, naming, word_text
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from spanbert_ext import SBOHead
from spanbert_ext.model.encoder import PackedBert, for_predictions
from spanbert_ext.model.plain_modules import is_plain
from spanbert_ext.tasks.heads import SpanBertForQuestionAnswering

# Of embeddings, whose inputs are ids.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

SBO_LAYERS = ["position_embeddings", "linear1", "layer_norm1", "linear2", "layer_norm2"]
# What an encoder's fast paths could read past.
ENCODER_LAYERS = [
    "embeddings.word_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.position_embeddings",
    "embeddings.LayerNorm",
    "embeddings.dropout",
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.attention.self.key",
    "encoder.layer.0.attention.self.value",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.1.output.dense",
    "encoder.layer.1.output.LayerNorm",
    "encoder.layer.1.dropout",
]
HOOKS = {
    "forward": lambda m, call: m.register_forward_hook(call),
    "forward pre": lambda m, call: m.register_forward_pre_hook(call),
    "backward": lambda m, call: m.register_full_backward_hook(call),
    "backward pre": lambda m, call: m.register_full_backward_pre_hook(call),
}
GLOBAL_HOOKS = {
    "forward": torch_module.register_module_forward_hook,
    "forward pre": torch_module.register_module_forward_pre_hook,
    "backward": torch_module.register_module_full_backward_hook,
    "backward pre": torch_module.register_module_full_backward_pre_hook,
}


class Lora(nn.Module):
    """As libraries of adapters put in the place of a linear layer; adds nothing at first."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.fixture
def bert():
    return random_weights(PackedBert(config())).train()


def states(model):
    ids, borders = torch.arange(16) * 3 % 50, torch.tensor([0, 5, 5, 16])
    return model(ids, borders)


@pytest.fixture
def span_batch():
    return make_masker(mask_ratio=0.4)(word_text(2 * 40, seed=1).view(2, 40))


@pytest.fixture
def head():
    torch.manual_seed(3)
    return random_weights(SBOHead(16))


def rows_of(head, batch):
    torch.manual_seed(1)
    return head(torch.randn(2, 40, 16).requires_grad_(), batch)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ENCODER_LAYERS)
def test_hooks_of_an_encoder_fire(bert, name, kind):
    expected, calls = states(bert).detach(), []
    HOOKS[kind](bert.get_submodule(name), lambda *_: calls.append(1))
    found = states(bert)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert len(calls) == (2 if name.endswith("layer.1.dropout") else 1)


@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
def test_hooks_of_all_modules_fire(bert, head, span_batch, kind):
    called = set()
    handle = GLOBAL_HOOKS[kind](lambda module, *_: called.add(module))
    try:
        states(bert).sum().backward()
        rows_of(head, span_batch).sum().backward()
    finally:
        handle.remove()
    for model, names in ((bert, ENCODER_LAYERS), (head, SBO_LAYERS)):
        assert not [name for name in names if model.get_submodule(name) not in called]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", SBO_LAYERS)
def test_hooks_of_the_sbo_head_fire(backend, head, span_batch, name, kind):
    expected, calls = rows_of(head, span_batch).detach(), []
    HOOKS[kind](head.get_submodule(name), lambda *_: calls.append(1))
    found = rows_of(head, span_batch)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("mode", ["fp32", "autocast", "bf16", "double"])
def test_the_called_layers_give_what_the_operation_gives(backend, head, span_batch, mode):
    """Values and all gradients, also where most slots of a capacity are unused."""
    bounds = {"autocast": 3e-2, "bf16": 6e-2, "fp32": 1e-5, "double": 1e-12}
    dtype = {"bf16": torch.bfloat16, "double": torch.float64}.get(mode, torch.float32)
    head, found = head.to(dtype), []
    torch.manual_seed(1)
    hidden = torch.randn(2, 40, 16).to(dtype).requires_grad_()
    grad = torch.randn(len(span_batch.target_ids), 16).to(dtype)
    assert int((span_batch.sbo_ids == -100).sum()) > 0
    for changed in (False, True):
        if changed:
            head.linear2.register_forward_hook(lambda *_: None)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            rows = head(hidden, span_batch)
        leaves = (hidden, *head.parameters())
        found.append((rows, *torch.autograd.grad(rows, leaves, grad.to(rows.dtype))))
    for own, called in zip(*found, strict=True):
        assert (own.shape, own.dtype) == (called.shape, called.dtype)
        scale = own.detach().float().abs().max()
        assert (own - called).detach().float().abs().max() <= bounds[mode] * scale
    assert bool((found[1][0][span_batch.sbo_ids == -100] == 0).all())


@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_an_adapter_of_the_sbo_head_is_computed_and_trained(backend, head, span_batch, name):
    expected = rows_of(head, span_batch).detach()
    adapter = Lora(head.get_submodule(name))
    head.set_submodule(name, adapter)
    torch.testing.assert_close(rows_of(head, span_batch).detach(), expected, rtol=1e-5, atol=1e-5)
    rows_of(head, span_batch).square().sum().backward()
    assert bool((adapter.up.weight.grad != 0).any())
    nn.init.ones_(adapter.up.weight)
    assert not torch.allclose(rows_of(head, span_batch).detach(), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["linear1", "layer_norm1", "position_embeddings"])
def test_a_parametrised_layer_of_the_sbo_head_is_called(backend, head, span_batch, name):
    module = head.get_submodule(name)
    parametrize.register_parametrization(module, "weight", Twice())
    found = rows_of(head, span_batch).detach()
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    torch.testing.assert_close(rows_of(head, span_batch).detach(), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, value",
    [("span_left", -1), ("span_right", 80), ("target_spans", -1), ("target_offsets", 15)],
)
def test_changed_layers_have_the_heads_checks(backend, head, span_batch, name, value):
    """Without the head's kernels, torch asserts where the host reads nothing."""
    head.linear1 = Lora(head.linear1)
    used = span_batch.span_right > 0 if name.startswith("span") else span_batch.sbo_ids != -100
    index = getattr(span_batch, name).clone()
    index[used.nonzero()[0]] = value
    error, said = IndexError, naming(name, value)
    if backend == "emulated":
        error, said = RuntimeError, f"{name} must lie in"
    with pytest.raises(error, match=said):
        rows_of(head, dataclasses.replace(span_batch, **{name: index}))


@pytest.mark.parametrize("changed", [False, True])
def test_a_head_compiles_either_way(head, span_batch, changed):
    if changed:
        head.linear1 = Lora(head.linear1)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    hidden = torch.randn(2, 40, 16)
    torch.testing.assert_close(compiled(hidden, span_batch), head(hidden, span_batch))
    left = span_batch.span_left.clone()
    left[0] = -1
    with pytest.raises((IndexError, RuntimeError), match="span_left must lie in"):
        compiled(hidden, dataclasses.replace(span_batch, span_left=left))


@pytest.mark.parametrize("name", [n for n in ENCODER_LAYERS if "LayerNorm" in n])
def test_a_replaced_norm_of_an_encoder_is_called(bert, name):
    """Without parameters of its own, as some replacements are."""
    size = bert.get_submodule(name).weight.numel()
    plain = nn.LayerNorm(size, eps=1e-12)
    bert.set_submodule(name, plain)
    expected = states(bert).detach()
    bert.set_submodule(name, nn.LayerNorm(size, eps=1e-12, elementwise_affine=False))
    torch.testing.assert_close(states(bert).detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_dropout_that_was_taken_out(bert):
    for module in (bert.embeddings, *bert.encoder.layer):
        module.dropout = nn.Identity()
    torch.testing.assert_close(states(bert), states(bert))


def test_gradients_through_embeddings_whose_output_a_hook_marks(bert):
    """As transformers' enable_input_require_grads does for frozen weights."""
    bert.requires_grad_(False)
    marked = []
    hook = lambda module, given, output: marked.append(output.requires_grad_())  # noqa: E731
    bert.embeddings.word_embeddings.register_forward_hook(hook)
    states(bert).sum().backward()
    assert marked[0].grad_fn is None and bool(marked[0].grad.isfinite().all())


@pytest.mark.parametrize("kind", ["hook", "backward hook", "global", "parametrised", "adapter"])
@torch.no_grad()
def test_predictions_call_what_is_changed(bert, kind):
    bert.eval()
    dense, calls, handle = bert.encoder.layer[0].intermediate.dense, [], None
    if kind == "parametrised":
        parametrize.register_parametrization(dense, "weight", Twice())
    elif kind == "adapter":
        bert.encoder.layer[0].intermediate.dense = Lora(dense)
        nn.init.ones_(bert.encoder.layer[0].intermediate.dense.up.weight)
    elif kind == "hook":
        dense.register_forward_hook(lambda module, given, output: output + 1)
    elif kind == "backward hook":
        dense.register_full_backward_hook(lambda *_: calls.append(1))
    else:
        call = lambda module, *_: calls.append(1) if module is dense else None  # noqa: E731
        handle = torch_module.register_module_forward_hook(call)
    try:
        expected = states(bert)
        with for_predictions(bert, 4096):
            torch.testing.assert_close(states(bert), expected, rtol=1e-5, atol=1e-5)
    finally:
        if handle is not None:
            handle.remove()
    assert calls == ([1, 1] if kind == "global" else [])


def test_the_last_layer_of_a_task_is_called_where_it_is_changed():
    model = random_weights(SpanBertForQuestionAnswering(config())).eval()
    expected = model(torch.arange(12).view(1, 12))
    adapter = model.qa_outputs = Lora(model.qa_outputs)
    found = model(torch.arange(12).view(1, 12))
    torch.testing.assert_close(found.start_logits, expected.start_logits)
    found.start_logits.sum().backward()
    assert bool((adapter.up.weight.grad != 0).any())


def test_what_counts_as_plain():
    dense = nn.Linear(2, 2)
    assert is_plain(dense, nn.Linear)
    assert not is_plain(nn.LazyLinear(2), nn.Linear)
    dense.forward = lambda x: x
    assert not is_plain(dense, nn.Linear)
