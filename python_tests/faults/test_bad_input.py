"""Settings and files that cannot be used: one clear message, the right exit code, nothing
written.
"""

import os
import subprocess
import sys

import pytest


def refused(command, code, *words):
    """The output of a command that must end with `code`, without a traceback and without a new
    file.
    """
    before = sorted(os.listdir(command.directory))
    found, output = command.run(*words)
    assert found == code, output
    assert output.startswith("spanbert: error: ")
    assert "Traceback" not in output
    assert sorted(os.listdir(command.directory)) == before
    return output


def test_all_unknown_names_of_both_sources(command):
    (command.directory / "bad.yaml").write_text(
        "masking:\n  mask_rate: 0.2\nbatch:\n  rows: few\nstepz: 3\n"
    )
    words = ("pretrain", "--config", "bad.yaml", "--learning_rate", "1", "--corpus", "c")
    output = refused(command, 2, *words)
    assert "4 settings cannot be used" in output
    assert "masking.mask_rate: no such setting, did you mean masking.mask_ratio?" in output
    assert "stepz: no such setting, did you mean steps?" in output
    assert "batch.rows: must be a whole number; got 'few'" in output
    assert "learning_rate: no such setting" in output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["pretrain", "--masking.mask_ratio", "0"], "masking.mask_ratio: must lie in (0, 1]"),
        (["pretrain", "--model.heads", "5"], "model.heads: 5 heads do not divide"),
        (["pretrain", "--steps", "10"], "optimizer.warmup_steps"),
        (["pretrain", "--batch.micro_rows", "7"], "batch.micro_rows: 7 does not divide"),
        (["pretrain", "--steps"], "--steps: a value is required"),
        (["bench", "--step"], "did you mean steps?"),
        (["prepare", "text.txt", "-o", "x"], "-o: no such option"),
        (["pretrain", "corpus"], "unexpected argument 'corpus'"),
        (["pretrain", "--config", "absent.yaml"], "--config absent.yaml: No such file"),
        (["pretrian"], "did you mean pretrain?"),
        (["prepare", "--output", "x"], "inputs: a value is required"),
        (["export", "only-one"], "expected a model, a directory"),
        (["export", "absent", "out"], "absent: there is no such file"),
        (["doctor", "please"], "takes no arguments"),
    ],
)
def test_bad_settings(command, words, part):
    assert part in refused(command, 2, *words)


@pytest.mark.parametrize(
    "content", ["- a\n- b\n", "a: [", "\xff\xfe", "!!python/object/apply:os.system ['touch x']"]
)
def test_files_that_are_no_settings(command, content):
    (command.directory / "bad.yaml").write_bytes(content.encode("latin-1"))
    assert "--config bad.yaml" in refused(command, 2, "pretrain", "--config", "bad.yaml")


def test_a_missing_corpus(command):
    output = refused(command, 65, "pretrain", "--corpus", "absent", "--output", "run")
    assert "absent" in output


def test_a_missing_text(command):
    assert "absent.txt" in refused(command, 65, "prepare", "absent.txt", "--output", "corpus")


def test_export_does_not_overwrite(command):
    (command.directory / "run").mkdir()
    (command.directory / "full").mkdir()
    (command.directory / "full" / "file").write_text("x")
    assert "not an empty directory" in refused(command, 2, "export", "run", "full")
    assert "no model here: expected a run" in refused(command, 2, "export", "run", "new")


def test_debug_shows_the_traceback(command):
    code, output = command.run("pretrain", "--steps", "0", "--debug")
    assert code != 0
    assert "Traceback" in output
    assert "ConfigError" in output


def test_bad_settings_are_found_before_torch_loads(command):
    code = (
        "import sys; from spanbert_ext.cli import main\n"
        "code = main(['pretrain', '--stepz', '3', '--masking.mask_ratio', '2', '--corpus', 'c'])\n"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert process.returncode == 2, process.stderr
