"""Batches and updates made on the device: rows, masks, losses and weights are the host's."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import write_text
from safetensors.torch import load_file
from test_loop import parts_of
from test_pretrain import digests, metrics, stop_at

from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, batch_of_step, prepare
from spanbert_ext.errors import ConfigError, Preempted
from spanbert_ext.training import pretrain_batches, run_step
from spanbert_ext.training.config import RuntimeOptions
from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.graphed_step import GraphedStep
from spanbert_ext.training.loop import HostStep, LoopSettings
from spanbert_ext.training.optimizer import (
    DeviceSchedule,
    build_optimizer,
    learning_rate,
)
from spanbert_ext.training.pretrain import PretrainObjective, pretrain
from spanbert_ext.training.resident import ResidentOrder, ResidentRows, resident_bytes

CPU = torch.device("cpu")
RESIDENT = {"batch.resident": "on"}


@pytest.fixture(scope="module", params=[16, 32])
def rows(corpus_dir, request):
    return PackedRows(Corpus.open(corpus_dir), max_length=request.param)


def assert_same_batch(found, expected):
    for got, wanted in zip(
        found, (expected.tokens, expected.cu_seqlens, expected.sample_ids), strict=True
    ):
        assert got.dtype == torch.int64
        assert torch.equal(got, torch.from_numpy(wanted))


def test_gathered_rows_are_the_hosts(rows):
    resident = ResidentRows.of(rows, CPU)
    every = np.arange(len(rows))
    assert rows.row_tokens(every).min() < rows.max_length  # else there is no padding to get wrong
    draws = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, len(rows)):
        ids = torch.randperm(len(rows), generator=draws)[:count]
        capacity = rows.max_sequences(count)
        found = resident.batch(ids, capacity)
        assert_same_batch(found, rows.batch(ids.numpy(), pad=True))
    unused = resident.batch(ids[:1], 40)
    assert unused[1].shape == (41,) and int(unused[1][-1]) == rows.max_length
    assert (unused[2][rows.max_sequences(1) :] == -1).all()


def test_rows_are_laid_out_in_chunks(rows, monkeypatch):
    whole = ResidentRows.of(rows, CPU)
    monkeypatch.setattr("spanbert_ext.training.resident._CHUNK_TOKENS", 3 * rows.max_length)
    parts = ResidentRows.of(rows, CPU)
    assert torch.equal(whole._tokens, parts._tokens)
    assert resident_bytes(rows) >= whole._tokens.numel() * whole._tokens.element_size()


@pytest.mark.parametrize("vocab_size", [1 << 16, (1 << 16) + 1])
def test_large_ids_survive(rows, monkeypatch, vocab_size):
    """Ids beyond 32767 are kept as negative 16-bit numbers; more than 65536 take 32 bits."""
    gather = Corpus.gather
    monkeypatch.setattr(Corpus, "vocab_size", vocab_size)
    shift = vocab_size - 200
    monkeypatch.setattr(Corpus, "gather", lambda self, at: gather(self, at) + shift)
    read = Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda self, a, b: read(self, a, b).astype("u4") + shift)
    ids = torch.arange(3)
    found = ResidentRows.of(rows, CPU).batch(ids, rows.max_sequences(3))
    assert int(found[0].max()) > shift
    assert_same_batch(found, rows.batch(ids.numpy(), pad=True))


def test_order_is_the_hosts_through_epochs(rows):
    order = ResidentOrder(rows, 6, seed=3, device=CPU)
    assert order.steps_per_epoch < 40
    for step in [*range(2 * order.steps_per_epoch + 2), 5, 6, 200, 201]:
        tokens = order.seek(step)
        epoch, ids = batch_of_step(step, 6, len(rows), 3)
        assert order.epoch().tolist() == [epoch]
        assert order.row_ids(0, 6).tolist() == ids.tolist()
        assert order.row_ids(torch.tensor([4]), 2).tolist() == ids[4:].tolist()
        assert tokens == int(rows.row_tokens(ids).sum())
        order.advance()


@pytest.mark.parametrize(("steps", "warmup"), [(10, 4), (4, 0), (6, 6), (2_400_000, 10_000)])
def test_schedule_on_the_device_is_the_hosts(steps, warmup):
    schedule = DeviceSchedule(steps, warmup, 1.7e-4, CPU)
    for step in {*range(min(steps, 10)), max(0, warmup - 1), warmup, steps - 1, steps // 3} - {
        steps
    }:
        rate = schedule(torch.tensor([step]))
        assert rate.dtype == torch.float64
        assert rate.item() == learning_rate(step, steps, warmup, 1.7e-4), step


@pytest.fixture(scope="module")
def mixture(corpus_dir, tmp_path_factory):
    """The corpus and a small one that is seen more than once a step."""
    home = tmp_path_factory.mktemp("small")
    text = write_text(home / "text.txt", documents=1, seed=1)
    names = {"output": str(home / "corpus"), "tokenizer": str(corpus_dir / "tokenizer")}
    prepare(PrepareConfig(inputs=[str(text)], **names))
    return f"{corpus_dir}=1,{home / 'corpus'}=3"


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("step", [0, 3, 17])
def test_micro_batches_are_the_hosts(tiny, change, step, mixed, mixture):
    settings = RESIDENT | ({"corpus": mixture} if mixed else {})
    objective, _ = parts_of(change(tiny, **settings))
    tokens = objective.data.seek(step)
    made = objective.data.batches(step)
    assert tokens == sum(micro.tokens for micro in made)
    for number, expected in enumerate(made):
        for micro in (number, torch.tensor([number])):
            found = objective.data.batch_on_device(micro)
            assert torch.equal(found.cu_seqlens, expected.cu_seqlens)
            assert (found.max_length, found.row_length) == (32, 32)
            for field in dataclasses.fields(found.masked):
                got, wanted = (getattr(x.masked, field.name) for x in (found, expected))
                assert torch.equal(got, wanted), field.name


SETTINGS = LoopSettings(
    steps=12, peak_lr=1e-3, warmup_steps=3, clip_norm=0.5, precision="fp32", log_every=1
)


def losses_and_weights(config, kind, steps=11, precision="fp32"):
    """Tokens, losses and verdict of every step, then weights and moments."""
    objective, model = parts_of(config)
    optimizer = build_optimizer(model, config.optimizer)
    settings = dataclasses.replace(SETTINGS, precision=precision)
    run = kind(model.train(), optimizer, objective, settings)
    found = []
    for step in range(steps):
        tokens = run(step)
        found.append((tokens, run.totals.read(), run.guard.read()[0][1]))
    moments = [t for s in optimizer.state.values() for t in s.values()]
    return found, [*model.parameters(), *moments]


@pytest.mark.parametrize("micro_rows", [8, 4, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_weights_are_the_hosts(tiny, change, micro_rows, precision):
    """Bit for bit, with dropout, accumulation, warm-up, decay and clipping, over an epoch's end."""
    config = change(tiny, **RESIDENT, **{"batch.micro_rows": micro_rows, "batch.rows": 8})
    host, host_state = losses_and_weights(config, HostStep, precision=precision)
    own, own_state = losses_and_weights(config, DeviceStep, precision=precision)
    assert own == host
    assert all(torch.equal(a, b) for a, b in zip(own_state, host_state, strict=True))
    first, last = host[0][1][0][0], host[-1][1][0][0]
    assert last < first


def test_a_step_that_is_not_finite_is_skipped(tiny, change, monkeypatch):
    """The same skips, counted the same, as on the host."""
    loss = PretrainObjective.loss
    calls = 0

    def spoiled(self, *arguments):
        nonlocal calls
        calls += 1
        value, parts = loss(self, *arguments)
        return value * (float("nan") if calls in (3, 4, 5) else 1.0), parts

    monkeypatch.setattr(PretrainObjective, "loss", spoiled)
    config = change(tiny, **RESIDENT, **{"batch.micro_rows": 8})
    results = []
    for kind in (HostStep, DeviceStep):
        calls = 0
        found, state = losses_and_weights(config, kind, steps=6)
        results.append(([(tokens, verdict) for tokens, _, verdict in found], state))
    assert [verdict for _, verdict in results[0][0]] == [0, 0, 1, 1, 1, 0]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert all(t.isfinite().all() for t in results[1][1])


def test_a_whole_run_resumed_in_the_middle(tiny, change, tmp_path, monkeypatch):
    """Stopped after step 5 and continued, a resident run ends where the host's ends."""
    resident = change(tiny, **RESIDENT)
    with monkeypatch.context() as patch:
        patch.setattr(run_step, "DeviceStep", HostStep)  # the same padded batches, from the host
        host = pretrain(change(resident, output=str(tmp_path / "host")))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Preempted):
            pretrain(resident)
    own = pretrain(resident)
    assert digests(own.checkpoint) == digests(host.checkpoint)
    assert own.state.latest_losses == host.state.latest_losses
    assert own.state.tokens == host.state.tokens
    keys = ("step", "mlm_loss", "sbo_loss", "lr", "grad_norm")
    rows = [
        [[row[k] for k in keys] for row in metrics(run) if row["event"] == "train"]
        for run in (own.run, host.run)
    ]
    assert rows[0] == rows[1]
    weights = load_file(own.checkpoint / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_compiled_step_trains_alike(tiny, change, monkeypatch):
    """The model as torch.compile traces it, in one graph, without its code generator."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model: compiler(model, backend="aot_eager", fullgraph=True)
    )
    config = change(tiny, **RESIDENT, **{"model.dropout": 0.0})

    def compiled(model, *rest):
        return DeviceStep(model, *rest, run_step.build_replica(model, True))

    own, own_state = losses_and_weights(config, compiled, steps=4)
    expected, state = losses_and_weights(config, DeviceStep, steps=4)
    for (_, found, _), (_, wanted, _) in zip(own, expected, strict=True):
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    for found, wanted in zip(own_state, state, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


# What is chosen ----------------------------------------------------------------------------------


def test_a_cpu_run_takes_the_hosts_batches(tiny, change):
    objective, model = parts_of(tiny)
    assert not objective.data.resident
    optimizer = build_optimizer(model, tiny.optimizer)
    step = run_step.build_step(model, optimizer, objective, SETTINGS, RuntimeOptions())
    assert isinstance(step, HostStep)
    assert run_step.describe_step(step, False) == "batches from the host"
    objective, _ = parts_of(change(tiny, **RESIDENT))
    step = run_step.build_step(model, optimizer, objective, SETTINGS, RuntimeOptions())
    assert isinstance(step, DeviceStep)
    with pytest.raises(ConfigError, match="graphs need a CUDA device"):
        run_step.build_step(model, optimizer, objective, SETTINGS, RuntimeOptions(graph="on"))
    with pytest.raises(ValueError, match="graphs need a CUDA device"):
        GraphedStep(step)


def test_rows_that_do_not_fit_stay_on_the_host(rows, monkeypatch):
    needed = resident_bytes(rows)
    for free, fits in ((4 * needed, True), (4 * needed - 4, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert pretrain_batches.fits_on_device(rows, torch.device("cuda")) is fits
    assert not pretrain_batches.fits_on_device(rows, CPU)


def test_the_model_is_compiled_on_request_only():
    assert [run_step.choose_compile(wanted) for wanted in ("auto", "on", "off")] == [0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"runtime.graph": "on", "batch.resident": "off"}, "batch.resident is off"),
        ({"runtime.graph": "on", "device": "cpu"}, "no CUDA graphs on a CPU"),
    ],
)
def test_impossible_graphs_are_refused(tiny, change, settings, line):
    with pytest.raises(ConfigError, match=line):
        change(tiny, **settings).validate()
