"""The update without the host on a GPU: it waits for nothing; captured, it is the eager one."""

import dataclasses

import pytest
import torch
from device_cases import UNCACHED, no_waiting
from objective_cases import pretrain_objective
from test_device_step import RESIDENT, SETTINGS
from transformers import AutoTokenizer

from spanbert_ext.data import Corpus
from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.graphed_step import WARM_UP_STEPS, GraphedStep
from spanbert_ext.training.loop import HostStep
from spanbert_ext.training.models import build_model
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.run_step import build_replica

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_back_end")]

# A capture holds no cudaMalloc, and the sanitizer run has no caching allocator.
needs_caching = pytest.mark.skipif(UNCACHED, reason="a graph captures no cudaMalloc")


@pytest.fixture
def repeatable():
    """Attention and scattered sums take the kernels that give the same bits every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def graphed(*arguments):
    return GraphedStep(DeviceStep(*arguments))


class Training:
    """A fresh model and a kind of step over the tiny corpus on a device."""

    def __init__(self, config, kind, device="cuda", precision="bf16", compiled=False):
        place = torch.device(device)
        corpus = Corpus.open(config.corpus)
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
        torch.manual_seed(config.seed)
        self.model = build_model(config, corpus.vocab_size, tokenizer).to(place).train()
        self.objective = pretrain_objective(config, place)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        settings = dataclasses.replace(SETTINGS, precision=precision)
        replica = build_replica(self.model, compiled)
        self.run = kind(self.model, self.optimizer, self.objective, settings, replica)

    def losses(self, steps: int) -> list:
        """What the log would show of each update; dropout is drawn from the same seed."""
        torch.manual_seed(1)
        return [(self.run(step), self.run.totals.read()) for step in range(steps)]

    def state(self) -> list[torch.Tensor]:
        moments = [t for s in self.optimizer.state.values() for t in s.values()]
        return [*self.model.parameters(), *moments]


def assert_same_training(own: Training, other: Training, steps: int = 8) -> None:
    assert own.losses(steps) == other.losses(steps)
    assert all(torch.equal(a, b) for a, b in zip(own.state(), other.state(), strict=True))


def check_batches(config, device):
    objective = Training(config, DeviceStep, device).objective
    for step in (0, 5, 17):
        objective.data.seek(step)
        for number, expected in enumerate(objective.data.batches(step)):
            found = objective.data.batch_on_device(torch.tensor([number], device=device))
            assert torch.equal(found.cu_seqlens, expected.cu_seqlens)
            for field in dataclasses.fields(found.masked):
                got, wanted = (getattr(x.masked, field.name) for x in (found, expected))
                assert torch.equal(got, wanted), field.name


def test_micro_batches_are_the_hosts(tiny, change):
    check_batches(change(tiny, **RESIDENT), "cuda")


def check_device_step_is_the_hosts(config, device):
    assert_same_training(Training(config, DeviceStep, device), Training(config, HostStep, device))


@pytest.mark.usefixtures("repeatable")
def test_device_step_is_the_hosts(tiny, change):
    check_device_step_is_the_hosts(change(tiny, **RESIDENT), "cuda")


def check_nothing_waits(config, kind, device):
    training = Training(config, kind, device)
    epoch = training.objective.data._order.steps_per_epoch
    for step in range(WARM_UP_STEPS + 1):
        training.run(step)
    with no_waiting(device):
        for step in range(WARM_UP_STEPS + 1, epoch + 2):  # over an epoch's end
            training.run(step)
    means, norm = training.run.totals.read()
    assert all(value > 0 for value in means) and norm > 0
    assert not any(verdict for _, verdict in training.run.guard.read())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("micro_rows", [8, 4])
def test_device_step_waits_for_nothing(tiny, change, micro_rows, dropout):
    settings = {"batch.micro_rows": micro_rows, "model.dropout": dropout}
    check_nothing_waits(change(tiny, **RESIDENT, **settings), DeviceStep, "cuda")


@needs_caching
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("micro_rows", [8, 4])
def test_graphed_step_waits_for_nothing(tiny, change, micro_rows, dropout):
    settings = {"batch.micro_rows": micro_rows, "model.dropout": dropout}
    check_nothing_waits(change(tiny, **RESIDENT, **settings), graphed, "cuda")


def check_graphed_step_is_the_eager(config, device, precision):
    own = Training(config, graphed, device, precision)
    assert_same_training(own, Training(config, DeviceStep, device, precision))
    assert own.run.captured


@needs_caching
@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_rows", [8, 4, 2])
def test_graphed_step_is_the_eager(tiny, change, micro_rows, precision):
    settings = {"batch.micro_rows": micro_rows, "model.dropout": 0.0}
    check_graphed_step_is_the_eager(change(tiny, **RESIDENT, **settings), "cuda", precision)


@needs_caching
@pytest.mark.usefixtures("repeatable")
def test_graphed_step_draws_the_same_dropout(tiny, change):
    """So a run that warms up again after a resume draws what it would have drawn."""
    check_graphed_step_is_the_eager(change(tiny, **RESIDENT), "cuda", "bf16")


@needs_caching
def test_eager_work_between_replays_changes_nothing(tiny, change):
    """Validation and saving use the model between two replays."""
    config = change(tiny, **RESIDENT, **{"model.dropout": 0.0})
    training = Training(config, graphed)
    training.losses(WARM_UP_STEPS + 2)
    before = [t.clone() for t in training.state()]
    micro = training.objective.data.batches(3)[0]
    with torch.no_grad():
        training.objective.loss(training.model, micro, training.objective.counts(micro))
    assert all(torch.equal(a, b) for a, b in zip(before, training.state(), strict=True))
    assert all(p.grad is None for p in training.model.parameters())
    training.run(WARM_UP_STEPS + 2)
    assert not torch.equal(before[0], training.state()[0])


@needs_caching
def test_a_compiled_step_is_captured(tiny, change):
    pytest.importorskip("triton")
    config = change(tiny, **RESIDENT, **{"model.dropout": 0.0, "batch.micro_rows": 8})
    own = Training(config, graphed, compiled=True)
    expected = Training(config, DeviceStep).losses(6)
    for (_, found), (_, wanted) in zip(own.losses(6), expected, strict=True):
        assert found[0] == pytest.approx(wanted[0], rel=2e-2)
    assert own.run.captured
    with no_waiting("cuda"):
        own.run(6)
