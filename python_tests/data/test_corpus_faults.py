"""A damaged corpus is noticed, and a directory appears whole or not at all."""

import json
import os

import numpy as np
import pytest
from corpora import small_corpus, write

from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, prepare
from spanbert_ext.data.storage import locked_staging, publish
from spanbert_ext.errors import ConfigError, DataError


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


def test_an_impossible_id_is_a_named_fault(tmp_path):
    """Damage that only `verify` would look for must not end in an IndexError of training."""
    corpus = small_corpus(tmp_path, shard_tokens=4000)
    last = len(corpus.shards) - 1
    assert last > 1
    change(corpus.shards[last].path, lambda data: data.__setitem__(101, 255))
    message = f"0000{last}.ds: id [0-9]+ at piece 50 where the vocabulary has 400"
    rows = PackedRows(corpus, 4096, validation_fraction=0.0)
    with pytest.raises(DataError, match=message):
        rows.batch(range(len(rows)))
    with pytest.raises(DataError, match=message):
        rows.padded_tokens(0, len(rows))
    with pytest.raises(DataError, match=message):
        PackedRows(corpus, 16)


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


def test_a_second_writer_is_refused(tmp_path):
    source = write(tmp_path / "in" / "a.txt", "some text")
    with locked_staging(tmp_path / "out") as staging:
        write(staging / "file", "theirs")
        with pytest.raises(ConfigError, match="another process is writing"):
            prepare(PrepareConfig([str(source)], str(tmp_path / "out"), vocab_size=64))
        assert (staging / "file").exists()
    assert not (tmp_path / "out").exists()


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
    write(tmp_path / "staging" / "folder" / "file", "x")
    publish(tmp_path / "staging", tmp_path / "out")
    hidden = str(tmp_path / "staging")
    assert calls == [
        ("sync", hidden + "/folder/file"),
        ("sync", hidden + "/folder"),
        ("sync", hidden),
        ("rename", str(tmp_path / "out")),
        ("sync", str(tmp_path)),
    ]
