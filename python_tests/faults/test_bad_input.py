"""Settings and files that cannot be used: one clear message, the right exit code, nothing
written.
"""

import gzip
import json
import subprocess
import sys

import pytest
from runs import pretrain_words


def names(command):
    """What lies in the command's directory, but for what it said."""
    return sorted(p.name for p in command.directory.iterdir() if not p.name.startswith("output-"))


def refused(command, code, *words):
    """The output of a command that must end with `code`, without a traceback and without a new
    file.
    """
    before = names(command)
    found, output = command.run(*words)
    assert found == code, output
    assert output.startswith("spanbert: error: ")
    assert "Traceback" not in output
    assert names(command) == before
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


def test_all_impossible_values_at_once(command, corpus):
    """One line for each, before any model is built: nothing heavy is loaded."""
    flat = {
        "masking.mask_ratio": (0, "masking.mask_ratio: must lie in (0, 1]; got 0.0"),
        "masking.min_words": (0, "masking.min_words: must be at least 1; got 0"),
        "model.heads": (5, "model.heads: 5 heads do not divide a hidden size of 32"),
        "batch.micro_rows": (3, "batch.micro_rows: 3 does not divide batch.rows 8"),
        "optimizer.warmup_steps": (31, "optimizer.warmup_steps: 31 steps of warm-up do not fit"),
        "optimizer.peak_lr": ("high", "optimizer.peak_lr: must be a number; got 'high'"),
        "checkpoint.keep": (0, "checkpoint.keep: must be at least 1; got 0"),
        "checkpoint.retries": (-1, "checkpoint.retries: must be at least 0; got -1"),
        "checkpoint.retry_seconds": (-2, "checkpoint.retry_seconds: must be at least 0"),
        "checkpoint.kepp": (2, "checkpoint.kepp: no such setting, did you mean checkpoint.keep?"),
    }
    changes = {name: value for name, (value, _) in flat.items()}
    output = refused(command, 2, *pretrain_words(corpus, **changes))
    assert f"{len(flat)} settings cannot be used" in output
    for _, line in flat.values():
        assert f"  - {line}" in output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["pretrain", "--masking.mask_ratio", "0"], "masking.mask_ratio: must lie in (0, 1]"),
        (["pretrain", "--model.heads", "5"], "model.heads: 5 heads do not divide"),
        (["pretrain", "--steps=10", "--optimizer.warmup_steps=11"], "optimizer.warmup_steps"),
        (["pretrain", "--batch.micro_rows", "7"], "batch.micro_rows: 7 does not divide"),
        (["pretrain", "--resume=never", "--weights_only=true"], "weights_only: nothing is"),
        (["pretrain", "--resume=never", "--strict_resume=true"], "strict_resume: nothing is"),
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


def test_a_missing_corpus(warm):
    output = refused(warm, 65, "pretrain", "--corpus", "absent", "--output", "run")
    assert "absent" in output


def test_a_missing_text(warm):
    assert "absent.txt" in refused(warm, 65, "prepare", "absent.txt", "--output", "corpus")


def test_faulty_texts_are_counted_by_kind(warm):
    """Everything that text files do wrong, at once: skipped and counted, or read as meant."""
    texts = warm.directory / "texts"
    texts.mkdir()
    good = [b"the small red house %d" % i for i in range(900)]
    faulty = (
        good[:300] + [b"bad \xff byte"] + good[300:600] + [b"nul \0", b"long " * 99] + good[600:]
    )
    written = {
        "a-faulty.txt": b"\n".join(faulty),
        "b-empty.txt": b"",
        "c-blank.txt": b" \n\t\r\n\n",
        "d-windows.txt": b"\xef\xbb\xbfone line\r\nand another\r\n\r\nx\r\n",
        "e-cut.txt.gz": gzip.compress(b"text that ends early\n" * 400)[:-20],
        "f-records.jsonl": b'{"text": "a record"}\n{"text": \n{"txt": "b"}\n',
    }
    for name, content in written.items():
        (texts / name).write_bytes(content)
    words = ["prepare", "texts", "--output", "corpus", "--vocab_size", 64, "--on_error"]
    output = refused(warm, 65, *words, "error", "--max_line_bytes", 400)
    assert "a-faulty.txt:301: not UTF-8: byte 0xff at column 5" in output
    code, output = warm.run(*words, "skip", "--max_line_bytes", 400)
    assert code == 0, output
    counts = json.loads((warm.directory / "corpus" / "corpus.json").read_text())["counts"]
    kinds = ("not_utf8", "nul", "long_line", "truncated_gzip", "bad_json", "no_text")
    assert counts["rejected"] == dict.fromkeys(sorted(kinds), 1)
    assert counts["empty_files"] == 2
    for kind in kinds:
        assert f"  {kind}: 1\n" in output


@pytest.mark.parametrize(
    ("pieces", "words", "code", "message"),
    [
        ("[PAD] [UNK] [CLS] the", [], 65, "[SEP], [MASK] missing; a BERT vocabulary has"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] The a The", [], 65, "'The' stands in line 6"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] The", ["--lowercase=true"], 2, "cased vocabulary would"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] the", [], 2, "set lowercase to true"),
    ],
)
def test_vocabularies_that_lose_text(warm, pieces, words, code, message):
    (warm.directory / "vocab.txt").write_text(pieces.replace(" ", "\n"))
    (warm.directory / "text.txt").write_text("The text")
    words = ["--output", "corpus", "--tokenizer", "vocab.txt", *words]
    assert message in refused(warm, code, "prepare", "text.txt", *words)


def test_export_does_not_overwrite(warm):
    (warm.directory / "run").mkdir()
    (warm.directory / "full").mkdir()
    (warm.directory / "full" / "file").write_text("x")
    assert "not an empty directory" in refused(warm, 2, "export", "run", "full")
    assert "no model here: expected a run" in refused(warm, 2, "export", "run", "new")


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
