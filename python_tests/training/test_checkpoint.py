"""The commit protocol: whole or absent, newest whole one wins, damage is named."""

import errno
import json
import logging
import os
import subprocess
import sys

import pytest

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.training import checkpoint
from spanbert_ext.training.run_directory import RunDirectory


def write_two_files(directory):
    (directory / "model.safetensors").write_bytes(b"weights" * 100)
    (directory / "state.json").write_text('{"step": 1}')


def save(run, step, keep=3, write=write_two_files):
    return checkpoint.save(run, step, write, keep)


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_layout_literal(tmp_path):
    path = save(tmp_path, 1234)
    assert path == tmp_path / "step-0001234"
    assert names(path) == ["MANIFEST.json", "model.safetensors", "state.json"]
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["files"]["model.safetensors"]["bytes"] == 700
    assert (manifest["format"], manifest["step"]) == (1, 1234)
    assert checkpoint.find_fault(path) == ""


def test_digest_literal(tmp_path):
    """BLAKE2b of the empty string with a digest of 16 bytes."""
    (tmp_path / "empty").write_bytes(b"")
    assert checkpoint.digest_file(tmp_path / "empty") == "cae66941d9efbd404e4d88758ea67670"


def test_newest_and_retention(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-0000015", "step-0000020"]
    assert checkpoint.newest(tmp_path).name == "step-0000020"


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_later_steps_of_an_abandoned_timeline_go(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    save(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["step-0000008"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 5, write=lambda d: (d / "other").write_text("x"))
    assert names(tmp_path / "step-0000005") == ["MANIFEST.json", "other"]
    assert names(tmp_path) == ["step-0000005"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_fill(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, flip_bit, zero_fill, os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_newest_one_is_passed_over_and_named(tmp_path, caplog, damage, name):
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    digest = checkpoint.digest_file(bad / name)
    damage(bad / name)
    with caplog.at_level(logging.WARNING, "spanbert_ext"):
        assert checkpoint.newest(tmp_path) == good
    assert "step-0000010" in caplog.text
    assert (
        name in caplog.text or name == "MANIFEST.json"
    )  # a wrong digest in it reads as a wrong file
    if damage in (flip_bit, zero_fill) and name != "MANIFEST.json":
        assert digest in caplog.text
        assert checkpoint.digest_file(bad / name) in caplog.text


def test_flipped_manifest_bits_never_pass_as_whole_wrong_content(tmp_path):
    """Any single flipped bit of the manifest either reads as damage or leaves what it says about
    the files true.
    """
    path = save(tmp_path, 5)
    manifest = path / "MANIFEST.json"
    original = manifest.read_bytes()
    expected = json.loads(original)["files"]
    for position in range(0, len(original), 3):
        content = bytearray(original)
        content[position] ^= 4
        manifest.write_bytes(content)
        if not checkpoint.find_fault(path):
            assert json.loads(manifest.read_bytes())["files"] == expected


def test_all_damaged_is_an_error(tmp_path):
    truncate(save(tmp_path, 5) / "state.json")
    for weights_only in (False, True):
        with pytest.raises(StorageError, match="no whole checkpoint is left.*backup, or start"):
            checkpoint.newest(tmp_path, weights_only=weights_only)


def test_strict_stops_at_a_damaged_newest_one(tmp_path):
    save(tmp_path, 5)
    truncate(save(tmp_path, 10) / "state.json")
    assert checkpoint.newest(tmp_path).name == "step-0000005"
    with pytest.raises(StorageError, match=r"step-0000010 is damaged: state.json has 10 bytes, 11"):
        checkpoint.newest(tmp_path, strict=True)


@pytest.mark.parametrize("name", [checkpoint.OPTIMIZER, f"{checkpoint.GENERATORS}3.safetensors"])
@pytest.mark.parametrize("damage", [truncate, os.unlink])
def test_weights_may_be_taken_alone(tmp_path, name, damage):
    def write(directory):
        write_two_files(directory)
        (directory / name).write_bytes(b"moments")

    path = save(tmp_path, 5, write=write)
    damage(path / name)
    with pytest.raises(StorageError, match="weights_only true continues with its weights"):
        checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path, weights_only=True) == path
    truncate(path / "model.safetensors")
    with pytest.raises(StorageError, match="no whole checkpoint is left"):
        checkpoint.newest(tmp_path, weights_only=True)


def test_dot_names_are_never_read(tmp_path):
    save(tmp_path, 5)
    os.rename(save(tmp_path, 9), tmp_path / ".tmp-step-0000009")
    assert checkpoint.newest(tmp_path).name == "step-0000005"
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step-0000005"]


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    def private(directory):
        (directory / "model.safetensors").write_bytes(b"x")
        (directory / "model.safetensors").chmod(0o600)

    before = os.umask(mask)
    try:
        path = save(tmp_path, 1, write=private)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~mask}


class Failing:
    """Writes two files; the first `times` calls leave half of one and fail."""

    def __init__(self, number, times):
        self.number, self.times, self.calls = number, times, 0

    def __call__(self, directory):
        assert not list(directory.iterdir())
        self.calls += 1
        (directory / "model.safetensors").write_bytes(b"half")
        if self.calls <= self.times:
            raise OSError(self.number, os.strerror(self.number))
        write_two_files(directory)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that `save` has waited; nobody waits."""
    waited = []
    monkeypatch.setattr(checkpoint.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_save_keeps_the_old_and_leaves_nothing(tmp_path, waits, number):
    save(tmp_path, 5)
    write = Failing(number, times=9)
    message = (
        f"the checkpoint of step 10 could not be written in .*{os.strerror(number)}; it needs "
        r"1\.50 GB, .* are free there\. Earlier checkpoints are untouched; make room or repair"
    )
    with pytest.raises(StorageError, match=message):
        checkpoint.save(tmp_path, 10, write, 1, 3, 5.0, expected_bytes=1_500_000_000)
    assert (write.calls, waits) == (4, [5.0, 10.0, 20.0])
    assert names(tmp_path) == ["step-0000005"]
    assert checkpoint.find_fault(tmp_path / "step-0000005") == ""


@pytest.mark.parametrize("times", [1, 3])
def test_a_passing_fault_is_retried(tmp_path, waits, caplog, times):
    save(tmp_path, 5)
    checkpoint.save(tmp_path, 10, Failing(errno.EIO, times), 1, 3, 0.5)
    assert waits == [0.5, 1.0, 2.0][:times]
    assert caplog.text.count("Input/output error; it needs 0.0 MB") == times
    assert names(tmp_path) == ["step-0000010"]
    assert checkpoint.find_fault(tmp_path / "step-0000010") == ""


def test_a_failed_flush_writes_everything_again(tmp_path, monkeypatch, waits):
    """What a failed fsync leaves on the disk is unknown: the files are not flushed once more but
    written once more.
    """
    sync, failed = checkpoint.sync, []

    def fail_once(path):
        if path.name == "state.json" and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", fail_once)
    write = Failing(0, times=0)
    path = checkpoint.save(tmp_path, 10, write, 1, 1, 0.5)
    assert write.calls == 2
    assert checkpoint.find_fault(path) == ""


def test_a_vanished_directory(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"):
        save(tmp_path / "gone" / "run", 10)


def test_what_cannot_be_deleted_stays(tmp_path, monkeypatch, caplog):
    """Retention that fails does not stop a run whose checkpoint is safe."""

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    save(tmp_path, 5)
    with monkeypatch.context() as patch:
        # Ignoring errors is how a save clears its place; deleting an old checkpoint does not.
        patch.setattr(checkpoint.shutil, "rmtree", lambda path, **how: how or refuse(path))
        assert save(tmp_path, 10, keep=1).is_dir()
    assert "debris stays" in caplog.text
    assert checkpoint.newest(tmp_path).name == "step-0000010"
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step-0000010"]


def test_order_of_system_calls(tmp_path, monkeypatch):
    """Every file is synced before the directory, that before the rename, that before the parent's
    sync (power loss).
    """
    calls = []
    sync, rename = checkpoint.sync, os.rename
    monkeypatch.setattr(checkpoint, "sync", lambda p: (calls.append(f"sync {p.name}"), sync(p))[1])
    monkeypatch.setattr(
        os, "rename", lambda a, b: (calls.append(f"rename {b.name}"), rename(a, b))[1]
    )
    save(tmp_path, 7)
    assert calls == [
        "sync model.safetensors",
        "sync state.json",
        "sync MANIFEST.json",
        "sync .tmp-step-0000007",
        "rename step-0000007",
        f"sync {tmp_path.name}",
    ]


def test_space_check(tmp_path):
    checkpoint.check_space(tmp_path, 1000)
    with pytest.raises(StorageError, match=r"two checkpoints need 2000000000\.00 GB"):
        checkpoint.check_space(tmp_path, 10**18)


def test_lock_names_its_holder_and_dies_with_it(tmp_path):
    holder = (
        "import sys, pathlib; from spanbert_ext.training.run_directory import RunDirectory\n"
        "lock = RunDirectory(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"in use by pid {child.pid} on .* since "):
        RunDirectory(tmp_path)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with RunDirectory(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / ".lock").read_text()
    RunDirectory(tmp_path).__exit__()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("spanbert_ext.files.fcntl.flock", refuse)
    with pytest.raises(StorageError, match="cannot lock .*: No locks available"):
        RunDirectory(tmp_path)


def test_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(StorageError, match="cannot read the run's directory .*: Permission denied"):
        checkpoint.newest(tmp_path)
