"""The command line: help, configuration files, verbs end to end."""

import dataclasses
import json
import resource
import subprocess
import sys

import pytest
import yaml

from spanbert_ext.cli.command import VERBS, main
from spanbert_ext.errors import Preempted
from spanbert_ext.settings.build import as_flat_dict, flatten, options
from spanbert_ext.training.config import DEMONSTRATION, PretrainConfig

HEAVY = ("torch", "transformers", "numpy", "tokenizers", "safetensors")


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_is_quick_and_loads_nothing_heavy(words):
    """CPU time of the whole process, so that a busy machine does not matter."""
    code = (
        "import sys; from spanbert_ext.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print('heavy:', [m for m in {HEAVY} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stdout.endswith("heavy: []\n")
    assert process.stdout.startswith("usage: spanbert")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1.0


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in options(PretrainConfig):
        assert f"--{option.name} " in text
        assert option.help.split(";")[0][:30] in text


def test_help_names_both_kinds_of_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "number of updates. [without --corpus: 1200] (whole number; default: 2400000)" in text
    assert "[without --corpus: spanbert-demo] (text; default: spanbert-run)" in text
    ours, demonstration = as_flat_dict(PretrainConfig()), as_flat_dict(DEMONSTRATION)
    assert text.count("[without --corpus: ") == sum(ours[n] != demonstration[n] for n in ours)


def printed_settings(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", *words, "--print_config"])
    assert left.value.code == 0
    return flatten(yaml.safe_load(capsys.readouterr().out))


def test_print_config_gives_the_defaults(capsys):
    found = printed_settings(capsys, "--corpus", "c")
    assert found == as_flat_dict(PretrainConfig(corpus="c"))


def test_without_a_corpus_the_demonstrations_defaults(capsys):
    assert printed_settings(capsys) == as_flat_dict(DEMONSTRATION)
    assert printed_settings(capsys, "--steps", "700")["steps"] == 700


def test_options_override_yaml_wherever_they_stand(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("corpus: c\nsteps: 50000\nmasking:\n  mask_ratio: 2e-1\n")
    for words in (
        ["--config", str(path), "--steps", "60000"],
        ["--steps", "60000", "--config", str(path)],
    ):
        found = printed_settings(capsys, *words)
        assert (found["corpus"], found["steps"], found["masking.mask_ratio"]) == ("c", 60000, 0.2)


def test_what_is_printed_can_be_read_again(capsys, tmp_path):
    first = printed_settings(
        capsys, "--corpus", "c", "--preset", "small", "--optimizer.eps", "1e-6"
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(first | {}))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({"corpus": "c", "preset": "small", "optimizer": {"eps": 1e-6}}))
    assert printed_settings(capsys, "--config", str(path)) == first


def test_overview_and_version(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {verb} " in overview for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spanbert_ext ")


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("torch", "numpy", "backend mode", "native cpu", "precision auto is"):
        assert part in text


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("prepare", "the same command goes on from what is finished"),
        ("pretrain", "the same command begins or continues the run"),
        ("predict", "the same command goes on from what is saved"),
        ("evaluate", "nothing was written; an evaluation begins anew"),
    ],
)
def test_ctrl_c_says_whether_the_command_goes_on(verb, said, monkeypatch, capsys):
    def interrupt(_words):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, verb, dataclasses.replace(VERBS[verb], run=interrupt))
    assert main([verb]) == 130
    assert capsys.readouterr().err == f"spanbert: interrupted; {said}\n"


def test_a_request_to_stop_is_no_error(monkeypatch, capsys):
    def stop(_words):
        raise Preempted("handed to Slurm, last job 5")

    monkeypatch.setitem(VERBS, "prepare", dataclasses.replace(VERBS["prepare"], run=stop))
    assert main(["prepare"]) == 75
    assert capsys.readouterr().err == "spanbert: handed to Slurm, last job 5\n"


def test_fill_names_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["fill", f"{tmp_path}/none", "a ___ b"]) == 2
    assert "none: there is no such directory; name a run" in capsys.readouterr().err


def test_help_is_in_groups_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert text.index("\nexamples:\n  spanbert pretrain --corpus corpus") < text.index(
        "--output OUTPUT"
    )
    assert "\nmasking:\n  How tokens are selected and corrupted" in text
    assert "--masking.scheme span|piece|word|entity|phrase\n" in text
    assert "--strict_resume [true|false]\n" in text
    assert "Literal" not in text and "default: None" not in text and "null)" not in text


TINY = [
    "--model.layers=1",
    "--model.hidden=32",
    "--model.heads=2",
    "--model.feed_forward=64",
    "--steps=3",
    "--optimizer.warmup_steps=1",
    "--batch.rows=4",
    "--batch.max_length=32",
    "--log_every=1",
    "--device=cpu",
]


def test_prepare_pretrain_export(tmp_path):
    """The three verbs in one fresh directory, in processes of their own, then plain
    transformers.
    """
    sentence = "A small house stood beside the old river. Children played there.\n"
    (tmp_path / "text.txt").write_text((sentence * 4 + "\n") * 30)

    def run(*words):
        process = subprocess.run(
            [sys.executable, "-m", "spanbert_ext", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    output = run("prepare", "text.txt", "--output", "corpus", "--vocab_size", "100")
    assert "30 documents" in output
    output = run("pretrain", "--corpus", "corpus", "--output", "run", *TINY)
    assert "step 3/3  mlm " in output
    assert "finished: run/step-0000003" in output
    assert "is finished" in run("pretrain", "--corpus", "corpus", "--output", "run", *TINY)
    assert "loads it without this package" in run("export", "run", "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "bert"
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "| documents | 30 |" in card
    assert "| steps | 3 |" in card
    code = (
        "from transformers import AutoModelForMaskedLM\n"
        "print(type(AutoModelForMaskedLM.from_pretrained('plain')).__name__)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "BertForMaskedLM"
