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
from spanbert_ext.training.run_lock import RunLock


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
    with pytest.raises(StorageError, match="no whole checkpoint is left"):
        checkpoint.newest(tmp_path)


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


def test_a_failed_save_keeps_the_old_and_leaves_nothing(tmp_path):
    save(tmp_path, 5)

    def full(directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"step 10 .*No space left.* GB free.*make room"):
        save(tmp_path, 10, keep=1, write=full)
    assert names(tmp_path) == ["step-0000005"]
    assert checkpoint.find_fault(tmp_path / "step-0000005") == ""


def test_order_of_system_calls(tmp_path, monkeypatch):
    """Every file is synced before the directory, that before the rename, that before the parent's
    sync (power loss).
    """
    calls = []
    sync, rename = checkpoint._sync, os.rename
    monkeypatch.setattr(checkpoint, "_sync", lambda p: (calls.append(f"sync {p.name}"), sync(p))[1])
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
        "import sys, pathlib; from spanbert_ext.training.run_lock import RunLock\n"
        "lock = RunLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"in use by pid {child.pid} on .* since "):
        RunLock(tmp_path)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with RunLock(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / ".lock").read_text()
    RunLock(tmp_path).__exit__()
