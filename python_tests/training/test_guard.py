"""Gradients that must not be applied: the verdicts, and what a run does about them."""

import json
import math
from pathlib import Path

import pytest
import torch
from spoiled_run import spoil
from test_loop import parts_of
from test_pretrain import digests

from spanbert_ext.data.sampler import RowOrder
from spanbert_ext.errors import NumericsError
from spanbert_ext.training.config import NumericsOptions
from spanbert_ext.training.guard import GradientGuard, check_finite
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.ranks import ALONE

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def guard_of(capacity=100, **options):
    values = {"spike_factor": 4.0, "spike_window": 4, "spike_policy": "skip"} | options
    return GradientGuard(NumericsOptions(**values), capacity, CPU)


def verdicts(guard, norms):
    """(skipped, verdicts) of norms in a row."""
    skipped = [int(guard.judge(torch.tensor(norm))) for norm in norms]
    return skipped, [verdict for _, verdict in guard.read()]


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.0, 1.0, 9.0], [0, 0, 0]),  # two known norms of four: no median yet
        ([1.0, 1.0, 1.0, 4.0], [0, 0, 0, 0]),  # the limit itself is none
        ([1.0, 1.0, 1.0, 4.5], [0, 0, 0, 2]),
        ([1.0, 1.0, 1.0, NAN, INF, 4.5], [0, 0, 0, 1, 1, 2]),  # what is not finite is no norm
        ([1.0, 1.0, 1.0, 9.0, 9.0, 9.0], [0, 0, 0, 2, 2, 0]),  # a new level becomes the median
        ([1e-8] * 4 + [1.0], [0] * 4 + [2]),
    ],
)
def test_verdicts(norms, expected):
    skipped, found = verdicts(guard_of(), norms)
    assert found == expected
    assert skipped == [int(verdict > 0) for verdict in expected]


def test_warned_spikes_are_applied_and_others_are_not():
    skipped, found = verdicts(guard_of(spike_policy="warn"), [1.0, 1.0, 1.0, 9.0, NAN])
    assert (skipped, found) == ([0, 0, 0, 0, 1], [0, 0, 0, 2, 1])


def test_without_a_factor_nothing_is_a_spike():
    assert verdicts(guard_of(spike_factor=0.0), [1.0] * 4 + [1e30])[1] == [0] * 5


@pytest.mark.parametrize("known", [0, 2, 4, 7])
def test_a_restored_guard_judges_alike(known):
    norms = [1.0, 2.0, 3.0, 1.0, 5.0, 2.0, 1.0][:known]
    behind = [1.0, 11.0, 2.0, 13.0, NAN, 40.0, 3.0, 3.0]
    first, second = guard_of(), guard_of()
    verdicts(first, norms)
    second.restore(json.loads(json.dumps(first.recent_norms())))
    assert second.recent_norms() == norms[-4:]
    assert verdicts(second, behind) == verdicts(first, behind)


def test_more_steps_than_the_capacity_do_not_overflow():
    guard = guard_of(capacity=2)
    for norm in (1.0, 2.0, 3.0):
        guard.judge(torch.tensor(norm))
    assert [norm for norm, _ in guard.read()] == [1.0, 3.0]
    guard.judge(torch.tensor(4.0))
    assert [norm for norm, _ in guard.read()] == [4.0]


def test_weights_that_are_not_finite_are_not_saved():
    model = torch.nn.Linear(2, 2)
    check_finite(model, ALONE, 5)
    with torch.no_grad():
        model.bias[1] = INF
    with pytest.raises(NumericsError, match=r"after step 5 weights are not finite \(bias\)"):
        check_finite(model, ALONE, 5)


def bad_batches(run):
    return [json.loads(line) for line in (run / "bad_batches.jsonl").read_text().splitlines()]


@pytest.fixture
def spiky(tiny, change):
    """A run of 30 steps that looks for spikes, with checkpoints every ten."""
    numerics = {"spike_factor": 8.0, "spike_window": 8, "spike_policy": "rollback"}
    settings = {f"numerics.{name}": value for name, value in numerics.items()}
    every = {"checkpoint.every": 10, "validation.every": 0, "log_every": 5}
    return change(tiny, steps=30, **settings, **every)


@pytest.mark.parametrize("policy", ["warn", "skip", "rollback"])
def test_a_gradient_spike(spiky, change, monkeypatch, capsys, policy):
    spoil(monkeypatch.setattr, {17}, 1000.0)
    result = pretrain(change(spiky, **{"numerics.spike_policy": policy}))
    (bad,) = bad_batches(result.run)
    action = "applied" if policy == "warn" else "skipped"
    assert (bad["step"], bad["kind"], bad["action"]) == (18, "spike", action)
    assert len(set(bad["rows"])) == 8 and len(bad["sample_ids"]) >= 8
    gone_back = policy == "rollback"
    assert (result.state.rollbacks, result.state.shift) == ((1, 10) if gone_back else (0, 0))
    said = capsys.readouterr().out
    assert ("back to step-0000010; the 10 batches behind it are jumped over" in said) == gone_back
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "train"] == [5, 10, 15, 20, 25, 30]


def test_a_rollback_trains_on_the_batches_behind(spiky, change, monkeypatch, tmp_path):
    """Bit for bit what a run gives whose order leaves these batches out from the checkpoint on."""
    with monkeypatch.context() as patch:
        spoil(patch.setattr, {17}, 1000.0)
        rolled = pretrain(spiky)
    of_step = RowOrder.of_step
    monkeypatch.setattr(
        RowOrder, "of_step", lambda self, step: of_step(self, step + 10 * (step >= 10))
    )
    jumping = pretrain(change(spiky, output=str(tmp_path / "jumping")))
    assert digests(rolled.checkpoint) == digests(jumping.checkpoint)
    assert rolled.state.tokens == jumping.state.tokens


def test_a_rollback_at_a_checkpoint_logs_its_own_steps_alone(spiky, change, monkeypatch, tmp_path):
    """The spike is found when the run saves, between two log lines: the next line is that of a run
    that was continued from the checkpoint, and has nothing of the steps that were undone."""
    spiky = change(spiky, log_every=15)
    with monkeypatch.context() as patch:
        spoil(patch.setattr, {17}, 1000.0)
        rolled = pretrain(spiky)
    of_step = RowOrder.of_step
    monkeypatch.setattr(
        RowOrder, "of_step", lambda self, step: of_step(self, step + 10 * (step >= 10))
    )
    start = str(rolled.run / "step-0000010")
    continued = pretrain(change(spiky, output=str(tmp_path / "continued"), resume=start))
    assert rolled.state.rollbacks == 1
    found, expected = (
        [
            [row[name] for name in ("step", "mlm_loss", "sbo_loss", "grad_norm")]
            for row in map(json.loads, (result.run / "metrics.jsonl").read_text().splitlines())
            if row["event"] == "train"
        ]
        for result in (rolled, continued)
    )
    assert [row[0] for row in expected] == [15, 30]
    assert found == expected


def test_batches_on_the_device_jump_too(tiny, change):
    objective, _ = parts_of(change(tiny, **{"batch.resident": "on"}))
    objective.data.shift = 7
    assert objective.data.seek(9) == objective.data.num_tokens(9)
    found = objective.data.batch_on_device(0).masked.input_ids
    assert torch.equal(found, objective.data.batches(9)[0].masked.input_ids)
    objective.data.shift = 0
    assert torch.equal(found, objective.data.batches(16)[0].masked.input_ids)


def test_spikes_that_come_back_end_the_run(spiky, change, monkeypatch):
    spoil(monkeypatch.setattr, range(17, 80), 1000.0)
    with pytest.raises(NumericsError, match="the gradient norm spiked after 1 rollbacks"):
        pretrain(change(spiky, **{"numerics.max_rollbacks": 1}))


def test_a_spike_before_the_first_checkpoint_ends_the_run(spiky, change, monkeypatch):
    spoil(monkeypatch.setattr, {17}, 1000.0)
    with pytest.raises(NumericsError, match="spiked before the first checkpoint"):
        pretrain(change(spiky, **{"checkpoint.every": 100}))


@pytest.mark.parametrize(("factor", "count"), [(NAN, 10), (INF, 10), (NAN, 9)])
def test_ten_bad_steps_in_a_row_end_the_run(tiny, change, monkeypatch, factor, count):
    """Log lines far apart: the run of skips is found all the same, and nothing bad is saved."""
    spoil(monkeypatch.setattr, range(5, 5 + count), factor)
    config = change(tiny, steps=30, log_every=30, **{"checkpoint.every": 4})
    if count == 9:
        assert pretrain(config).state.skipped == 9
        return
    with pytest.raises(NumericsError, match=r"10 updates in a row .*\(up to step 15\)"):
        pretrain(config)
    run = Path(config.output)
    assert len(bad_batches(run)) == 10
    names = sorted(path.name for path in run.glob("step-*"))
    assert names == ["step-0000004", "step-0000008", "step-0000012"]
