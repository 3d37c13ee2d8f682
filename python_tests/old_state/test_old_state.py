"""What release 0.1.0 wrote opens, goes on and predicts as it did."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from spanbert_ext.cli import command
from spanbert_ext.data import Corpus
from spanbert_ext.training import checkpoint
from spanbert_ext.training import run as run_module
from spanbert_ext.training.state import read_state

ARCHIVE = Path(__file__).with_name("release-0.1.0.tar.xz")
TASKS = {  # with their data
    "squad2": "squad2.json",
    "mrqa": "mrqa.jsonl.gz",
    "tacred": "tacred.json",
    "ner": "ner.conll",
    "coref": "coref.jsonl",
    "mrpc": "mrpc.tsv",
}
CPU = ("--device=cpu", "--precision=fp32")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    home = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, filter="data")
    return home


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch):
    """The current directory: a copy of what the release wrote."""
    home = tmp_path / "old"
    shutil.copytree(unpacked, home)
    monkeypatch.chdir(home)
    return home


def run(*words):
    assert command.main([str(word) for word in words]) == 0


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def assert_same(found, expected):
    """Equal, but for the last digits of floats."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    elif isinstance(expected, dict):
        assert found.keys() >= expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("task", TASKS)
def test_a_model_predicts_as_it_did(old, task):
    run("predict", task, f"{task}.in.jsonl", "new.jsonl", f"--model={task}", *CPU)
    assert_same(lines_of("new.jsonl"), lines_of(f"{task}.out.jsonl"))


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_measured_as_it_was(old, task):
    run("evaluate", task, f"--data={TASKS[task]}", "--metrics=m.json", f"--model={task}", *CPU)
    found, expected = (json.loads(Path(p).read_text()) for p in ("m.json", f"{task}.metrics.json"))
    assert_same(found["metrics"], expected["metrics"])


def test_finished_predictions_are_known(old, capsys):
    """The settings that a prediction was made with are completed, not called others."""
    run("predict", "ner", "ner.in.jsonl", "ner.out.jsonl", "--model=ner", *CPU)
    assert "nothing to do" in capsys.readouterr().out


def test_the_corpus_is_the_one_that_its_text_gives(old):
    before = Corpus.open("corpus")
    before.verify()
    stamp = Path("corpus/corpus.json").stat().st_mtime_ns
    run("prepare", "text.txt", "--output=corpus", "--vocab_size=70", "--workers=1")
    assert Path("corpus/corpus.json").stat().st_mtime_ns == stamp


def test_a_pre_training_goes_on_to_its_end(old, capsys):
    words = json.loads(Path("pretrain.json").read_text())
    run(*words)
    assert "continuing run/step-0000004" in capsys.readouterr().out
    state = read_state(checkpoint.newest(Path("run")))
    assert state.step == 8
    steps = [line["step"] for line in lines_of("run/metrics.jsonl") if line["event"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    run(*words)
    assert "nothing to do" in capsys.readouterr().out


def test_a_fine_tuning_goes_on_to_its_end(old, capsys):
    words = json.loads(Path("ner.words.json").read_text())
    shutil.rmtree("ner")
    shutil.move("ner-run", "ner")
    run(*words)
    assert "continuing ner/step-" in capsys.readouterr().out
    run("predict", "ner", "ner.in.jsonl", "new.jsonl", "--model=ner", *CPU)
    for found, expected in zip(lines_of("new.jsonl"), lines_of("ner.out.jsonl"), strict=True):
        spans = [
            [(e["start"], e["end"], e["type"]) for e in r["entities"]] for r in (found, expected)
        ]
        assert spans[0] == spans[1]
    run(*words)
    assert "ner is finished; nothing to do" in capsys.readouterr().out


def test_a_run_is_exported_filled_and_drawn(old, capsys):
    pytest.importorskip("matplotlib")
    run("export", "run", "plain")
    assert (old / "plain" / "model.safetensors").is_file()
    run("plot", "run", "ner-run", "--output=c.png")
    run("fill", "run", "Anna [MASK] [MASK] Rome .", "--top_k=2", "--device=cpu")
    out = capsys.readouterr().out
    for text, _ in json.loads(Path("fill.json").read_text()):
        assert text in out


def test_a_run_is_a_starting_point(old):
    words = [*CPU, "--steps=1", "--optimizer.warmup_steps=0", "--batch.rows=4"]
    run(
        "pretrain", "--corpus=corpus", "--init=run", "--output=new", "--batch.max_length=32", *words
    )
    words = ["--train=mrpc.tsv", "--dev=mrpc.tsv", "--output=new2", "--max_steps=1", *CPU]
    run("finetune", "mrpc", "--model=run", *words, "--glue.length=64")


def edit(path, change):
    """Change the content of a JSON file."""
    content = json.loads(Path(path).read_text("utf-8"))
    change(content)
    Path(path).write_text(json.dumps(content), "utf-8")


def without(section, *names):
    """Takes settings out of a section."""

    def change(content):
        for name in names:
            del content[section][name]

    return change


def test_settings_that_are_younger_than_a_file(old, capsys):
    """Of a model (both files), of a corpus and of predictions."""
    edit("coref/best/spanbert_task.json", without("options", "shared", "resolved"))
    edit("coref/best/config.json", without("coref", "speakers", "coref_depth"))
    run("predict", "coref", "coref.in.jsonl", "new.jsonl", "--model=coref", *CPU)
    assert_same(lines_of("new.jsonl"), lines_of("coref.out.jsonl"))
    edit("corpus/corpus.json", without("settings", "text_field", "min_frequency"))
    stamp = Path("corpus/corpus.json").stat().st_mtime_ns
    run("prepare", "text.txt", "--output=corpus", "--vocab_size=70", "--workers=1")
    assert Path("corpus/corpus.json").stat().st_mtime_ns == stamp
    edit(".ner.out.jsonl.state", without("settings", "batch_tokens", "tagging.repair"))
    capsys.readouterr()
    run("predict", "ner", "ner.in.jsonl", "ner.out.jsonl", "--model=ner", *CPU)
    assert "nothing to do" in capsys.readouterr().out


def test_settings_that_are_younger_than_a_run(old, monkeypatch, capsys):
    def read_older(path):
        state = read_state(path)
        del state.settings["numerics.spike_policy"], state.settings["masking.endpoints"]
        return state

    monkeypatch.setattr(run_module, "read_state", read_older)
    run(*json.loads(Path("pretrain.json").read_text()))
    assert "continuing run/step-0000004" in capsys.readouterr().out


def test_settings_of_a_later_version_are_named(old, capsys):
    edit("ner/best/spanbert_task.json", lambda c: c.update(version="9.1"))
    edit("ner/best/spanbert_task.json", lambda c: c["options"].update(zeal=1))
    assert command.main(["predict", "ner", "ner.in.jsonl", "x", "--model=ner", *CPU]) == 74
    said = capsys.readouterr().err
    assert "no setting tagging.zeal; the file was written by spanbert_ext 9.1" in said
    edit("corpus/corpus.json", lambda c: c["settings"].update(zeal=1))
    assert command.main(["prepare", "text.txt", "--output=corpus", "--vocab_size=70"]) == 2
    assert "corpus/corpus.json: this version of spanbert_ext has no" in capsys.readouterr().err
