"""A damaged corpus is noticed, and a killed `prepare` leaves no trace in the result."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from corpora import PROSE, small_corpus, write

from spanbert_ext.data import Corpus, PrepareConfig, prepare
from spanbert_ext.data.storage import staged_directory
from spanbert_ext.errors import ConfigError, DataError

PREPARE = """
import sys
from spanbert_ext.data import PrepareConfig, prepare
prepare(PrepareConfig([sys.argv[1]], sys.argv[2], vocab_size=500, shard_tokens=5000))
"""


def change(path, edit):
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("tokens/00000.ds", lambda d: d.pop(), "00000.ds: .* bytes where .* were written"),
        ("tokens/00000.ds.index", lambda d: d.pop(), "00000.ds.index: .* bytes where"),
        ("tokenizer/tokenizer.json", lambda d: d.pop(), "tokenizer.json: .* bytes where"),
        (
            "tokens/00000.ds.index",
            lambda d: d.__setitem__(slice(0, 8), d[8:16]),
            "00000.ds.index: document ends must rise strictly",
        ),
        (
            "tokens/00000.ds.index",
            lambda d: d.__setitem__(slice(0, 8), bytes(8)),
            "00000.ds.index: document ends must rise strictly",
        ),
        ("tokens/00000.ds.index", lambda d: d.__setitem__(-1, 255), "rise strictly"),
        ("corpus.json", lambda d: d.pop(0), "not a JSON file"),
        ("corpus.json", lambda d: d.__setitem__(slice(None), b"[]"), "expected a JSON object"),
        ("corpus.json", lambda d: d.__setitem__(slice(None), b"{}"), "format version None"),
        (
            "corpus.json",
            lambda d: d.__setitem__(slice(None), b'{"format_version": 1}'),
            "damaged .KeyError",
        ),
    ],
)
def test_damage_is_noticed_at_open(tmp_path, name, edit, message):
    corpus = small_corpus(tmp_path)
    change(corpus.path / name, edit)
    with pytest.raises(DataError, match=message):
        Corpus.open(corpus.path)


def test_counts_must_add_up(tmp_path):
    corpus = small_corpus(tmp_path)
    sidecar = json.loads((corpus.path / "corpus.json").read_text())
    sidecar["counts"]["documents"] += 1
    write(corpus.path / "corpus.json", json.dumps(sidecar))
    with pytest.raises(DataError, match="do not add up"):
        Corpus.open(corpus.path)


def test_a_flipped_bit_is_noticed_by_verify(tmp_path):
    corpus = small_corpus(tmp_path)
    names = list(corpus.sidecar["files"])
    assert {"tokens/00000.ds", "tokens/00000.ds.index", "tokenizer/vocab.txt"} <= set(names)
    for name in names:
        file = corpus.path / name
        original = file.read_bytes()
        change(file, lambda data: data.__setitem__(len(data) // 2, data[len(data) // 2] ^ 1))
        with pytest.raises(DataError, match=f"{file.name}: digest"):
            corpus.verify()
        file.write_bytes(original)
    corpus.verify()


def test_a_missing_file_or_corpus_is_named(tmp_path):
    corpus = small_corpus(tmp_path)
    (corpus.path / "tokens/00000.ds").unlink()
    with pytest.raises(DataError, match="00000.ds: missing"):
        Corpus.open(corpus.path)
    with pytest.raises(DataError, match="no corpus here"):
        Corpus.open(tmp_path)


def test_mapped_tokens_are_read_only(corpus):
    assert isinstance(corpus.shards[0].tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.read(0, 1)[0] = 1


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_killed_and_repeated_equals_clean(tmp_path):
    source = write(tmp_path / "in" / "text.txt", PROSE * 20)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}

    def command(output):
        return [sys.executable, "-c", PREPARE, str(source), str(tmp_path / output)]

    begin = time.monotonic()
    subprocess.run(command("clean"), check=True, env=environment)
    duration = time.monotonic() - begin
    clean = contents(tmp_path / "clean")
    assert len([name for name in clean if name.suffix == ".ds"]) > 2
    moments = random.Random(7)
    killed = 0
    for _ in range(8):
        child = subprocess.Popen(command("out"), env=environment)
        time.sleep(moments.uniform(0.1, 1.0) * duration)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == clean
    assert killed > 0
    subprocess.run(command("out"), check=True, env=environment)
    assert contents(tmp_path / "out") == clean
    assert sorted(os.listdir(tmp_path)) == ["clean", "in", "out"]


KILL_POINTS = {
    "before the tokens": "spanbert_ext.data.preparation._encode",
    "after the tokens": "spanbert_ext.data.token_files.TokenWriter.finish",
    "before the sidecar": "spanbert_ext.data.preparation._describe_files",
    "before the rename": "os.rename",
}
KILL = """
import os, signal, sys, unittest.mock
import spanbert_ext.data.preparation
die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
unittest.mock.patch(sys.argv[3], die).start()
"""


@pytest.mark.parametrize("target", KILL_POINTS.values(), ids=KILL_POINTS.keys())
def test_killed_at_a_chosen_point(tmp_path, target):
    source = write(tmp_path / "in" / "text.txt", PROSE)
    arguments = [str(source), str(tmp_path / "out"), target]
    child = subprocess.run([sys.executable, "-c", KILL + PREPARE, *arguments], check=False)
    assert child.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".out.staging", "in"]
    write(tmp_path / ".out.staging" / "tokens" / "99999.ds", "left over")
    settings = {"vocab_size": 500, "shard_tokens": 5000}
    for name in ("out", "clean"):
        prepare(PrepareConfig([str(source)], str(tmp_path / name), **settings))
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    assert sorted(os.listdir(tmp_path)) == ["clean", "in", "out"]


def test_a_second_writer_is_refused(tmp_path):
    source = write(tmp_path / "in" / "a.txt", "some text")
    with staged_directory(tmp_path / "out") as staging:
        write(staging / "file", "theirs")
        with pytest.raises(ConfigError, match="another process is writing"):
            prepare(PrepareConfig([str(source)], str(tmp_path / "out"), vocab_size=64))
        assert (staging / "file").exists()
    assert contents(tmp_path / "out").keys() == {(tmp_path / "file").relative_to(tmp_path)}


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_sync, real_rename = os.fsync, os.rename

    def record_sync(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def record_rename(source, target):
        calls.append(("rename", str(target)))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    with staged_directory(tmp_path / "out") as staging:
        write(staging / "folder" / "file", "x")
    hidden = str(tmp_path / ".out.staging")
    assert calls == [
        ("sync", hidden + "/folder/file"),
        ("sync", hidden + "/folder"),
        ("sync", hidden),
        ("rename", str(tmp_path / "out")),
        ("sync", str(tmp_path)),
    ]
