"""Locks that die with their process, and flushing, here and as Windows does them."""

import errno
import os
import subprocess
import sys
import types

import pytest

from spanbert_ext import files
from spanbert_ext.files import FileLock

HOLDER = """
import pathlib, sys
from spanbert_ext.files import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]), create=sys.argv[2] == "file")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def windows(monkeypatch):
    """The calls of Windows, whose faults differ, over a lock that dies with its file."""
    real = files.fcntl

    def locking(handle, mode, count):
        assert (mode, count) == (2, 1)
        try:
            real.flock(handle, real.LOCK_EX | real.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    fake = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(files, "fcntl", None)
    return fake


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_lock_dies_with_its_process(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    create = kind == "file"
    words = [sys.executable, "-c", HOLDER, str(path), kind]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            FileLock(path, create)
        child.kill()
        child.wait()
    with FileLock(path, create), pytest.raises(BlockingIOError):
        FileLock(path, create)
    FileLock(path, create).release()


def test_a_directory_has_to_be_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


def test_a_file_renamed_before_it_was_locked_is_another_file(tmp_path, monkeypatch):
    """The lock has to be of the file that has the name in the end."""
    path, moves = tmp_path / "part", []
    lock = files._lock_whole

    def rename_first(handle):
        if not moves:
            moves.append(path.rename(tmp_path / "finished"))
        lock(handle)

    monkeypatch.setattr(files, "_lock_whole", rename_first)
    with FileLock(path):
        assert moves and path.exists()
        with pytest.raises(BlockingIOError):
            FileLock(path)
    with FileLock(tmp_path / "finished"):
        pass


def test_faults_of_the_file_system_are_passed_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "_lock_whole", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks available"):
        FileLock(tmp_path / "file")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["file", "directory"])
def test_on_windows_a_file_beside_it_is_locked(tmp_path, windows, name):
    (tmp_path / "directory").mkdir()
    with FileLock(tmp_path / name, create=name == "file"):
        assert (tmp_path / f".{name}.lock").is_file()
        with pytest.raises(BlockingIOError):
            FileLock(tmp_path / name)
    assert os.listdir(tmp_path) == ["directory"]  # nothing is left behind
    FileLock(tmp_path / name).release()


def test_other_faults_on_windows(tmp_path, windows):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    windows.locking = refuse
    with pytest.raises(OSError, match="Invalid argument"):
        FileLock(tmp_path / "file")


def test_sync(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    files.sync(tmp_path / "file")
    files.sync(tmp_path)
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "absent")
