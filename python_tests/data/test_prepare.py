"""Text to corpus: every kind of input, every kind of fault, and nothing half written."""

import json
import logging
import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpora import PROSE, bytes_of, gzipped, small_corpus, write
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_ext.data import Corpus, PrepareConfig, prepare
from spanbert_ext.errors import ConfigError, DataError, StorageError

GOOD = b"one line here\nand another\n\na second document\n"


def run(folder: Path, name: str, content, **options):
    source = write(folder / "in" / name, content)
    options = {"vocab_size": 64, **options}
    return prepare(PrepareConfig([str(source)], str(folder / "out"), **options))


def text_of(corpus):
    """Documents as text without spaces (WordPiece does not keep them)."""
    pieces = corpus.vocabulary.texts
    return ["".join(pieces[i] for i in document) for document in corpus.documents]


def parquet(path: Path, column, name="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({name: column}), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.txt", GOOD, {}, ["onelinehereandanother", "aseconddocument"]),
        ("a.txt", GOOD, {"documents": "file"}, ["onelinehereandanotheraseconddocument"]),
        ("a.txt.gz", gzipped(GOOD), {}, ["onelinehereandanother", "aseconddocument"]),
        ("a.txt", GOOD.replace(b"\n", b"\r\n"), {}, ["onelinehereandanother", "aseconddocument"]),
        ("a.txt", b"\xef\xbb\xbf" + GOOD, {}, ["onelinehereandanother", "aseconddocument"]),
        ("a.txt", b" \n\t\n\nx\n \n\n\ny", {}, ["x", "y"]),
        ("a.jsonl", b'{"text": "b c"}\n\n{"text": ""}\n{"text": "d\\ne"}', {}, ["bc", "de"]),
        ("a.jsonl", b'{"body": "b c", "text": 1}\n', {"text_field": "body"}, ["bc"]),
        ("a.jsonl.gz", gzipped(b'{"text": "b c"}\n'), {}, ["bc"]),
    ],
)
def test_readers_literal(tmp_path, name, content, options, expected):
    corpus = run(tmp_path, name, content, **options)
    assert text_of(corpus) == expected
    corpus.verify()


def test_parquet(tmp_path):
    content = parquet(tmp_path / "t.parquet", ["b c"] * 600 + ["d"])
    corpus = run(tmp_path, "a.parquet", content)
    assert text_of(corpus) == ["bc"] * 600 + ["d"]
    assert corpus.sidecar["counts"]["records"] == 601


FAULTS = [
    ("a.txt", b"fine\nbad \xff byte\n", r"a.txt:2: not UTF-8: byte 0xff at column 5"),
    ("a.txt", b"fine\nbad \0 byte\n", r"a.txt:2: a NUL byte in the text;"),
    ("a.txt", "hello\n".encode("utf-16"), r"a.txt:1: a NUL byte in the text \(is it UTF-16\?\)"),
    ("a.txt", b"fine\n" + b"x" * 200 + b"\nfine\n", r"a.txt:2: a line of more than .* = 100 bytes"),
    ("a.txt.gz", gzipped(GOOD * 9)[:-20], r"a.txt.gz:\d+: truncated or damaged gzip"),
    ("a.txt.gz", GOOD, r"a.txt.gz:1: truncated or damaged gzip data \(Not a gzipped file"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl:2: not JSON"),
    ("a.jsonl", b'["text"]\n', r"a.jsonl:1: expected a JSON object, got list"),
    (
        "a.jsonl",
        b'{"txt": "a", "id": 1}\n',
        r"a.jsonl:1: no field 'text', fields there: 'txt', 'id'",
    ),
    ("a.jsonl", b"{}\n", r"a.jsonl:1: no field 'text', fields there: none"),
    ("a.jsonl", b'{"text": null}\n', r"a.jsonl:1: expected text in 'text', got nothing"),
    ("a.jsonl", b'{"text": 3}\n', r"a.jsonl:1: expected text in 'text', got int"),
    ("a.jsonl", b'{"text": "a\\u0000"}\n', r"a.jsonl:1: a NUL character"),
    ("a.jsonl", b'{"text": "a\\ud800"}\n', r"a.jsonl:1: a lone surrogate at character 2"),
    ("a.jsonl", b"[" * 90, r"a.jsonl:1: not JSON"),
    ("a.jsonl", b"1" * 90, r"a.jsonl:1: expected a JSON object, got int"),
    ("a.parquet", b"PAR1 not really", r"a.parquet:1: not a readable parquet file"),
    ("a.txt", b"", r"a.txt: no text in 1 file"),
    ("a.txt", b" \n\t\r\n\n", r"no visible text"),
    ("a.jsonl", b'{"text": " "}\n', r"no visible text"),
    ("a.csv", b"text\n", r"a.csv: unknown kind of file; expected .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_faulty_input_is_one_clear_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        run(tmp_path, name, content, max_line_bytes=100)
    assert re.search(message if content != b"" else "no", str(caught.value))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["in"]


def test_faulty_parquet(tmp_path):
    with pytest.raises(DataError, match="no column 'text'; it has body: choose with text_field"):
        run(tmp_path, "a.parquet", parquet(tmp_path / "t.parquet", ["a"], name="body"))
    with pytest.raises(DataError, match="column 'text' holds int64, expected string"):
        run(tmp_path, "a.parquet", parquet(tmp_path / "t.parquet", [1]))
    with pytest.raises(DataError, match=r"a.parquet:2: expected text .* got nothing"):
        run(tmp_path, "a.parquet", parquet(tmp_path / "t.parquet", ["a", None]))
    with pytest.raises(DataError, match=r"a.parquet:1: a value of more than max_line_bytes = 10"):
        run(tmp_path, "a.parquet", parquet(tmp_path / "t.parquet", ["a" * 11]), max_line_bytes=10)
    content = parquet(tmp_path / "t.parquet", ["some text"] * 3000)
    with pytest.raises(DataError, match=r"a.parquet:\d+: not a readable parquet file"):
        run(tmp_path, "a.parquet", content[:50] + content[60:])
    assert not (tmp_path / "out").exists()


def test_missing_inputs(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or directory"):
        prepare(PrepareConfig([str(tmp_path / "nowhere")], str(tmp_path / "out")))
    with pytest.raises(DataError, match="no .txt, .* file in this directory"):
        prepare(PrepareConfig([str(tmp_path)], str(tmp_path / "out")))
    source = str(write(tmp_path / "a.txt", GOOD))
    with pytest.raises(ConfigError, match="named twice"):
        prepare(PrepareConfig([source, str(tmp_path)], str(tmp_path / "out")))


def test_impossible_settings_are_all_named():
    config = PrepareConfig([], "", vocab_size=3, documents="page", min_frequency=0)
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "inputs",
        "output",
        "documents",
        "vocab_size",
        "min_frequency",
    ]


def test_skipped_records_are_listed(tmp_path):
    lines = [b"line %d" % i for i in range(300)]
    lines[100] = b"\xff"
    lines[200] = b"x" * 200
    content = b"\n".join(lines)
    corpus = run(tmp_path, "a.txt", content, on_error="skip", max_line_bytes=100)
    assert corpus.num_documents == 3  # a document ends where a line is missing
    rejects = [
        json.loads(line) for line in (corpus.path / "rejects.jsonl").read_text().splitlines()
    ]
    assert [(r["file"], r["line"], r["kind"]) for r in rejects] == [
        ("a.txt", 101, "not_utf8"),
        ("a.txt", 201, "long_line"),
    ]
    assert corpus.sidecar["counts"]["rejected"] == {"long_line": 1, "not_utf8": 1}
    assert corpus.summary() == (
        "3 documents, 864 pieces (0.00% unknown), vocabulary of 56\n"
        "read: 1 files, 0.0 MB, 300 lines or records; 0 files and 0 documents were empty\n"
        "faulty records skipped: 2 (0.67%)\n"
        "  long_line: 1\n"
        "  not_utf8: 1"
    )


@pytest.mark.parametrize("length", [9, 10, 11, 12, 13, 500])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_line_after_a_long_one_is_read(tmp_path, length, end):
    lines = [b"z" * length, *[b"fine"] * 200]
    corpus = run(tmp_path, "a.txt", end.join(lines), on_error="skip", max_line_bytes=10)
    assert corpus.sidecar["counts"]["rejected"] == ({"long_line": 1} if length > 10 else {})
    assert text_of(corpus) == ["z" * length * (length <= 10) + "fine" * 200]


def test_too_many_rejects_stop(tmp_path):
    content = b"\n".join([b"fine"] * 98 + [b"\xff", b"\0"])
    with pytest.raises(
        DataError, match=r"2 of 100 records are faulty \(not_utf8 1, nul 1\).*/a.txt:99"
    ):
        run(tmp_path, "a.txt", content, on_error="skip")
    assert os.listdir(tmp_path) == ["in"]


def test_empty_files_are_counted(tmp_path):
    write(tmp_path / "in" / "a.txt", "")
    write(tmp_path / "in" / "b.txt", "\n \n")
    write(tmp_path / "in" / "c" / "d.txt", "x")
    write(tmp_path / "in" / ".hidden.txt", "y")
    corpus = prepare(PrepareConfig([str(tmp_path / "in")], str(tmp_path / "out"), vocab_size=64))
    assert corpus.sidecar["counts"]["empty_files"] == 2
    assert [entry["name"] for entry in corpus.sidecar["inputs"]] == ["a.txt", "b.txt", "c/d.txt"]
    assert text_of(corpus) == ["x"]


def test_a_long_line_is_refused_in_little_memory(tmp_path):
    path = tmp_path / "huge.txt.gz"
    path.write_bytes(gzipped(b"a" * (1 << 20)) * 1024)  # members of one stream: a gigabyte
    code = (
        "import sys; from spanbert_ext.data import prepare, PrepareConfig\n"
        "from spanbert_ext.errors import DataError\n"
        "try: prepare(PrepareConfig([sys.argv[1]], sys.argv[2]))\n"
        "except DataError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20)),
    )
    assert "huge.txt.gz:1: a line of more than max_line_bytes" in result.stdout, result.stderr
    assert not (tmp_path / "out").exists()


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), max_size=6)
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("any")
    try:
        corpus = run(folder, "a.txt", b"\n".join(parts))
    except DataError:
        assert os.listdir(folder) == ["in"]
    else:
        corpus.verify()
        assert corpus.num_tokens >= corpus.num_documents > 0


def test_layout_is_datatroves(corpus):
    shard = corpus.path / "tokens" / "00000.ds"
    tokens = np.fromfile(shard, "<u2")
    ends = np.fromfile(shard.with_name("00000.ds.index"), "<u8")
    assert tokens.size == corpus.num_tokens == ends[-1]
    assert np.array_equal(corpus.documents[1], tokens[int(ends[0]) : int(ends[1])])
    name, width, count, _ = re.split(
        r"[|\n]", (corpus.path / "tokens/00000.ds.metadata").read_text()
    )
    assert (name, int(width), int(count)) == ("tokenizer", 2, tokens.size)
    assert len(corpus.documents) == ends.size
    assert np.array_equal(corpus.documents[-1], corpus.documents[len(ends) - 1])
    with pytest.raises(IndexError):
        corpus.documents[ends.size]


def test_large_vocabularies_take_four_bytes(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"X{i}" for i in range(70000))]
    vocab = write(tmp_path / "vocab.txt", "\n".join(pieces))
    corpus = run(tmp_path, "a.txt", "X1 X69999", tokenizer=str(vocab))
    assert corpus.documents[0].tolist() == [6, 70004]
    assert (corpus.path / "tokens/00000.ds").read_bytes() == bytes([6, 0, 0, 0, 0x74, 0x11, 1, 0])


def test_output_depends_on_text_and_settings_alone(tmp_path):
    one, two = small_corpus(tmp_path / "a"), small_corpus(tmp_path / "elsewhere" / "b")
    assert bytes_of(one.path) == bytes_of(two.path)
    other = small_corpus(tmp_path / "c", PROSE + " more")
    assert other.fingerprint != one.fingerprint


def test_finished_output_is_left_alone(tmp_path, caplog):
    corpus = small_corpus(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in corpus.path.rglob("*")}
    with caplog.at_level(logging.INFO, "spanbert_ext"):
        again = small_corpus(tmp_path)
    assert "there already" in caplog.text
    assert again.fingerprint == corpus.fingerprint
    assert {p: p.stat().st_mtime_ns for p in corpus.path.rglob("*")} == before
    with pytest.raises(ConfigError, match="made otherwise.*vocab_size: 400 there, 300 asked"):
        small_corpus(tmp_path, vocab_size=300)
    with pytest.raises(ConfigError, match="made otherwise.*inputs: text.txt differ"):
        small_corpus(tmp_path, PROSE + "!")
    Corpus.open(tmp_path / "out").verify()


def test_other_directories_are_not_overwritten(tmp_path):
    write(tmp_path / "out" / "thesis.tex", "years of work")
    with pytest.raises(ConfigError, match="not empty and holds no corpus"):
        run(tmp_path, "a.txt", GOOD)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    (tmp_path / "out" / "thesis.tex").unlink()
    assert run(tmp_path, "a.txt", GOOD).num_documents == 2
    file = str(write(tmp_path / "file", ""))
    with pytest.raises(ConfigError, match="is a file"):
        prepare(PrepareConfig([str(tmp_path / "in" / "a.txt")], file))


def test_output_inside_the_input_is_not_read(tmp_path):
    write(tmp_path / "a.txt", GOOD)
    config = PrepareConfig([str(tmp_path)], str(tmp_path / "corpus"), vocab_size=64)
    first = prepare(config).fingerprint
    assert prepare(config).fingerprint == first


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_rises_to_the_total_of_each_pass(tmp_path, workers):
    calls = {}
    source = write(tmp_path / "a.txt", ("some more text " * 20 + "\n\n") * 11000)
    size = source.stat().st_size
    options = {"vocab_size": 64, "workers": workers, "unit_bytes": 1 << 21}
    prepare(
        PrepareConfig([str(source)], str(tmp_path / "out"), **options),
        progress=lambda doing, *how_far: calls.setdefault(doing, []).append(how_far),
    )
    assert [*calls] == ["counting words", "encoding"]
    for pass_ in calls.values():
        done = [d for d, _ in pass_]
        assert done == sorted(done)
        assert len(set(done)) > 3
        assert (done[0], pass_[-1]) == (0, (size, size))


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_file_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        corpus = run(tmp_path, "a.txt", GOOD)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in corpus.path.rglob("*") if p.is_file()}
    assert modes == {0o666 & ~umask}


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "tokens")

    with monkeypatch.context() as patched:
        patched.setattr("spanbert_ext.data.work._encode_batch", full)
        with pytest.raises(
            StorageError, match=r"cannot be written: No space left.*stays in .*/\.out\.staging"
        ):
            run(tmp_path, "a.txt", GOOD)
    assert sorted(os.listdir(tmp_path)) == [".out.staging", "in"]
    assert run(tmp_path, "a.txt", GOOD).num_documents == 2
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_where_nothing_can_be_written_nothing_is_promised(tmp_path):
    source = write(tmp_path / "a.txt", GOOD)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written: .*; nothing was written$"):
        prepare(PrepareConfig([str(source)], str(tmp_path / "file" / "out"), vocab_size=64))
