"""Checkpoints that are damaged or incomplete, and runs continued with other settings or data."""

import json
import random
import shutil

import pytest
from kill_harness import final_files
from runs import pretrain_words, write_text

from spanbert_ext.training import checkpoint


@pytest.fixture
def run(tmp_path, clean):
    """A copy of the finished run with its checkpoints of steps 25 and 30."""
    return shutil.copytree(clean.run, tmp_path / "run")


@pytest.fixture
def unfinished(run):
    """The same run as if it had been killed before its last checkpoint: step 25 alone."""
    shutil.rmtree(run / "step-0000030")
    return run


def damages(content, draw):
    """The content cut short, as zeros, and with one bit flipped at each of 20 places."""
    yield content[: len(content) * 2 // 3]
    yield bytes(len(content))
    for _ in range(20):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)


def test_damage_of_every_file_is_found(run):
    """It is named with both digests or sizes; a flipped bit of the manifest that is not noticed
    leaves what it says about the files as it was.
    """
    step, draw = run / "step-0000030", random.Random(5)
    paths = sorted(path for path in step.iterdir())
    assert len(paths) >= 9
    for path in paths:
        content, digest = path.read_bytes(), checkpoint.digest_file(path)
        for damaged in damages(content, draw):
            path.write_bytes(damaged)
            fault = checkpoint.find_fault(step)
            if path.name == checkpoint.MANIFEST:
                assert fault or json.loads(damaged)["files"] == json.loads(content)["files"]
            elif len(damaged) < len(content):
                assert f"{path.name} has {len(damaged)} bytes, {len(content)} were" in fault
            else:
                found = checkpoint.digest_file(path)
                assert f"{path.name} has digest {found}, {digest} was written" in fault
        path.write_bytes(content)
    assert checkpoint.find_fault(step) == ""


def test_a_damaged_newest_checkpoint(warm, corpus, clean, run):
    """The one before it is continued to the same bits; `strict_resume` stops instead."""
    path = run / "step-0000030" / "model.safetensors"
    digest = checkpoint.digest_file(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    fault = f"model.safetensors has digest {checkpoint.digest_file(path)}, {digest} was written"
    code, output = warm.run(*pretrain_words(corpus, strict_resume="true"))
    assert code == 74, output
    assert f"checkpoint run/step-0000030 is damaged: {fault}" in output
    code, output = warm.run(*pretrain_words(corpus))
    assert code == 0, output
    assert f"passing over checkpoint run/step-0000030: {fault}" in output
    assert "continuing run/step-0000025: step 25" in output
    assert final_files(run) == clean.files


@pytest.mark.parametrize(
    "name", ["optimizer.safetensors", "rng-0.safetensors", "state.json", "config.json"]
)
def test_a_missing_file(warm, corpus, clean, unfinished, name):
    """Nothing starts silently anew; `weights_only` is the way on without moments and generators,
    and the same command then continues what it has saved.
    """
    words = pretrain_words(corpus, checkpoint__every=1)
    (unfinished / "step-0000025" / name).unlink()
    before = sorted(unfinished.rglob("*"))
    code, output = warm.run(*words)
    assert code == 74, output
    assert f"passing over checkpoint run/step-0000025: {name} is missing" in output
    optional = name.endswith("safetensors")
    assert ("weights_only true continues with its weights" in output) == optional
    assert sorted(unfinished.rglob("*")) == before
    words.append("--weights_only=true")
    code, output = warm.run(*words, fail_point="after_commit")
    if not optional:
        assert code == 74, output
        return
    assert f"run/step-0000025: {name} is missing; continuing with its weights" in output
    code, output = warm.run(*words)
    assert code == 0, output
    assert "continuing run/step-0000026" in output
    assert "anew" not in output
    assert final_files(unfinished) != clean.files


def test_weights_only_takes_a_whole_checkpoint_whole(warm, corpus, clean, unfinished):
    code, output = warm.run(*pretrain_words(corpus, weights_only="true"))
    assert code == 0, output
    assert final_files(unfinished) == clean.files


def test_other_settings(warm, corpus, clean, unfinished):
    """Those that change the mathematics are refused, all at once with both values; those that do
    not may change.
    """
    changes = {"seed": 1, "batch__rows": 4, "optimizer__peak_lr": 5e-4, "loss__kind": "paper"}
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    code, output = warm.run(*pretrain_words(corpus, **changes))
    assert code == 2, output
    for line in (
        "seed was 0, is 1",
        "batch.rows was 8, is 4",
        "optimizer.peak_lr was 0.001, is 0.0005",
        "loss.kind was code, is paper",
    ):
        assert f"  - {line}\n" in output
    after = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    assert {path for path in before | after if before.get(path) != after.get(path)} <= {
        unfinished / ".lock"
    }
    free = {"log_every": 7, "checkpoint__every": 4, "checkpoint__keep": 1, "validation__every": 2}
    code, output = warm.run(*pretrain_words(corpus, **free))
    assert code == 0, output
    assert final_files(unfinished) == clean.files


def test_another_corpus_or_vocabulary(warm, corpus, unfinished, tmp_path):
    home = tmp_path / "other"
    home.mkdir()
    write_text(home / "text.txt", seed=1)
    words = ["--output", "other/corpus", "--tokenizer", corpus / "tokenizer"]
    code, output = warm.run("prepare", home / "text.txt", *words, "--validation_fraction", 0.1)
    assert code == 0, output
    old, new = (
        json.loads((path / "corpus.json").read_text())["fingerprint"]
        for path in (corpus, home / "corpus")
    )
    code, output = warm.run(*pretrain_words(home / "corpus"))
    assert code == 2, output
    assert f"the corpus had fingerprint {old}, has {new}" in output

    copy = shutil.copytree(corpus, tmp_path / "swapped-shard")
    shutil.copy(home / "corpus" / "tokens" / "00000.ds", copy / "tokens" / "00000.ds")
    code, output = warm.run(*pretrain_words(copy))
    assert code == 2, output
    stored = json.loads((unfinished / "step-0000025" / "state.json").read_text())
    line = f"the corpus's token files had the sample digest {stored['corpus_sample']}, have "
    assert line in output

    copy = shutil.copytree(corpus, tmp_path / "swapped-pieces")
    for name, (one, two) in {
        "vocab.txt": ("\nriver\n", "\nhouse\n"),
        "tokenizer.json": ('"river"', '"house"'),
    }.items():
        text = (copy / "tokenizer" / name).read_text()
        swapped = text.replace(one, "\0").replace(two, one).replace("\0", two)
        assert swapped != text
        (copy / "tokenizer" / name).write_text(swapped)
    code, output = warm.run(*pretrain_words(copy))
    assert code == 2, output
    assert f"the tokenizer had hash {stored['vocabulary']}, has " in output
