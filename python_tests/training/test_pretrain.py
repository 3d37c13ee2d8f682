"""A whole run in one process: files, exact continuation, refusals."""

import json
import os
import signal

import pytest
import torch
import yaml
from conftest import write_text
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.data import PrepareConfig, prepare
from spanbert_ext.errors import ConfigError, DataError, NumericsError, Preempted, StorageError
from spanbert_ext.settings.build import as_flat_dict, flatten
from spanbert_ext.training import checkpoint
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.run_log import RunLog
from spanbert_ext.weights import conversion


def digests(directory):
    """Digest of every file that holds tensors."""
    return {p.name: checkpoint.digest_file(p) for p in sorted(directory.glob("*.safetensors"))}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_at(monkeypatch, step):
    """Send this process SIGTERM when `step` is logged, once."""
    train = RunLog.train

    def logged(self, now, *values):
        train(self, now, *values)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "train", logged)


def test_a_run_writes_what_it_promises(tiny, tmp_path):
    result = pretrain(tiny)
    run = tmp_path / "run"
    assert [step for step, _ in checkpoint.list_steps(run)] == [4, 8, 12]
    assert result.checkpoint == run / "step-0000012"
    assert flatten(yaml.safe_load((run / "config.yaml").read_text())) == as_flat_dict(tiny)
    rows = metrics(run)
    trained = [row for row in rows if row["event"] == "train"]
    assert [row["step"] for row in trained] == list(range(1, 13))
    wanted = {"mlm_loss", "sbo_loss", "lr", "grad_norm", "tokens_per_s", "memory_gb", "backend"}
    assert wanted <= trained[0].keys()
    assert [row["step"] for row in rows if row["event"] == "validation"] == [0, 5, 10, 12]
    assert result.state.starting_losses["mlm_loss"] > result.state.latest_losses["mlm_loss"] > 0
    assert result.state.step == 12
    assert result.state.samples == 96
    assert result.state.tokens > 12 * 8 * 20


def test_a_checkpoint_is_a_hugging_face_directory(tiny, tmp_path):
    path = pretrain(tiny).checkpoint
    assert json.loads((path / "config.json").read_text())["model_type"] == "spanbert"
    model = SpanBertForPreTraining.from_pretrained(path)
    stored = load_file(path / "model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items() if k in stored)
    assert AutoTokenizer.from_pretrained(path).mask_token == "[MASK]"
    plain = tmp_path / "plain"
    conversion.export_bert(path, plain)
    assert type(AutoModelForMaskedLM.from_pretrained(plain)).__name__ == "BertForMaskedLM"


def test_the_same_seed_gives_the_same_weights(tiny, change, tmp_path):
    first = pretrain(tiny).checkpoint
    second = pretrain(change(tiny, output=str(tmp_path / "again"))).checkpoint
    other = pretrain(change(tiny, output=str(tmp_path / "other"), seed=1)).checkpoint
    assert digests(first) == digests(second)
    assert digests(first)["model.safetensors"] != digests(other)["model.safetensors"]


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_stopped_run_continues_bit_for_bit(tiny, change, tmp_path, monkeypatch, step):
    """Weights, moments and generator of the last checkpoint equal the uninterrupted run's, dropout
    on.
    """
    whole = pretrain(change(tiny, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {step} of 12"):
            pretrain(tiny)
    result = pretrain(tiny)
    assert digests(result.checkpoint) == digests(whole.checkpoint)
    assert result.state.latest_losses == whole.state.latest_losses
    losses = [
        [(row["step"], row["mlm_loss"]) for row in metrics(run) if row["event"] == "train"]
        for run in (result.run, whole.run)
    ]
    assert losses[0] == losses[1]


def test_without_its_generator_the_continuation_would_differ(tiny, change, tmp_path, monkeypatch):
    """The equality above is not vacuous: dropout does draw from the saved generator."""
    whole = pretrain(change(tiny, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Preempted):
            pretrain(tiny)
    monkeypatch.setattr("spanbert_ext.training.resume.load_generators", lambda *_: None)
    other = digests(pretrain(tiny).checkpoint)
    assert other["model.safetensors"] != digests(whole.checkpoint)["model.safetensors"]


def test_a_finished_run_is_left_alone(tiny, tmp_path):
    pretrain(tiny)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    result = pretrain(tiny)
    assert result.was_finished
    assert result.state.latest_losses
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_continuing_past_a_damaged_checkpoint(tiny, change, tmp_path):
    whole = digests(pretrain(tiny).checkpoint)
    for name in ("step-0000012", "step-0000008"):
        path = tmp_path / "run" / name / "optimizer.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    result = pretrain(tiny)
    assert not result.was_finished
    assert digests(result.checkpoint) == whole
    assert [step for step, _ in checkpoint.list_steps(tmp_path / "run")] == [4, 8, 12]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("steps", 20, "steps was 12, is 20"),
        ("seed", 1, "seed was 0, is 1"),
        ("batch.rows", 4, "batch.rows was 8, is 4"),
        ("optimizer.peak_lr", 5e-4, "optimizer.peak_lr was 0.001, is 0.0005"),
        ("masking.mask_ratio", 0.2, "masking.mask_ratio was 0.15, is 0.2"),
        ("loss.kind", "paper", "loss.kind was code, is paper"),
        ("model.dropout", 0.0, "model.dropout was 0.1, is 0.0"),
        ("precision", "bf16", "precision was fp32, is bf16"),
    ],
)
def test_changed_mathematics_is_refused(tiny, change, monkeypatch, name, value, line):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Preempted):
            pretrain(tiny)
    with pytest.raises(ConfigError) as caught:
        pretrain(change(tiny, **{name: value}))
    assert line in str(caught.value)


def test_logging_and_saving_may_change(tiny, change, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Preempted):
            pretrain(tiny)
    changed = {"log_every": 3, "checkpoint.every": 5, "checkpoint.keep": 1, "validation.every": 0}
    result = pretrain(change(tiny, **changed))
    assert [step for step, _ in checkpoint.list_steps(result.run)] == [12]


def test_another_corpus_is_refused(tiny, change, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Preempted):
            pretrain(tiny)
    text = write_text(tmp_path / "other.txt", seed=1)
    prepare(
        PrepareConfig(
            inputs=[str(text)],
            output=str(tmp_path / "other"),
            tokenizer=str(tmp_path / "run" / "step-0000004"),
            validation_fraction=0.1,
        )
    )
    with pytest.raises(ConfigError, match="the corpus had fingerprint"):
        pretrain(change(tiny, corpus=str(tmp_path / "other")))


def test_a_corpus_smaller_than_a_batch(tiny, change):
    config = change(tiny, **{"batch.rows": 512, "batch.micro_rows": None})
    with pytest.raises(DataError, match=r"batch\.rows=512"):
        pretrain(config)


def test_no_room_for_checkpoints(tiny, change, monkeypatch):
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(StorageError, match="two checkpoints need"):
        pretrain(tiny)
    pretrain(change(tiny, **{"checkpoint.space_check": False}))


def test_numerics_error_keeps_the_good_checkpoint(tiny, tmp_path, monkeypatch):
    from spanbert_ext.training.pretrain import PretrainObjective

    loss = PretrainObjective.loss

    def spoiled(self, model, micro, totals):
        value, parts = loss(self, model, micro, totals)
        return (value * float("nan") if spoil else value), parts

    spoil = False
    monkeypatch.setattr(PretrainObjective, "loss", spoiled)
    train = RunLog.train

    def logged(self, now, *values):
        nonlocal spoil
        train(self, now, *values)
        spoil = spoil or now == 1

    monkeypatch.setattr(RunLog, "train", logged)
    with pytest.raises(NumericsError):
        pretrain(tiny)
    newest = checkpoint.newest(tmp_path / "run")
    weights = load_file(newest / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_bf16_autocast_runs_and_keeps_fp32_weights(tiny, change):
    result = pretrain(change(tiny, precision="bf16", steps=4, **{"checkpoint.every": 4}))
    weights = load_file(result.checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert result.state.latest_losses["mlm_loss"] < result.state.starting_losses["mlm_loss"]


def test_continuing_a_bert_directory(tiny, change, tmp_path):
    """A plain BERT export, then a SpanBERT checkpoint, each as the start of a new run with the same
    tokenizer.
    """
    source = pretrain(tiny).checkpoint
    plain = tmp_path / "plain"
    conversion.export_bert(source, plain)
    sizes = {f"model.{n}": None for n in ("layers", "hidden", "heads", "feed_forward", "dropout")}
    for name, init in (("from-bert", plain), ("from-spanbert", source)):
        config = change(tiny, output=str(tmp_path / name), init=str(init), steps=3, **sizes)
        state = pretrain(config).state
        trained = json.loads((source / "state.json").read_text())["latest_losses"]
        assert state.starting_losses["mlm_loss"] == pytest.approx(trained["mlm_loss"], rel=1e-5)
    assert state.starting_losses["sbo_loss"] == pytest.approx(trained["sbo_loss"], rel=1e-5)
