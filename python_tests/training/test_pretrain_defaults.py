"""What holds where a setting is not given: lowered for short runs and small corpora, and said."""

import logging

import pytest

from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.settings.build import build
from spanbert_ext.training.config import DEMONSTRATION, ModelOptions, PretrainConfig
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.pretrain_defaults import lowered_rows, pretrain_defaults
from spanbert_ext.training.state import read_state

MODEL = [f"--model.{name}" for name in ("layers=1", "hidden=8", "heads=2", "feed_forward=16")]


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [(None, 10_000), (2_400_000, 10_000), (10_000, 10_000), (9_999, 999), (30, 3), (1, 0)],
)
def test_warm_up_of_a_run(steps, warmup):
    """The published one wherever it fits, as runs of earlier versions have it."""
    given = {"corpus": "c"} | ({} if steps is None else {"steps": steps})
    config = build(PretrainConfig, given, pretrain_defaults(given))
    assert config.optimizer.warmup_steps == warmup
    assert config.optimizer.peak_lr == PretrainConfig().optimizer.peak_lr


def test_warm_up_of_the_demonstration():
    assert pretrain_defaults({}) == DEMONSTRATION
    assert pretrain_defaults({"steps": 50}).optimizer.warmup_steps == 5


def test_a_given_warm_up_is_never_changed():
    given = {"corpus": "c", "steps": 30, "optimizer.warmup_steps": 40}
    with pytest.raises(
        ConfigError, match=r"do not fit into 30 steps; `--optimizer.warmup_steps 3`"
    ):
        build(PretrainConfig, given, pretrain_defaults(given))


def test_a_small_corpus_and_a_short_run_just_work(corpus_dir, tmp_path, capsys):
    words = ["pretrain", f"--corpus={corpus_dir}", "--steps=20", f"--output={tmp_path}/run"]
    words += [*MODEL, "--batch.max_length=128", "--device=cpu", "--precision=fp32"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert (
        "optimizer.warmup_steps: the default, 10000, does not fit into 20 steps; taking 2" in said
    )
    rows = int(said.partition(" fills ")[2].split()[0])
    assert f"fills {rows} rows of 128 tokens, fewer than the default, 256; taking {rows}" in said
    settings = read_state(tmp_path / "run" / "step-0000020").settings
    assert (settings["batch.rows"], settings["optimizer.warmup_steps"]) == (rows, 2)
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_given_rows_are_never_changed(corpus_dir, tmp_path, capsys):
    """The message has the words to type, and what it says is true; nothing is left behind."""
    words = ["pretrain", f"--corpus={corpus_dir}", "--steps=1", "--batch.max_length=128"]
    words += [*MODEL, "--device=cpu", f"--output={tmp_path}/new/run"]
    assert main([*words, "--batch.rows=256"]) == 65
    said = capsys.readouterr().err
    assert "fills" in said and not (tmp_path / "new").exists()
    rows = said.partition("`--batch.rows ")[2].partition("`")[0]
    assert main([*words, f"--batch.rows={rows}"]) == 0


def test_rows_are_lowered_to_what_processes_and_parts_can_share(tiny, change, monkeypatch):
    monkeypatch.setattr(logging.getLogger("spanbert_ext"), "handlers", [])

    def lowered(**settings):
        return lowered_rows(change(tiny, **settings)).batch.rows

    most = lowered(**{"batch.rows": 4096, "batch.micro_rows": None})
    assert 8 < most < 4096
    assert lowered(**{"batch.rows": 4096, "batch.micro_rows": 7}) == most - most % 7
    assert lowered(**{"batch.rows": 4096, "batch.micro_rows": 3, "nproc": 2}) == most - most % 6
    assert lowered(**{"batch.rows": most}) == most
    assert lowered(**{"batch.rows": 4096, "batch.micro_rows": 128}) == 4096
    with pytest.raises(DataError, match=rf"fills {most} rows"):
        pretrain(change(tiny, **{"batch.rows": 4096, "batch.micro_rows": 128}))


def test_a_refused_start_leaves_no_directory(tiny, change, tmp_path):
    """But one that was there stays, and so does what is in it."""
    refused = change(tiny, init=str(tmp_path / "nothing"), output=str(tmp_path / "a/b/run"))
    with pytest.raises(ConfigError, match="nothing"):
        pretrain(change(refused, model=ModelOptions()))
    assert not (tmp_path / "a").exists()
    (tmp_path / "a" / "b" / "run").mkdir(parents=True)
    with pytest.raises(ConfigError):
        pretrain(change(refused, model=ModelOptions()))
    assert (tmp_path / "a" / "b" / "run").is_dir()


def test_the_demonstration_looks_for_its_device_first(tmp_path, capsys):
    assert main(["pretrain", "--device=cuda:99", f"--output={tmp_path}/demo"]) == 2
    assert "device cuda:99 is not there" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
