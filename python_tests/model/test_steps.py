"""Encoder and whole steps on every device: gradients, no waiting, faults of numbers, repeats."""

import pytest
import torch
import torch.nn.functional as F
from back_ends import mode
from device_cases import many_spans, no_waiting
from model_cases import config, make_ids, make_stream, random_weights
from model_cases import make_masker as make_model_masker
from sbo_cases import make_head, run
from strategies import (
    assert_as_good_as_torch,
    make_masker,
    randn,
    word_text,
)

from spanbert_ext import (
    SpanBertForPreTraining,
)
from spanbert_ext.model.encoder import PackedBert
from spanbert_ext.ops.cross_entropy import two_head_cross_entropy
from spanbert_ext.training.config import LossOptions, OptimizerOptions, PretrainConfig
from spanbert_ext.training.loop import accumulate, update
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.pretrain import PretrainObjective
from spanbert_ext.training.pretrain_batches import MicroBatch

# The encoder -------------------------------------------------------------------------------------


def check_encoder_gradients(device, path, with_rows, monkeypatch):
    """bf16 attention of packed sequences, some empty, some without a row that anybody wants: errors
    against float64 on the CPU are at most twice those of dense attention, one sequence at a time.
    """
    fields = {"hidden_size": 64, "max_position_embeddings": 256}
    model = random_weights(PackedBert(config(**fields)))
    for parameter in model.parameters():  # 0.3 a weight saturates the softmax of 64 wide rows
        parameter.data *= 0.4
    lengths = torch.tensor([0, 150, 7, 0, 0, 40, 1, 131, 0])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
    tokens = torch.arange(int(lengths.sum())) * 7 % 67
    rows = torch.tensor([328, 3, 3, *range(198, 328, 2), 149, 0, 150, 156]) if with_rows else None
    probe = randn(len(rows) if with_rows else len(tokens), 64, seed=1)

    def states_and_gradients(model, path, device, dtype):
        monkeypatch.setattr("spanbert_ext.model.layer.attention_path", lambda q, dropout: path)
        options = {"rows": rows.to(device), "max_queries": 66} if with_rows else {}
        model = copy_of(model, device, dtype)
        with torch.autocast(device, torch.bfloat16, enabled=dtype is None):
            out = model(tokens.to(device), cu_seqlens.to(device), max_seqlen=150, **options)
        out.backward(probe.to(device, out.dtype))
        named = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        return {"states": out.detach().cpu(), **named}

    exact = states_and_gradients(model, "runs", "cpu", torch.float64)
    own = states_and_gradients(model, "runs", device, None)
    for name, value in states_and_gradients(model, path, device, None).items():
        assert value.isfinite().all(), name
        # A bias of all keys alike shifts every score alike: the gradient is 0, its error noise.
        if not name.endswith("key.bias"):
            assert_as_good_as_torch(value, own[name], exact[name], name, dtype=torch.bfloat16)


def copy_of(model, device, dtype=None):
    """A copy of PackedBert elsewhere, in another dtype."""
    twin = PackedBert(config(hidden_size=64, max_position_embeddings=256))
    twin.load_state_dict(model.state_dict())
    return twin.to(device, dtype)


@pytest.mark.parametrize("path", ["varlen", "blocks"])
@pytest.mark.parametrize("with_rows", [False, True])
def test_encoder_gradients(device, path, with_rows, monkeypatch):
    if path == "varlen" and device == "cpu":
        pytest.skip("torch has this kernel on a GPU alone")
    check_encoder_gradients(device, path, with_rows, monkeypatch)


# Steps -------------------------------------------------------------------------------------------


class Step:
    """Masking, SBO head and both losses, forward and backward, on fixed buffers."""

    def __init__(self, device):
        self.ids = word_text(16 * 128, seed=1).view(16, 128).to(device)
        self.epoch = torch.tensor([0], device=device)
        self.sample_ids = torch.arange(16, device=device)
        self.masker, self.head = make_masker(seed=3), make_head(64).to(device)
        self.table = randn(200, 64, seed=4).to(device).requires_grad_()
        self.bias = torch.zeros(2, 200, device=device, requires_grad=True)
        self.counts = torch.tensor(300.0, device=device)

    def __call__(self):
        batch = self.masker(self.ids, sample_ids=self.sample_ids, epoch=self.epoch)
        hidden = F.embedding(batch.input_ids, self.table)
        rows = hidden.view(-1, 64)[batch.target_positions]
        loss = two_head_cross_entropy(
            rows,
            self.head(hidden, batch),
            self.table,
            batch.target_ids,
            batch.sbo_ids,
            self.bias,
            num_mlm_targets=self.counts,
        )[0]
        gradients = torch.autograd.grad(loss, (self.table, self.bias, *self.head.parameters()))
        return batch.labels, loss, *gradients


class Training:
    """A small model, its optimizer and two micro-batches as the loop takes them."""

    def __init__(self, device):
        # Without the corpus: counts and loss of a micro-batch need none.
        self.device = torch.device(device)
        self.objective = PretrainObjective(PretrainConfig(loss=LossOptions(kind="paper")))
        self.model = SpanBertForPreTraining(config(hidden_size=64)).to(device)
        self.optimizer = build_optimizer(self.model, OptimizerOptions())
        self.tokens, self.cu_seqlens = (t.to(device) for t in make_stream(make_ids()))
        self.masker = make_model_masker()

    def micro_batches(self, step: int) -> list[MicroBatch]:
        masked = [
            self.masker.packed(self.tokens, self.cu_seqlens, epoch=2 * step + i) for i in (0, 1)
        ]
        return [MicroBatch(m, self.cu_seqlens, 36, 14, None) for m in masked]

    def step(self, step: int):
        """(loss parts, gradient norm, found_inf)"""
        parts = accumulate(
            self.model, self.objective, self.micro_batches(step), self.device, "bf16"
        )
        return parts, *update(self.model, self.optimizer, 1.0)

    def state(self) -> list[torch.Tensor]:
        """Copies of the weights, the moments and the step counts."""
        moments = [t for s in self.optimizer.state.values() for t in s.values()]
        return [t.detach().clone() for t in (*self.model.parameters(), *moments)]


def check_training_does_not_wait(device):
    training = Training(device)
    batch, borders = training.micro_batches(0)[0].masked, training.cu_seqlens
    exact = training.model(batch=batch, cu_seqlens=borders).loss.detach()
    with torch.autocast(device, torch.bfloat16):
        training.model(batch=batch, cu_seqlens=borders).loss.backward()
    training.model.zero_grad()
    training.step(0)
    before = training.state()
    with no_waiting(device):
        with torch.autocast(device, torch.bfloat16):
            loss = training.model(batch=batch, cu_seqlens=borders).loss
        loss.backward()
        training.model.zero_grad()
        parts, norm, found_inf = training.step(1)
    assert loss.dtype == torch.float32 and abs(loss - exact) < 0.05 * exact
    assert parts.isfinite().all() and norm > 0 and found_inf == 0
    after = training.state()
    assert all(t.isfinite().all() for t in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.dim() == 2)


def test_training_does_not_wait(device):
    check_training_does_not_wait(device)


def check_a_step_without_a_finite_gradient_changes_nothing(device):
    training = Training(device)
    training.step(0)
    before = training.state()
    for broken in (float("inf"), float("nan")):
        accumulate(
            training.model, training.objective, training.micro_batches(1), training.device, "bf16"
        )
        training.model.cls.sbo_bias.grad[3] = broken
        _, found_inf = update(training.model, training.optimizer, 1.0)
        assert found_inf == 1
        assert all(torch.equal(a, b) for a, b in zip(before, training.state(), strict=True))
    assert training.step(1)[2] == 0
    assert not torch.equal(before[0], training.state()[0])


def test_a_step_without_a_finite_gradient_changes_nothing(device):
    check_a_step_without_a_finite_gradient_changes_nothing(device)


def check_native_against_reference(device):
    native = Step(device)()
    with mode("reference"):
        reference = Step(device)()
    assert torch.equal(native[0], reference[0])
    for got, expected in zip(native[1:], reference[1:], strict=True):
        assert_close_to_largest(got, expected, 1e-4)


def assert_close_to_largest(got, expected, share: float):
    """Sums in another order: the largest error is a share of the largest value."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    error = (got.double() - expected.double()).abs().max()
    assert error <= share * expected.double().abs().max()


def test_native_against_reference(device):
    check_native_against_reference(device)


def check_repeats(device):
    """Whole steps, and the head on more spans than one lap adds."""
    step = Step(device)
    first = step()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))
    batch = many_spans().to(device)
    hidden = randn(batch.labels.numel(), 64, seed=1).to(device)
    grad = randn(batch.sbo_ids.shape[0], 64, seed=2).to(device)
    head = make_head(64).to(device)
    once = run(lambda h, b, m: m(h, b), hidden, batch, head, grad)
    for _ in range(5):
        again = run(lambda h, b, m: m(h, b), hidden, batch, head, grad)
        assert all(torch.equal(once[name], again[name]) for name in once)


def test_repeats_give_the_same_bits(device):
    check_repeats(device)
