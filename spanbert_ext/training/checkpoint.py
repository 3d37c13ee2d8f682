"""Checkpoints that survive a kill at any moment.

A checkpoint is a directory `step-0001234/`: the model and tokenizer as Hugging Face writes them,
`optimizer.safetensors`, `state.json`, `rng-<rank>.safetensors` and, written last, `MANIFEST.json`
with size and digest of every other file. It is built in `.tmp-step-.../`; every file is synced,
then the directory, then it is renamed, then the parent is synced. Names that start with a dot are
never read. Retention renames to `.trash-...` before it deletes, and only after the new checkpoint
is committed, so at every moment either the previous or the new one is whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from spanbert_ext.errors import ConfigError, StorageError

logger = logging.getLogger("spanbert_ext")

FORMAT = 1
MANIFEST = "MANIFEST.json"
_STEP, _TMP, _TRASH = "step-", ".tmp-", ".trash-"


def fail_point(name: str) -> None:
    """Kill this process if SPANBERT_EXT_FAIL_POINT names this point; the one hook of the fault
    tests.
    """
    if os.environ.get("SPANBERT_EXT_FAIL_POINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def step_name(step: int) -> str:
    """Directory name of a checkpoint."""
    return f"{_STEP}{step:07d}"


def list_steps(run: Path) -> list[tuple[int, Path]]:
    """(step, directory) of everything named like a checkpoint, oldest first; nothing is
    verified.
    """
    found = []
    if run.is_dir():
        for path in run.iterdir():
            number = path.name.removeprefix(_STEP)
            if path.name.startswith(_STEP) and number.isdigit() and path.is_dir():
                found.append((int(number), path))
    return sorted(found)


def digest_file(path: Path) -> str:
    """BLAKE2b (128 bits) of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def find_fault(directory: Path) -> str:
    """Why a checkpoint cannot be trusted, naming the file and both digests; empty if it is
    whole.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written"
            found = digest_file(path)
            if found != expected["blake2b"]:
                return f"{name} has digest {found}, {expected['blake2b']} was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return ""


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, None if there is no checkpoint at all.

    Damaged ones are passed over with a warning that names the file.

    Raises:
        StorageError: there are checkpoints, but none is whole.
    """
    steps = list_steps(run)
    for _, path in reversed(steps):
        fault = find_fault(path)
        if not fault:
            return path
        logger.warning("passing over checkpoint %s: %s", path, fault)
    if steps:
        raise StorageError(
            f"no whole checkpoint is left in {run} ({len(steps)} damaged); "
            "restore one from a backup, or start again in an empty directory"
        )
    return None


def model_directory(path: Path) -> Path:
    """Where a model lies that a user names: the newest whole checkpoint of a run, else the path."""
    return newest(path) if list_steps(path) else path


def save(run: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Commit one checkpoint and drop those beyond the newest `keep`.

    Args:
        run: directory of the run.
        step: number of finished updates.
        write: fills the empty directory it is given with the checkpoint's files.
        keep: checkpoints that stay. Those of a later step belong to a timeline this run has left
            and go too.

    Raises:
        StorageError: a file could not be written; earlier checkpoints are untouched and no partial
            directory is left.
    """
    final = run / step_name(step)
    building = run / f"{_TMP}{step_name(step)}"
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        write(building)
        _seal(building, step)
        fail_point("before_rename")
        if final.exists():
            os.rename(final, run / f"{_TRASH}{final.name}-{os.getpid()}")
        os.rename(building, final)
        fail_point("after_rename")
        _sync(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StorageError(_space_message(run, step, error)) from error
    retain(run, step, keep)
    return final


def _seal(building: Path, step: int) -> None:
    """Give every file its mode, sync it, list it in the manifest; sync manifest and directory."""
    mask = os.umask(0)
    os.umask(mask)
    files = {}
    for path in sorted(p for p in building.rglob("*") if p.is_file()):
        path.chmod(0o666 & ~mask)  # safetensors leaves 0600 whatever the umask says
        _sync(path)
        name = path.relative_to(building).as_posix()
        files[name] = {"bytes": path.stat().st_size, "blake2b": digest_file(path)}
        fail_point(f"after_sync_{path.name}")
    fail_point("before_manifest")
    manifest = {"format": FORMAT, "step": step, "files": files}
    (building / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    _sync(building / MANIFEST)
    fail_point("after_manifest")
    for path in sorted(p for p in building.rglob("*") if p.is_dir()):
        _sync(path)
    _sync(building)


def _sync(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically and durably."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text, "utf-8")
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _space_message(run: Path, step: int, error: Exception) -> str:
    free = shutil.disk_usage(run).free
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = getattr(error, "strerror", None) or str(error)
    advice = (
        "make room"
        if full or "os error 28" in reason or "os error 27" in reason
        else "check the path"
    )
    return (
        f"the checkpoint of step {step} could not be written in {run}: {reason} ({free / 1e9:.2f} "
        f"GB free). "
        f"Earlier checkpoints are untouched; {advice} and start the same command again"
    )


def retain(run: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`, those of later steps, and earlier
    debris.
    """
    steps = list_steps(run)
    staying = [path for number, path in steps if number <= step][-keep:]
    for _, path in steps:
        if path not in staying:
            fail_point("before_trash")
            os.rename(path, run / f"{_TRASH}{path.name}-{os.getpid()}")
    fail_point("after_trash")
    sweep(run)


def sweep(run: Path) -> None:
    """Delete half-built and discarded checkpoints. Only the holder of the run's lock may call
    this.
    """
    for path in run.iterdir():
        if path.name.startswith((_TMP, _TRASH)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_space(run: Path, checkpoint_bytes: int) -> None:
    """Refuse to start a run that cannot store two checkpoints.

    Raises:
        StorageError: names the room needed and the room there is.
    """
    free = shutil.disk_usage(run).free
    if free < 2 * checkpoint_bytes:
        raise StorageError(
            f"{run} has {free / 1e9:.2f} GB free, two checkpoints need "
            f"{2 * checkpoint_bytes / 1e9:.2f} GB; "
            "make room, choose another output, or set checkpoint.space_check to false"
        )


class RunLock:
    """Exclusive use of a run's directory; the operating system drops it when the process dies.

    Raises:
        ConfigError: another process holds it; says which.
    """

    def __init__(self, run: Path):
        self._path = run / ".lock"
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise ConfigError(
                f"{run} is in use by {holder}; wait for that run, or choose another output"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}\n")
        self._file.flush()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
