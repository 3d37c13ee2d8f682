"""Fine-tuning on the common loop: learns, keeps the best, resumes exactly, accumulates rightly."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from toy_tasks import sentiment_file, sentiment_words, toy_roberta
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from spanbert_ext.cli import command
from spanbert_ext.errors import ConfigError, DataError, Preempted
from spanbert_ext.settings import build
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.training import checkpoint, loop
from spanbert_ext.training.state import read_state


def config_of(words):
    """The settings that the command's words mean."""
    values = dict(word[2:].split("=", 1) for word in words[2:])
    return build.build(registry.settings_class(FinetuneConfig, words[1]), values)


@pytest.fixture(scope="module")
def finished(toy_bert, tmp_path_factory):
    """(words, run) of a run of 60 steps."""
    home = tmp_path_factory.mktemp("finished")
    words = sentiment_words(toy_bert, home, home / "run")
    finetune(config_of(words))
    return words, home / "run"


def weights(run):
    return load_file(checkpoint.newest(run) / "model.safetensors")


def test_it_learns_and_keeps_the_best(finished):
    words, run = finished
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 60 and metrics["train"]["examples"] == 160
    assert metrics["untrained"]["accuracy"] < 75 < 95 < metrics["best"]["accuracy"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in logged if row["event"] == "validation"]
    assert [row["step"] for row in seen] == [0, *range(6, 61, 6)]
    best = max(row["accuracy"] for row in seen[1:])
    first = next(row["step"] for row in seen[1:] if row["accuracy"] == best)
    assert metrics["best"]["step"] == first and metrics["best"]["accuracy"] == best
    assert not checkpoint.find_fault(run / "best")
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == [".lock"]


def test_the_best_model_loads_in_plain_transformers(finished):
    _, run = finished
    model, info = AutoModelForSequenceClassification.from_pretrained(
        run / "best", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    inputs = tokenizer("the film was awful", return_tensors="pt")
    theirs = model.eval()(**inputs).logits.softmax(-1)[0]
    ours = Predictor.load(run, device="cpu", precision="fp32")
    example = ours.task.parse({"sentence": "the film was awful"}, "here")
    (found,) = ours([example])
    scores = ours.task.as_json(example, found)["scores"]
    assert torch.allclose(theirs, torch.tensor(list(scores.values())), atol=1e-5)


def test_the_same_command_has_nothing_to_do(finished):
    words, run = finished
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert finetune(config_of(words)).was_finished
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_two_runs_are_equal_and_so_is_a_resumed_one(finished, tmp_path, monkeypatch):
    words, run = finished
    other = dataclasses.replace(config_of(words), output=str(tmp_path / "other"))

    train, stopped = loop.train, []

    def stop_after_seven(model, step, names, numbers, progress, log, stop, inspect, after):
        def then(number):
            after(number)
            if number == 7 and not stopped:
                stopped.append(number)
                import signal

                stop.signal = signal.SIGTERM

        train(model, step, names, numbers, progress, log, stop, inspect, then)

    monkeypatch.setattr("spanbert_ext.training.run.train", stop_after_seven)
    with pytest.raises(Preempted, match="after step 7 of 60"):
        finetune(other)
    result = finetune(other)
    assert not result.was_finished and stopped == [7]
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(tmp_path / "other")[name]), name
    best = load_file(tmp_path / "other/best/model.safetensors")
    for name, tensor in load_file(run / "best/model.safetensors").items():
        assert torch.equal(tensor, best[name]), name
    assert read_state(result.checkpoint).best == read_state(checkpoint.newest(run)).best


def test_micro_batches_make_the_same_update(toy_bert, tmp_path):
    runs = []
    for name, tokens in (("whole", 16384), ("parts", 20)):
        words = sentiment_words(
            toy_bert, tmp_path, tmp_path / name, max_steps=6, dropout=0, batch__micro_tokens=tokens
        )
        finetune(config_of(words))
        runs.append(weights(tmp_path / name))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=0, atol=2e-5, msg=name)


def test_without_development_data_the_last_model_counts(toy_bert, tmp_path):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=3)
    words = [word for word in words if not word.startswith("--dev=")]
    finetune(config_of(words))
    newest = load_file(checkpoint.newest(tmp_path / "run") / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run/best/model.safetensors").items():
        assert torch.equal(tensor, newest[name])


def test_other_data_is_refused(finished, tmp_path):
    words, run = finished
    other = sentiment_file(tmp_path / "other.tsv", 130, seed=9)
    changed = dataclasses.replace(config_of(words), train=[str(other)], epochs=4.0)
    with pytest.raises(ConfigError, match="epochs was 3.0, is 4.0(.|\n)*fingerprint"):
        finetune(changed)


def test_a_sample_of_the_training_data(toy_bert, tmp_path):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=1, train_limit=20)
    finetune(config_of(words))
    assert json.loads((tmp_path / "run/metrics.json").read_text())["train"]["examples"] == 20


def test_bad_records_by_policy(toy_bert, tmp_path, capsys):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=1)
    file = tmp_path / "train.tsv"
    file.write_text(file.read_text() + "a film\tmaybe\n")
    assert command.main(words) == DataError.exit_code
    assert "train.tsv:162" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command.main([*words, "--on_error=skip"]) == 0
    (reject,) = (tmp_path / "run/rejects.jsonl").read_text().splitlines()
    assert "train.tsv:162" in json.loads(reject)["where"]
    file.write_text(file.read_text() + "a film\tmaybe\n" * 9)
    assert (
        command.main([*words, "--on_error=skip", f"--output={tmp_path}/x"]) == DataError.exit_code
    )
    assert "10 of 170 records cannot be used" in capsys.readouterr().err


def test_a_window_longer_than_the_model(toy_bert, tmp_path, capsys):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=1)
    file = tmp_path / "train.tsv"
    file.write_text(file.read_text() + "very " * 80 + "good film\t1\n")
    assert command.main(words) == DataError.exit_code
    assert "positions for 64: lower --glue.length" in capsys.readouterr().err
    assert command.main([*words, "--glue.length=64"]) == 0


def test_another_encoder(tmp_path):
    """RoBERTa keeps its own classes, and comes back from its folder."""
    toy_roberta(tmp_path / "roberta", initializer_range=0.1)
    words = sentiment_words(tmp_path / "roberta", tmp_path, tmp_path / "run", epochs=4)
    finetune(config_of(words))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["best"]["accuracy"] > 90
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/best")
    assert model.config.model_type == "roberta"
    code = command.main(
        [
            "evaluate",
            "sst-2",
            f"--model={tmp_path}/run",
            f"--data={tmp_path}/dev.tsv",
            f"--metrics={tmp_path}/m.json",
            "--precision=fp32",
            "--device=cpu",
        ]
    )
    assert code == 0
    again = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert again["accuracy"] == metrics["best"]["accuracy"]


def test_a_fine_tuned_model_is_a_start(finished, tmp_path, capsys):
    """Its head too, since the labels are the same."""
    words, run = finished
    again = [w for w in words if not w.startswith(("--model=", "--output=", "--epochs="))]
    again += [f"--model={run}", f"--output={tmp_path}/run", "--max_steps=1"]
    finetune(config_of(again))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["untrained"] == {
        name: value
        for name, value in json.loads((run / "metrics.json").read_text())["best"].items()
        if name != "step"
    }
    assert "random weights" not in capsys.readouterr().out
