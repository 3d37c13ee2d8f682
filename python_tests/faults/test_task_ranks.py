"""Fine-tuning in several processes: the same training as one, the same best model."""

import json

import pytest
import torch
from runs import Command, ranks
from safetensors.torch import load_file
from toy_tasks import sentiment_words, toy_model, toy_roberta

from spanbert_ext.training import checkpoint


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a toy BERT."""
    folder = tmp_path_factory.mktemp("ranks")
    toy_model(folder / "bert")
    return folder


def words_of(home, output, **changes):
    settings = {"dropout": 0, "max_steps": 20, "checkpoint.every": 10, "parallel.timeout": 60}
    return sentiment_words(changes.pop("model", home / "bert"), home, output, **settings | changes)


@pytest.fixture(scope="module")
def alone(home):
    """The run of one process."""
    code, said = Command(home, warm=True).run(*words_of(home, "alone"))
    assert code == 0, said
    return home / "alone"


def rows_of(run):
    """Events of metrics.jsonl that have numbers."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] in ("train", "validation")]


def check_equal(run, other):
    """Losses, gradient norms, evaluations and the best model."""
    for own, wanted in zip(rows_of(run), rows_of(other), strict=True):
        for name in wanted.keys() & {"loss", "grad_norm", "accuracy", "lr", "event", "step"}:
            wanted_value = wanted[name]
            if name in ("loss", "grad_norm"):
                wanted_value = pytest.approx(wanted_value, rel=1e-5)
            assert own[name] == wanted_value, (own, name)
    bests = [json.loads((r / "metrics.json").read_text())["best"] for r in (run, other)]
    assert bests[0] == bests[1]
    for folder in ("best", "step-0000020"):
        assert not checkpoint.find_fault(run / folder)
        own, wanted = (load_file(r / folder / "model.safetensors") for r in (run, other))
        assert own.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_two_processes_of_the_command(home, alone):
    code, said = Command(home).run(*words_of(home, "nproc"), "--nproc=2")
    assert code == 0, said
    assert "2 processes (ddp)" in said and said.count("best on dev, after step") == 1
    check_equal(home / "nproc", alone)
    code, said = Command(home, warm=True).run(*words_of(home, "nproc"), "--nproc=2")
    assert code == 0 and "nproc is finished; nothing to do\nbest on dev, after step" in said, said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [2, 3])
def test_micro_batches_of_any_number(home, alone, strategy, world):
    """So small that ranks have different numbers of them; three ranks leave one without."""
    name = f"{strategy}{world}"
    words = words_of(home, name, batch__micro_tokens=24, parallel__strategy=strategy)
    codes, said = ranks(home, world, *words)
    assert codes == [0] * world, said
    assert said[1:] == [""] * (world - 1)
    check_equal(home / name, alone)


def test_shares_of_another_encoder(home):
    """RoBERTa in its own classes: what the ranks hold in shares becomes one model again."""
    toy_roberta(home / "roberta", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    changes = {"model": home / "roberta", "optimizer__peak_lr": 1e-3}
    code, said = Command(home, warm=True).run(*words_of(home, "roberta-one", **changes))
    assert code == 0, said
    words = words_of(home, "roberta-two", parallel__strategy="fsdp", **changes)
    codes, said = ranks(home, 2, *words)
    assert codes == [0, 0], said
    check_equal(home / "roberta-two", home / "roberta-one")


def test_a_fault_is_reported_once(home):
    """Of a setting, of a file, of its features, of the model."""
    for change, code, message in (
        ({"model": home / "absent"}, 2, "absent: there is no such file"),
        ({"resume": "never", "output": "alone"}, 2, "already holds"),
        ({"train": home / "bert/config.json"}, 65, "the header names no columns"),
        ({"dev": home / "unlabelled.tsv"}, 65, "examples without a gold answer cannot choose"),
        ({"train": home / "long.tsv"}, 65, "has positions for 64: lower --glue.length"),
    ):
        (home / "unlabelled.tsv").write_text("sentence\na film\n")
        (home / "long.tsv").write_text("sentence\tlabel\n" + "good " * 80 + "\t1\nbad\t0\n")
        words = words_of(home, change.pop("output", "never"), **change)
        codes, said = ranks(home, 2, *words)
        assert codes == [code, code], said
        assert message in said[0] and "Traceback" not in said[0], said
        assert "error" not in said[1], said
