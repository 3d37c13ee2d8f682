"""A captured update: nothing in it reads back, and replays are the updates of the eager step."""

import contextlib
import logging

import pytest
import torch
from capture_mode import CaptureSafe, as_on_a_gpu
from test_device_step import RESIDENT, SETTINGS, losses_and_weights
from test_loop import parts_of

from spanbert_ext.training import graphed_step
from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.graphed_step import WARM_UP_STEPS, GraphedStep, plan
from spanbert_ext.training.loop import HostStep
from spanbert_ext.training.optimizer import build_optimizer


def test_graphs_of_an_update():
    def first(): ...
    def further(): ...
    def end(): ...

    assert plan([first, end]) == [([first, end], 1)]
    assert plan([first, further, end]) == [([first], 1), ([further], 1), ([end], 1)]
    assert plan([first, further, further, further, end]) == [
        ([first], 1),
        ([further], 3),
        ([end], 1),
    ]


# Safe to capture ---------------------------------------------------------------------------------


@pytest.fixture
def make_step(tiny, change):
    """A `DeviceStep`, or another kind, that has done an update."""

    def make(kind=DeviceStep, precision="fp32", **settings):
        config = change(tiny, **RESIDENT, **settings)
        objective, model = parts_of(config)
        optimizer = build_optimizer(model, config.optimizer)
        options = SETTINGS.__class__(**{**SETTINGS.__dict__, "precision": precision})
        step = kind(model.train(), optimizer, objective, options)
        step(0)
        return step

    return make


@pytest.mark.parametrize("micro_rows", [8, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_operation_of_an_update_waits(make_step, monkeypatch, micro_rows, precision, dropout):
    settings = {"batch.micro_rows": micro_rows, "model.dropout": dropout}
    step = make_step(precision=precision, **settings)
    as_on_a_gpu(monkeypatch)
    step.data.seek(1)
    with CaptureSafe() as mode:
        for run in step.stages():
            run()
    assert mode.calls > 500
    assert step.totals.read()[1] > 0


def test_the_hosts_update_would_be_found_out(make_step, monkeypatch):
    """The test above can fail: with numbers that are read, and with batches from the host."""
    step = make_step()
    step.data.seek(1)
    with pytest.raises(AssertionError, match="a CUDA graph cannot hold"), CaptureSafe():
        step.first()
    step = make_step(HostStep)
    as_on_a_gpu(monkeypatch)
    with pytest.raises(AssertionError, match="a CUDA graph cannot hold"), CaptureSafe():
        step(1)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1, 2]),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: bool((x > 0).all()),
        lambda x: torch.arange(3),
    ],
)
def test_what_cannot_be_captured_is_refused(operation):
    with pytest.raises(AssertionError), CaptureSafe():
        operation(torch.ones(3))


# Replays, with graphs that are calls -------------------------------------------------------------


class Played:
    """What stands for a CUDA graph on a CPU: a replay makes the recorded calls."""

    def __init__(self, calls):
        self.calls, self.replays = calls, 0

    def replay(self):
        self.replays += 1
        for call in self.calls:
            call()


@pytest.fixture
def played(monkeypatch):
    """Graphs made since, in order."""
    made = []

    def record(calls, stream, pool):
        made.append(Played(calls))
        return made[-1]

    monkeypatch.setattr(graphed_step, "capture_place", lambda device: (None, None))
    monkeypatch.setattr(graphed_step, "behind", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(graphed_step, "record", record)
    return made


def graphed(*arguments):
    return GraphedStep(DeviceStep(*arguments))


@pytest.mark.parametrize(("micro_rows", "replays"), [(8, [8]), (4, [8, 8, 8]), (2, [8, 24, 8])])
def test_replays_are_updates(tiny, change, played, micro_rows, replays):
    config = change(tiny, **RESIDENT, **{"batch.micro_rows": micro_rows})
    own, own_state = losses_and_weights(config, graphed)
    assert [graph.replays for graph in played] == replays and WARM_UP_STEPS == 3
    expected, state = losses_and_weights(config, DeviceStep)
    assert own == expected
    assert all(torch.equal(a, b) for a, b in zip(own_state, state, strict=True))


def test_an_optional_capture_that_fails_is_said(tiny, change, played, monkeypatch, caplog):
    config = change(tiny, **RESIDENT)

    def record(calls, stream, pool):
        calls[0]()  # gradients of a capture that was given up must not reach the next update
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def optional(*arguments):
        return GraphedStep(DeviceStep(*arguments), required=False)

    monkeypatch.setattr(graphed_step, "record", record)
    monkeypatch.setattr(
        "spanbert_ext.training.device_step.DeviceStep.first", keep_generator(DeviceStep.first)
    )
    with caplog.at_level(logging.WARNING):
        own, own_state = losses_and_weights(config, optional)
    assert "runs without graphs: operation not permitted when stream is capturing" in caplog.text
    assert caplog.text.count("runs without graphs") == 1
    expected, state = losses_and_weights(config, DeviceStep)
    assert own == expected
    assert all(torch.equal(a, b) for a, b in zip(own_state, state, strict=True))
    with pytest.raises(RuntimeError, match="not permitted"):
        losses_and_weights(config, graphed)


def keep_generator(method):
    """`first`, which outside a captured graph draws dropout, draws the same in every call here."""

    def first(self):
        torch.manual_seed(int(self.data.step_counter))
        method(self)

    return first
