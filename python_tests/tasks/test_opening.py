"""A fine-tuned model under each of its names: what is stored beside it counts everywhere."""

import json
import shutil
import tarfile

import huggingface_hub.constants
import pytest
from record_formats import write
from test_finetune import config_of
from test_finetune_again import stop_after

from spanbert_ext.cli import command
from spanbert_ext.data import prepare
from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.errors import ConfigError, Preempted
from spanbert_ext.settings import build
from spanbert_ext.tasks import SpanTagger, registry
from spanbert_ext.tasks.config import EvaluateConfig, PredictConfig
from spanbert_ext.tasks.evaluate import evaluate
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.predict import predict
from spanbert_ext.tasks.predictor import Predictor

NAMES = ["folder", "run", "begun", "checkpoint", "archive", "hub", "link", "link to archive"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), "ner", good=6)


@pytest.fixture(scope="module")
def places(toy_bert, data, tmp_path_factory):
    """Name -> what is given as the model; trained with options that are no defaults."""
    home = tmp_path_factory.mktemp("opened")
    words = [f"--model={toy_bert}", f"--train={data}", "--max_steps=2", "--device=cpu"]
    words += ["--tagging.scheme=bilou", "--tagging.length=32", "--tagging.overlap=8"]
    words += ["--tagging.repair=drop", "--checkpoint.every=1"]
    config = config_of(["finetune", "ner", *words, f"--output={home}/run"])
    finetune(config)
    begun = config_of(["finetune", "ner", *words, f"--output={home}/begun"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
        stop_after(patch, 1)
        finetune(begun)
    assert not (home / "begun" / "best").exists()
    best = home / "run" / "best"
    with tarfile.open(home / "model.tar.gz", "w:gz") as tar:
        for file in best.iterdir():
            tar.add(file, f"model/{file.name}")
    (home / "latest").symlink_to(home / "run")
    (home / "packed").symlink_to(home / "model.tar.gz")
    snapshot = home / "hub/models--acme--x/snapshots/abc"
    (home / "hub/models--acme--x/refs").mkdir(parents=True)
    (home / "hub/models--acme--x/refs/main").write_text("abc")
    shutil.copytree(best, snapshot)
    return {
        "home": home,
        "folder": best,
        "run": home / "run",
        "begun": home / "begun",
        "checkpoint": home / "begun/step-0000001",
        "archive": home / "model.tar.gz",
        "hub": "acme/x",
        "link": home / "latest",
        "link to archive": home / "packed",
    }


@pytest.fixture(autouse=True)
def hub(places, monkeypatch):
    """A cache of the hub, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(places["home"] / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def stored(predictor):
    options = predictor.task.options
    return options.scheme, options.length, options.overlap, options.repair


STORED = ("bilou", 32, 8, "drop")


@pytest.mark.parametrize("name", NAMES)
def test_the_pipeline_has_the_stored_options(places, name):
    assert stored(Predictor.load(places[name], "cpu")) == STORED
    assert stored(SpanTagger(str(places[name]), device="cpu")._predictor) == STORED


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_have_them(places, data, tmp_path, monkeypatch, name):
    used, load = [], Predictor.load.__func__

    def loading(cls, *arguments, **named):
        used.append(load(cls, *arguments, **named))
        return used[-1]

    monkeypatch.setattr(Predictor, "load", classmethod(loading))
    records = tmp_path / "in.jsonl"
    records.write_text('{"text": "Anna was in Paris ."}\n')
    model, device = f"--model={places[name]}", "--device=cpu"
    assert command.main(["evaluate", "ner", model, f"--data={data}", device]) == 0
    files = [str(records), str(tmp_path / "out.jsonl")]
    assert command.main(["predict", "ner", *files, model, device]) == 0
    given = ["--tagging.scheme=bio", "--tagging.overlap=4", f"--data={data}", device]
    command.main(["evaluate", "ner", model, *given])
    assert [stored(own) for own in used] == [STORED, STORED, ("bio", 32, 4, "drop")]


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_python_have_them(places, data, tmp_path, monkeypatch, name):
    """Where no section of the task is given; a given one counts whole."""
    kinds = [registry.settings_class(base, "ner") for base in (EvaluateConfig, PredictConfig)]
    records = tmp_path / "in.jsonl"
    records.write_text('{"text": "Anna was in Paris ."}\n')
    model = str(places[name])
    evaluating = kinds[0](model=model, data=[str(data)], device="cpu")
    assert stored(Predictor.of_settings(evaluating)) == STORED
    evaluate(evaluating)
    built = build.build(kinds[0], {"model": model, "data": [str(data)], "device": "cpu"})
    assert stored(Predictor.of_settings(built)) == STORED
    files = [str(records), str(tmp_path / "out.jsonl")]
    predict(kinds[1](model=model, files=files, device="cpu"))
    assert json.loads((tmp_path / "out.jsonl").read_text())["entities"] is not None
    own = registry.entry_of("ner").options_class()(scheme="bio", length=16, overlap=0)
    given = kinds[0](model=model, data=[str(data)], device="cpu", tagging=own)
    assert Predictor.of_settings(given).task.options == own


def test_a_model_of_another_task(places, data, capsys):
    for name in ("archive", "hub", "begun"):
        words = [f"--model={places[name]}", f"--data={data}", "--device=cpu"]
        assert command.main(["evaluate", "squad", *words]) == ConfigError.exit_code
        assert "was fine-tuned for ner, not for squad" in capsys.readouterr().err


def test_a_corpus_with_the_tokenizer_of_a_hub_name(places, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the film was good .\n\na story .\n\n" * 40)
    words = [str(text), "--workers=1"]
    assert command.main(["prepare", *words, "--tokenizer=acme/x", f"--output={tmp_path}/c"]) == 0
    corpus = prepare(PrepareConfig([str(text)], str(tmp_path / "c"), "acme/x", workers=1))
    ours = json.loads((corpus.tokenizer_dir / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = json.loads((places["folder"] / "tokenizer.json").read_text())["model"]["vocab"]
    assert ours == theirs
    capsys.readouterr()
    words = [str(text), "--tokenizer=acme/absent", f"--output={tmp_path}/other"]
    assert command.main(["prepare", *words]) == ConfigError.exit_code
    assert "acme/absent: no such file or directory here, and as a name" in capsys.readouterr().err
