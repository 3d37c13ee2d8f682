"""Checkpoints that survive a kill at any moment.

A checkpoint is a directory `step-0001234/`: the model and tokenizer as Hugging Face writes them,
`optimizer.safetensors`, `state.json`, `rng-<rank>.safetensors` and, written last, `MANIFEST.json`
with size and digest of every other file. It is built in `.tmp-step-.../`; every file is synced,
then the directory, then it is renamed, then the parent is synced. Names that start with a dot are
never read. Retention renames to `.trash-...` before it deletes, and only after the new checkpoint
is committed, so at every moment either the previous or the new one is whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from spanbert_ext.errors import StorageError
from spanbert_ext.files import digest_file, sync

logger = logging.getLogger("spanbert_ext")

FORMAT = 1
MANIFEST = "MANIFEST.json"
# What a run can start anew where it is lost; everything else of a checkpoint it cannot do without.
OPTIMIZER, GENERATORS = "optimizer.safetensors", "rng-"
_STEP, _TMP, _TRASH = "step-", ".tmp-", ".trash-"


def fail_point(name: str) -> None:
    """Kill this process if SPANBERT_EXT_FAIL_POINT names this point; the one hook of the fault
    tests.
    """
    if os.environ.get("SPANBERT_EXT_FAIL_POINT") == name:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows knows one kind


def step_name(step: int) -> str:
    """Directory name of a checkpoint."""
    return f"{_STEP}{step:07d}"


def list_steps(run: Path) -> list[tuple[int, Path]]:
    """(step, directory) of everything named like a checkpoint, oldest first; nothing is
    verified.
    """
    found = []
    try:
        for path in run.iterdir() if run.is_dir() else ():
            number = path.name.removeprefix(_STEP)
            if path.name.startswith(_STEP) and number.isdigit() and path.is_dir():
                found.append((int(number), path))
    except OSError as error:
        raise StorageError(f"cannot read the run's directory {run}: {error.strerror}") from error
    return sorted(found)


def find_fault(directory: Path, weights_only: bool = False) -> str:
    """Why a checkpoint cannot be trusted, naming the file and both digests; empty if it is
    whole.

    Args:
        weights_only: the optimizer's and the generators' files may be missing or damaged.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"
        for name, expected in files.items():
            if weights_only and (name == OPTIMIZER or name.startswith(GENERATORS)):
                continue
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


def newest(run: Path, strict: bool = False, weights_only: bool = False) -> Path | None:
    """The newest whole checkpoint of a run, None if there is no checkpoint at all.

    Damaged ones are passed over with a warning that names the file.

    Args:
        strict: a damaged newest checkpoint is an error.
        weights_only: as in `find_fault`.

    Raises:
        StorageError: there are checkpoints, but none is whole, or the newest is not and `strict`.
    """
    steps = list_steps(run)
    for _, path in reversed(steps):
        fault = find_fault(path, weights_only)
        if not fault:
            return path
        if strict:
            raise StorageError(
                f"checkpoint {path} is damaged: {fault}. Set strict_resume to false to continue "
                "the newest whole one, or restore it from a backup"
            )
        logger.warning("passing over checkpoint %s: %s", path, fault)
    if steps:
        advice = "restore one from a backup, or start again in an empty directory"
        if any(not find_fault(path, weights_only=True) for _, path in steps):
            advice = "weights_only true continues with its weights, moments and generators new"
        raise StorageError(f"no whole checkpoint is left in {run} ({len(steps)} damaged); {advice}")
    return None


def model_directory(path: Path) -> Path:
    """Where a model lies that a user names: the newest whole checkpoint of a run, else the path."""
    return newest(path) if list_steps(path) else path


def wait_until_visible(path: Path, seconds: float) -> None:
    """Wait for a checkpoint that another process committed: network file systems show renames late.

    Raises:
        StorageError: it does not appear.
    """
    ends = time.monotonic() + seconds
    while not (path / MANIFEST).is_file():
        if time.monotonic() > ends:
            raise StorageError(
                f"{path} did not become visible here within {seconds:g} s; every machine must see "
                "the output directory"
            )
        time.sleep(0.1)


def save(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    retries: int = 0,
    retry_seconds: float = 0.0,
    expected_bytes: int = 0,
) -> Path:
    """Commit one checkpoint and drop those beyond the newest `keep`.

    A checkpoint of the same step is replaced; it comes from a timeline that this run has left by
    continuing an earlier one, which stays until the new one is committed.

    Args:
        run: directory of the run.
        step: number of finished updates.
        write: fills the empty directory it is given with the checkpoint's files; called again for
            every attempt.
        keep: checkpoints that stay. Those of a later step belong to a timeline this run has left
            and go too.
        retries: attempts after the first that fails.
        retry_seconds: before the first of them; doubled before each further one.
        expected_bytes: size of a checkpoint, for the message.

    Raises:
        StorageError: a file could not be written; earlier checkpoints are untouched and no partial
            directory is left.
    """
    for attempt in range(retries + 1):
        try:
            path = commit(run, step_name(step), step, write)
            break
        except (OSError, SafetensorError) as error:
            shutil.rmtree(_building(run, step_name(step)), ignore_errors=True)
            fault = (
                f"the checkpoint of step {step} could not be written in {run}: "
                f"{getattr(error, 'strerror', None) or error}; it needs "
                f"{format_bytes(expected_bytes)}, {format_bytes(free_bytes(run))} are free there"
            )
            if attempt == retries:
                raise StorageError(
                    f"{fault}. Earlier checkpoints are untouched; make room or repair the path, "
                    "and start the same command again"
                ) from error
            wait = retry_seconds * 2**attempt
            logger.warning("%s; trying again in %g s", fault, wait)
            time.sleep(wait)
    retain(run, step, keep)
    return path


def _building(run: Path, name: str) -> Path:
    return run / f"{_TMP}{name}"


def commit(run: Path, name: str, step: int, write: Callable[[Path], None]) -> Path:
    """Replace a directory of a run by a new one, whole and durable, with its manifest.

    Args:
        name: of the directory.
        step: number of finished updates.
        write: fills the empty directory it is given.

    Raises:
        OSError, SafetensorError: a file could not be written; the old directory is untouched.
    """
    final, building = run / name, _building(run, name)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write(building)
    _seal(building, step)
    fail_point("before_rename")
    if final.exists():
        _discard(final)
        fail_point("between_renames")
    os.rename(building, final)
    fail_point("after_rename")
    sync(run)
    fail_point("after_commit")
    return final


def _discard(path: Path) -> None:
    os.rename(path, path.with_name(f"{_TRASH}{path.name}-{os.getpid()}"))


def _seal(building: Path, step: int) -> None:
    """Give every file its mode, sync it, list it in the manifest; sync manifest and directory."""
    mask = os.umask(0)
    os.umask(mask)
    files = {}
    for path in sorted(p for p in building.rglob("*") if p.is_file()):
        path.chmod(0o666 & ~mask)  # safetensors leaves 0600 whatever the umask says
        sync(path)
        name = path.relative_to(building).as_posix()
        files[name] = {"bytes": path.stat().st_size, "blake2b": digest_file(path)}
        fail_point(f"after_sync_{path.name}")
    fail_point("before_manifest")
    manifest = {"format": FORMAT, "step": step, "files": files}
    (building / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    sync(building / MANIFEST)
    fail_point("after_manifest")
    for path in sorted(p for p in building.rglob("*") if p.is_dir()):
        sync(path)
    sync(building)


def retain(run: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`, those of later steps, and earlier
    debris. What cannot be deleted stays, with a warning.
    """
    steps = list_steps(run)
    staying = [path for number, path in steps if number <= step][-keep:]
    try:
        for _, path in steps:
            if path not in staying:
                fail_point("before_trash")
                _discard(path)
        fail_point("after_trash")
    except OSError as error:
        logger.warning("an old checkpoint stays in %s: %s", run, error)
    sweep(run)


def sweep(run: Path) -> None:
    """Delete half-built and discarded checkpoints. Only the holder of the run's lock may call
    this. What cannot be deleted stays, with a warning.

    What is no checkpoint of a step has none before it that could take its place: it comes back
    where a kill fell between the two renames of `commit`.
    """
    try:
        for path in run.iterdir():
            name = path.name.removeprefix(_TRASH).rpartition("-")[0]
            discarded = path.name.startswith(_TRASH) and not name.startswith(_STEP)
            if discarded and not (run / name).exists():
                os.rename(path, run / name)
            elif path.name.startswith((_TMP, _TRASH)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        logger.warning("debris stays in %s: %s", run, error)


def stored_bytes(directory: Path) -> int:
    """Size of a checkpoint's files."""
    try:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from error


def format_bytes(count: float) -> str:
    """3100000 -> 3.1 MB, 1320000000 -> 1.32 GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds a path, or would if it still existed."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def check_space(run: Path, checkpoint_bytes: int) -> None:
    """Refuse to start a run that cannot store two checkpoints.

    Raises:
        StorageError: names the room needed and the room there is.
    """
    free = free_bytes(run)
    if free < 2 * checkpoint_bytes:
        raise StorageError(
            f"{run} has {format_bytes(free)} free, two checkpoints need "
            f"{format_bytes(2 * checkpoint_bytes)}; "
            "make room, choose another output, or set checkpoint.space_check to false"
        )
