"""Writing so that a reader finds a whole directory or none, also after a kill or a power loss.

Everything is written into a hidden sibling of the target. At the end every file and directory is
flushed to the disk, then one rename makes the result visible, then the parent directory is flushed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from spanbert_ext.errors import ConfigError, DataError

_BLOCK = 1 << 20


def new_digest():
    """A running 128-bit BLAKE2b; all digests of files and vocabularies are its hex form."""
    return hashlib.blake2b(digest_size=16)


def digest_bytes(data: bytes) -> str:
    """Digest of `data`, 32 hex digits."""
    digest = new_digest()
    digest.update(data)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's bytes, 32 hex digits; reads a block at a time."""
    digest = new_digest()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_size(file: Path, expected: int) -> None:
    """Raises DataError, naming the file, where it is missing or not `expected` bytes long."""
    if not file.is_file():
        raise DataError(f"{file}: missing; the corpus is not whole, prepare or copy it again")
    size = file.stat().st_size
    if size != expected:
        raise DataError(
            f"{file}: {size} bytes where {expected} were written; it was truncated or replaced, "
            "prepare or copy it again"
        )


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """An empty directory to write into; it becomes `target` when the block ends well.

    What a killed predecessor left is removed. A second writer of the same target is refused; the
    kernel drops the lock of a killed one.

    Raises:
        ConfigError: another process is writing the same target.
        OSError: as the file system reports it; the target is then as it was before.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.staging"
    lock = _lock_directory(staging, target)
    try:
        _empty(staging)
        try:
            yield staging
            _sync_tree(staging)
            os.rename(staging, target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _lock_directory(staging: Path, target: Path) -> int:
    while True:
        staging.mkdir(exist_ok=True)
        try:
            handle = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:
            continue  # the other writer finished or gave up between the two calls
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(staging)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                f"{target}: another process is writing this directory; wait for it or choose "
                "another output"
            ) from None
        except FileNotFoundError:
            pass
        os.close(handle)  # the locked directory was renamed or removed meanwhile


def _empty(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _sync_tree(directory: Path) -> None:
    for parent, _, files in os.walk(directory, topdown=False):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))
