"""The loop: exact accumulation, ten steps against plain PyTorch, signals."""

import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from objective_cases import pretrain_objective
from torch import nn

from spanbert_ext.training.config import OptimizerOptions
from spanbert_ext.training.loop import (
    DeviceTotals,
    HostStep,
    LoopSettings,
    Progress,
    StopRequest,
    accumulate,
    evaluate,
    train,
)
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.run_log import RunLog, rewind

CPU = torch.device("cpu")


def parts_of(config):
    """Objective and a fresh model of a run, as pre-training builds them."""
    objective = pretrain_objective(config)
    torch.manual_seed(config.seed)
    return objective, objective.build_model()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["code", "paper"])
@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_accumulated_gradient_is_the_big_batchs(tiny, change, kind, micro_rows):
    config = change(tiny, **{"model.dropout": 0.0, "loss.kind": kind, "loss.sbo_weight": 0.5})
    objective, model = parts_of(change(config, **{"batch.micro_rows": 8}))
    model.double()
    whole = accumulate(model, objective, objective.data.batches(3), CPU, "fp32")
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    objective, _ = parts_of(change(config, **{"batch.micro_rows": micro_rows}))
    micro_batches = objective.data.batches(3)
    counts = torch.stack([objective.counts(micro) for micro in micro_batches])
    assert micro_rows == 4 or counts.unique(dim=0).shape[0] > 1  # else a mean of means would pass
    parts = accumulate(model, objective, micro_batches, CPU, "fp32")
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    found = gradients(model)
    assert found.keys() == expected.keys()
    total = [torch.stack([g.norm() for g in gs.values()]).norm() for gs in (found, expected)]
    assert float(total[0] / total[1]) == pytest.approx(1.0, abs=1e-9)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


class PlainModel(nn.Module):
    """Mean of word vectors to a class: small enough to train by hand below."""

    def __init__(self):
        super().__init__()
        self.vectors = nn.Embedding(20, 8)
        self.output = nn.Linear(8, 3)

    def forward(self, words):
        return self.output(self.vectors(words).mean(1))


class PlainTask:
    """A classification objective for the loop: micro-batches of uneven sizes, one loss part."""

    loss_names = ("class_loss",)

    def __init__(self, sizes=(5, 2, 1)):
        generator = torch.Generator().manual_seed(0)
        self.words = torch.randint(0, 20, (64, 6), generator=generator)
        self.labels = self.words[:, 0] % 3
        self.sizes, self.data = sizes, self

    def rows(self, step):
        return [(step * 8 + i) % 64 for i in range(8)]

    def batches(self, step):
        rows = torch.tensor(self.rows(step)).split(list(self.sizes))
        return [(self.words[r], self.labels[r]) for r in rows]

    def num_tokens(self, step):
        return len(self.rows(step)) * self.words.shape[1]

    def counts(self, micro):
        return torch.tensor([len(micro[1])])

    def loss(self, model, micro, totals):
        words, labels = micro
        loss = F.cross_entropy(model(words), labels, reduction="sum") / totals[0]
        return loss, loss.detach()[None]


def run_loop(objective, tmp_path, steps=10, after=lambda step: None, **changed):
    torch.manual_seed(0)
    model = PlainModel()
    optimizer = build_optimizer(model, OptimizerOptions(weight_decay=0.1))
    values = {
        "peak_lr": 0.05,
        "warmup_steps": 3,
        "clip_norm": 0.5,
        "precision": "fp32",
        "log_every": 1,
    }
    settings = LoopSettings(steps=steps, **(values | changed))
    log = RunLog(tmp_path / "metrics.jsonl", 0, steps, CPU, "test")
    progress = Progress()
    step = HostStep(model, optimizer, objective, settings)
    with StopRequest() as stop:
        names = objective.loss_names
        train(model, step, names, settings, progress, log, stop, lambda: False, after)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return model, progress, rows


def test_ten_step_loss_table(tmp_path):
    """Losses, gradient norms, rates and final weights equal a loop written out with
    torch.optim.AdamW and no accumulation.
    """
    objective = PlainTask()
    model, progress, rows = run_loop(objective, tmp_path)

    torch.manual_seed(0)
    plain = PlainModel()
    biases = [plain.output.bias]
    matrices = [plain.vectors.weight, plain.output.weight]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    rates = [0.05 / 3, 0.1 / 3, 0.05, *(0.05 * k / 7 for k in range(7, 0, -1))]
    for step, rate in enumerate(rates):
        rows_of_step = objective.rows(step)
        loss = F.cross_entropy(plain(objective.words[rows_of_step]), objective.labels[rows_of_step])
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert rows[step]["class_loss"] == pytest.approx(loss.item(), rel=1e-5), step
        assert rows[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4), step
        assert rows[step]["lr"] == pytest.approx(rate), step
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (progress.step, progress.tokens, progress.skipped) == (10, 10 * 48, 0)
    assert rows[9]["class_loss"] < rows[0]["class_loss"]


def test_log_lines_are_means_since_the_last(tmp_path):
    _, _, every = run_loop(PlainTask(), tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    _, _, fourth = run_loop(PlainTask(), tmp_path, log_every=4)
    assert [row["step"] for row in fourth] == [4, 8, 10]
    expected = sum(row["class_loss"] for row in every[4:8]) / 4
    assert fourth[1]["class_loss"] == pytest.approx(expected, rel=1e-6)


def test_means_leave_out_skipped_updates():
    totals = DeviceTotals(1, CPU)
    nan, one, zero = torch.tensor([float("nan")]), torch.ones(()), torch.zeros(())
    for loss, norm, skipped in [(2.0, 4.0, zero), (nan, nan, one), (4.0, 2.0, zero)]:
        totals.add(torch.as_tensor(loss).reshape(1), torch.as_tensor(norm).reshape(()), skipped)
    assert totals.read() == ([3.0], 3.0)
    totals.add(nan, nan.reshape(()), one)
    means, norm = totals.read()
    assert means[0] != means[0] and norm != norm  # no update, no mean


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_its_step(tmp_path, number):
    before = signal.getsignal(number)
    _, progress, _ = run_loop(
        PlainTask(),
        tmp_path,
        after=lambda step: os.kill(os.getpid(), number) if step == 3 else None,
    )
    assert progress.step == 3
    assert signal.getsignal(number) is before


def test_evaluation_is_repeatable_and_independent_of_batching(tiny, change):
    losses = []
    for micro_rows in (8, 2, 2):
        objective, model = parts_of(change(tiny, **{"batch.micro_rows": micro_rows}))
        losses.append(evaluate(model, objective, objective.data.held_out_batches(), "fp32"))
        assert model.training
    assert losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Untrained, so about the surprise of a choice among 120 pieces.
    assert all(4.3 < value < 5.4 for value in losses[0].values())


def test_batches_depend_on_the_step_alone(tiny):
    objective, _ = parts_of(tiny)
    first = [micro.masked.input_ids for micro in objective.data.batches(7)]
    objective.data.batches(1)
    again = [micro.masked.input_ids for micro in objective.data.batches(7)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first) == 2


def test_rewind_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    rewind(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
