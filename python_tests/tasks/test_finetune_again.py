"""Fine-tuning that goes back, goes on or is asked for something else."""

import dataclasses
import json

import pytest
import torch
from other_encoders import encoder_folder
from record_formats import FORMATS
from record_formats import write as write_data
from safetensors.torch import load_file
from test_finetune import config_of
from tokenizer_kinds import tokenizer_of
from toy_tasks import sentiment_words, toy_model
from transformers import BertConfig, BertModel

from spanbert_ext.cli import command
from spanbert_ext.errors import ConfigError, NumericsError, Preempted
from spanbert_ext.tasks import finetune as finetune_module
from spanbert_ext.tasks.batching import FeatureBatches
from spanbert_ext.tasks.best_model import SCORES, best_scores
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.packed_objective import PackedObjective
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.tasks.task_file import read_task_file
from spanbert_ext.text import marks_blanks
from spanbert_ext.training import checkpoint, run
from spanbert_ext.training.state import read_state


def stop_after(monkeypatch, number):
    """Training is asked to stop after so many steps."""
    train = run.train

    def stopping(model, step, names, numbers, progress, log, stop, inspect, after):
        def then(done):
            after(done)
            if done == number:
                stop.signal = 15

        return train(model, step, names, numbers, progress, log, stop, inspect, then)

    monkeypatch.setattr(run, "train", stopping)


@pytest.fixture(scope="module")
def finished(toy_bert, tmp_path_factory):
    """(words, run) of 20 steps."""
    home = tmp_path_factory.mktemp("finished")
    words = sentiment_words(toy_bert, home, home / "run", max_steps=20)
    finetune(config_of(words))
    return words, home / "run"


def replaced(words, **changes):
    """The settings of words with others in their place."""
    names = [name.replace("__", ".") for name in changes]
    kept = [w for w in words if w[2:].split("=")[0] not in names]
    return config_of([*kept, *(f"--{n}={v}" for n, v in zip(names, changes.values(), strict=True))])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__peak_lr": 1e-3},
        {"batch__examples": 4},
        {"seed": 7},
        {"epochs": 9},
        {"max_steps": 30},
        {"dropout": 0.2},
        {"glue__length": 32},
        {"evals_per_epoch": 1},
        {"train_limit": 40},
        {"numerics__spike_policy": "skip"},
        {"seed": 7, "optimizer__warmup": 0, "model": "elsewhere"},
    ],
)
def test_other_settings_are_refused_by_name(finished, changes):
    """Also where the run is finished: nothing is to do only for the same command."""
    words, _ = finished
    with pytest.raises(ConfigError, match="cannot be continued with other settings") as caught:
        finetune(replaced(words, **changes))
    for name in changes:
        assert f"\n  - {name.replace('__', '.')} was " in str(caught.value)


def test_another_task_is_refused(finished):
    words, _ = finished
    other = config_of([words[0], "cola", *words[2:]])
    with pytest.raises(ConfigError, match="task was sst-2, is cola"):
        finetune(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 7},
        {"checkpoint__every": 3},
        {"batch__micro_tokens": 64},
        {"report_to": "[]"},
        {"nproc": 2},
        {"parallel__strategy": "fsdp"},
        {"numerics__max_rollbacks": 9},
    ],
)
def test_settings_that_change_nothing_are_accepted(finished, changes):
    words, _ = finished
    assert finetune(replaced(words, **changes)).was_finished


def test_a_lost_file_of_numbers_is_written_again(finished):
    words, folder = finished
    before = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    assert not finetune(config_of(words)).was_finished
    assert json.loads((folder / "metrics.json").read_text()) == before
    assert finetune(config_of(words)).was_finished


def test_the_best_model_says_how_good_it_is(finished):
    _, folder = finished
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert best_scores(folder) == best == json.loads((folder / "best" / SCORES).read_text())
    assert checkpoint.find_fault(folder / "best") == ""


def check_the_best(folder, words):
    """best/ has the numbers that metrics.json and the state say of it."""
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert best_scores(folder) == best == read_state(checkpoint.newest(folder)).best
    predictor = Predictor.load(folder, "cpu", "fp32")
    config = config_of(words)
    examples = finetune_module.read_data(config, predictor.task).dev
    scores = predictor.task.score(examples, predictor(examples))
    assert scores == {name: value for name, value in best.items() if name != "step"}


@pytest.mark.parametrize("step", [16, 20])
def test_a_checkpoint_of_another_run_brings_no_best_model(finished, tmp_path, step):
    """That one stays where it is; the new run finds its own, at the latest at its end."""
    words, folder = finished
    start = folder / checkpoint.step_name(step)
    if step == 16:  # the run has kept only its last checkpoint
        (tmp_path / "copy").mkdir()
        start = tmp_path / "copy" / start.name
    config = replaced(words, output=tmp_path / "run", resume=start)
    if step == 16:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
            stop_after(patch, 16)
            finetune(dataclasses.replace(config, output=str(tmp_path / "copy"), resume="auto"))
    assert read_state(start).best["accuracy"] > 50
    finetune(config)
    best = json.loads((tmp_path / "run/metrics.json").read_text())["best"]
    assert best == best_scores(tmp_path / "run") and best["step"] > step - 1


def test_a_damaged_best_model_is_replaced(toy_bert, tmp_path, monkeypatch):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=20)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_after(patch, 12)
        finetune(config_of(words))
    assert best_scores(tmp_path / "run")
    (tmp_path / "run" / "best" / "model.safetensors").write_bytes(b"")
    finetune(config_of(words))
    check_the_best(tmp_path / "run", words)


def spoil(monkeypatch, batches, factor):
    """Multiply what is differentiated in these batches."""
    loss, batches_of = PackedObjective.loss, FeatureBatches.batches
    batch = -1

    def remember(self, step):
        nonlocal batch
        batch = step + self.shift
        return batches_of(self, step)

    def spoiled(self, *arguments):
        value, parts = loss(self, *arguments)
        return value * (factor if batch in batches else 1.0), parts

    monkeypatch.setattr(FeatureBatches, "batches", remember)
    monkeypatch.setattr(PackedObjective, "loss", spoiled)


def test_a_spike_goes_back_and_jumps_over(toy_bert, tmp_path, monkeypatch):
    """The best model found since the checkpoint stays, with its numbers."""
    words = sentiment_words(
        toy_bert,
        tmp_path,
        tmp_path / "run",
        max_steps=30,
        evals_per_epoch=10,
        log_every=5,
        checkpoint__every=10,
        numerics__spike_policy="rollback",
        numerics__spike_window=8,
        numerics__spike_factor=50,
    )
    spoil(monkeypatch, {18}, 1e6)
    finetune(config_of(words))
    folder = tmp_path / "run"
    state = read_state(checkpoint.newest(folder))
    assert (state.step, state.rollbacks, state.shift) == (30, 1, 10)
    (bad,) = map(json.loads, (folder / "bad_batches.jsonl").read_text().splitlines())
    assert (bad["step"], bad["kind"], bad["action"], bad["epoch"]) == (19, "spike", "skipped", 0)
    assert len(bad["ids"]) == 8 and all(identifier.isdigit() for identifier in bad["ids"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "rollback"] == [10]
    assert [row["step"] for row in rows if row["event"] == "train"] == [5, 10, 15, 20, 25, 30]
    check_the_best(folder, words)
    # The same command once more, stopped and continued behind the rollback: the same weights.
    other = dataclasses.replace(config_of(words), output=str(tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_after(patch, 24)
        finetune(other)
    finetune(other)
    for name, tensor in load_file(checkpoint.newest(folder) / "model.safetensors").items():
        again = load_file(tmp_path / "other" / "step-0000030" / "model.safetensors")[name]
        assert torch.equal(tensor, again), name


def test_gradients_that_stay_infinite_end_the_run(toy_bert, tmp_path, monkeypatch):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=30, log_every=5)
    spoil(monkeypatch, range(10, 99), float("inf"))
    with pytest.raises(NumericsError, match="10 updates in a row had non-finite gradients"):
        finetune(config_of(words))


def test_a_model_that_is_not_finite_is_never_the_best(toy_bert, tmp_path, monkeypatch):
    """Its first evaluation is better than none."""
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=6, evals_per_epoch=20)

    def overflow(self, *_arguments):
        with torch.no_grad():
            next(self._model.parameters()).fill_(float("inf"))
        return 1

    monkeypatch.setattr("spanbert_ext.training.loop.HostStep.__call__", overflow)
    with pytest.raises(NumericsError, match="after step 1 weights are not finite"):
        finetune(config_of(words))
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("task", ["squad2", "tacred", "ner"])
def test_facts_survive_a_stop(toy_bert, tmp_path, task):
    """Labels, symbols and the threshold: a stopped run stores those of one that was not."""
    data = write_data(tmp_path, task, good=24)
    if task == "squad2":
        content = data.read_text().replace('"is_impossible": false', '"is_impossible": true', 6)
        parsed = json.loads(content)
        for paragraph in parsed["data"][0]["paragraphs"][:6]:
            paragraph["qas"][0]["answers"] = []
        data.write_text(json.dumps(parsed))
    section = {"squad2": "qa", "tacred": "relation", "ner": "tagging"}[task]
    words = [f"--model={toy_bert}", f"--train={data}", f"--dev={data}", "--max_steps=6"]
    words += ["--batch.examples=2", f"--{section}.length=32", "--checkpoint.every=2"]
    words += ["--precision=fp32", "--device=cpu", "--evals_per_epoch=1", "--dropout=0.1"]
    words += ["--tagging.overlap=8"] if task == "ner" else []
    found = []
    for name in ("whole", "stopped"):
        config = config_of(["finetune", task, *words, f"--output={tmp_path}/{name}"])
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
                stop_after(patch, 3)
                finetune(config)
        finetune(config)
        newest = checkpoint.newest(tmp_path / name)
        facts = [dict(read_task_file(p))["facts"] for p in (newest, tmp_path / name / "best")]
        found.append((facts, load_file(newest / "model.safetensors")))
    assert found[0][0] == found[1][0]
    for name, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][name]), name


def test_an_encoder_with_parameters_that_nobody_reads(tmp_path):
    """Longformer's global attention, without a token that attends globally."""
    start = encoder_folder("longformer", tmp_path / "start")
    data = write_data(tmp_path, "ner", good=8)
    words = [f"--model={start}", f"--train={data}", f"--dev={data}", "--max_steps=4"]
    words += ["--batch.examples=2", "--tagging.length=32", "--tagging.overlap=8"]
    words += ["--checkpoint.every=2", "--precision=fp32", "--device=cpu"]
    found = []
    for name in ("whole", "stopped"):
        config = config_of(["finetune", "ner", *words, f"--output={tmp_path}/{name}"])
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
                stop_after(patch, 3)
                finetune(config)
        found.append(load_file(finetune(config).checkpoint / "model.safetensors"))
    moved = [n for n, t in found[0].items() if not torch.equal(t, found[1][n])]
    assert not moved


RECORDS = {
    "squad": {"question": "was Anna in ?", "context": "Anna was in Paris . " * 30},
    "squad2": {"question": "was Anna in ?", "context": "Anna was in Paris . " * 30},
    "mrqa": {"question": "was Anna in ?", "context": "Anna was in Paris . " * 30},
    "tacred": {"text": "Anna was in Paris . " * 30, "subject": [0, 4], "object": [12, 17]}
    | {"subject_type": "PERSON", "object_type": "CITY"},
    "ner": {"text": "Anna was in Paris . " * 30},
    "cola": {"sentence": "Anna was in Paris . " * 30},
    "mnli": {"sentence1": "Anna was in Paris . " * 30, "sentence2": "a film"},
}


@pytest.mark.parametrize("task", RECORDS)
def test_sequences_no_longer_than_the_model(toy_bert, tmp_path, capsys, task):
    """Trained on short texts with the default length, a model reads long ones in its own."""
    section = {"tacred": "relation", "ner": "tagging", "cola": "glue", "mnli": "glue"}
    section = section.get(task, "qa")
    form = FORMATS[task]
    train = tmp_path / f"train.{form.suffix}"
    train.write_bytes(form.write([form.record(number) for number in range(4)]))
    common = ["--precision=fp32", "--device=cpu"]
    words = [f"--model={toy_bert}", f"--train={train}", f"--output={tmp_path}/run", *common]
    assert command.main(["finetune", task, *words, "--max_steps=1"]) == 0
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(RECORDS[task]) + "\n")
    words = [str(source), str(tmp_path / "out.jsonl"), f"--model={tmp_path}/run", *common]
    assert command.main(["predict", task, *words]) == 0
    assert "error" not in json.loads((tmp_path / "out.jsonl").read_text())
    capsys.readouterr()
    words[1] = str(tmp_path / "other.jsonl")
    assert command.main(["predict", task, *words, f"--{section}.length=65"]) == 2
    assert f"{section}.length: must be at most 64, for which the model has pos" in (
        capsys.readouterr().err
    )
    assert command.main(["predict", task, *words, f"--{section}.length=64"]) == 0
    evaluated = [f"--model={tmp_path}/run", f"--data={train}", *common, f"--{section}.length=500"]
    assert command.main(["evaluate", task, *evaluated]) == 2


def test_a_run_of_the_first_release_goes_on_reading_single_words(tmp_path):
    """It stored no `blanks`; its byte-level encoder has learned words without them."""
    model = toy_model(tmp_path / "bytes")
    tokenizer = tokenizer_of("byte-level")
    config = BertConfig.from_pretrained(model, vocab_size=len(tokenizer))
    BertModel(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    data = write_data(tmp_path, "ner", good=12)
    words = [f"--model={model}", f"--train={data}", f"--dev={data}", "--max_steps=4"]
    words += ["--batch.examples=2", "--tagging.length=32", "--tagging.overlap=8"]
    words += ["--precision=fp32", "--device=cpu", "--checkpoint.every=2"]
    for name, release in (("old", lambda tokenizer: False), ("new", marks_blanks)):
        config = config_of(["finetune", "ner", *words, f"--output={tmp_path}/{name}"])
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
            patch.setattr("spanbert_ext.tasks.tagging.task.marks_blanks", release)
            stop_after(patch, 2)
            finetune(config)
        finetune(config)
        facts = dict(read_task_file(tmp_path / name / "best"))["facts"]
        assert facts.get("blanks", False) == (name == "new")
