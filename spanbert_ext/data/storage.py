"""Writing so that a reader finds a whole directory or none, also after a kill or a power loss.

Everything is written into a hidden sibling of the target, the staging directory. At the end every
file and directory of the result is flushed to the disk, then one rename makes it visible, then the
parent directory is flushed. What a killed predecessor left in the staging directory stays there for
the next attempt.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.files import FileLock, new_digest, sync, temporary

_BLOCK = 1 << 20


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


def staging_directory(target: Path) -> Path:
    """Where `target` is put together."""
    return target.parent / f".{target.name}.staging"


@contextlib.contextmanager
def locked_staging(target: Path) -> Iterator[Path]:
    """The staging directory of `target`, made if need be and locked, with what it holds.

    It is removed when the block ends with faulty data; otherwise it stays. A second writer of the
    same target is refused; the kernel drops the lock of a killed one.

    Raises:
        ConfigError: another process is writing the same target.
        OSError: as the file system reports it.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_directory(target)
    lock = _lock_directory(staging, target)
    try:
        yield staging
    except DataError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        lock.release()


def publish(directory: Path, target: Path) -> None:
    """Flush a finished directory to the disk and make it appear as `target`: all or nothing."""
    target = Path(os.path.abspath(target))
    _sync_tree(directory)
    os.rename(directory, target)
    sync(target.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all after a kill."""
    part = temporary(path)
    part.write_bytes(data)
    os.replace(part, path)


def _lock_directory(staging: Path, target: Path) -> FileLock:
    while True:
        staging.mkdir(exist_ok=True)
        try:
            return FileLock(staging, create=False)
        except BlockingIOError:
            raise ConfigError(
                f"{target}: another process is writing this directory; wait for it or choose "
                "another output"
            ) from None
        except FileNotFoundError:
            continue  # the other writer finished or gave up between the two calls


def empty(directory: Path) -> None:
    """Remove what a directory holds."""
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


class DigestedFile:
    """A new file that knows the digest and the number of the bytes written.

    Args:
        path: to create.
    """

    def __init__(self, path: Path):
        # Open across calls; `close` closes it.
        self._stream = open(path, "wb", buffering=_BLOCK)  # noqa: SIM115
        self._digest = new_digest()
        self.size = 0

    @property
    def digest(self) -> str:
        """Digest of what was written, 32 hex digits."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._stream.write(data)
        self._digest.update(data)
        self.size += len(data)

    def copy(self, source: BinaryIO, count: int) -> None:
        """Append the next `count` bytes of a stream; StorageError where it ends before."""
        while count:
            data = source.read(min(count, _BLOCK))
            if not data:
                raise StorageError(f"{source.name}: ended early; remove it and start again")
            self.write(data)
            count -= len(data)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
