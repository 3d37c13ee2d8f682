"""Output whose reader leaves, whose disk is full, or whose encoding lacks a character."""

import io
import os
import sys

import pytest

from spanbert_ext.cli.console import patient_output


@pytest.fixture
def outputs(monkeypatch):
    """`outputs(out, err)`: put text streams over these descriptors in place of sys.stdout and
    sys.stderr.
    """
    opened = []

    def replace(*descriptors):
        for name, descriptor in zip(("stdout", "stderr"), descriptors, strict=True):
            stream = open(descriptor, "w", encoding="ascii")  # noqa: SIM115 - closed below
            opened.append(stream)
            monkeypatch.setattr(sys, name, stream)

    yield replace
    monkeypatch.undo()
    for stream in opened:
        stream.close()  # writes what is still buffered, as the interpreter does at its end


def test_a_reader_that_leaves(outputs, tmp_path):
    reader, writer = os.pipe()
    notes = os.open(tmp_path / "notes", os.O_WRONLY | os.O_CREAT)
    outputs(writer, notes)
    with patient_output():
        print("first", flush=True)
        assert os.read(reader, 100) == b"first\n"
        os.close(reader)
        for _ in range(3):
            print("nobody reads this", flush=True)
            print("x" * 10**6)
        print("still here", file=sys.stderr)
    assert (tmp_path / "notes").read_text() == "still here\n"


def test_a_full_disk_is_said_on_stderr_once(outputs, tmp_path):
    notes = os.open(tmp_path / "notes", os.O_WRONLY | os.O_CREAT)
    outputs(os.open("/dev/full", os.O_WRONLY), notes)
    with patient_output():
        print("lost", flush=True)
        print("lost too", flush=True)
    (line,) = (tmp_path / "notes").read_text().splitlines()
    assert "the output cannot be written any more (No space left on device)" in line


def test_both_gone(outputs):
    outputs(os.open("/dev/full", os.O_WRONLY), os.open("/dev/full", os.O_WRONLY))
    with patient_output():
        print("lost", flush=True)
        print("lost", file=sys.stderr, flush=True)


def test_closed_from_the_start(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with patient_output():
        print("nowhere", flush=True)
        assert not sys.stderr.isatty()
    assert sys.stdout is None


def test_characters_the_console_lacks(outputs, tmp_path):
    written = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("out", "err")]
    outputs(*written)
    with patient_output():
        print("größer 模型")
    assert (tmp_path / "out").read_text() == "gr\\xf6\\xdfer \\u6a21\\u578b\n"


def test_other_streams_pass_through(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with patient_output():
        print("text")
    assert out.getvalue() == "text\n"
    assert sys.stdout is out
