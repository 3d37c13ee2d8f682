"""What the package asks of a file system: exclusive use of a file, files that are whole or absent,
and that writing lasts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanbert_ext.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has another way, in _lock_byte
    fcntl = None


class FileLock:
    """Exclusive use of a file or directory; the operating system drops it when the process dies.

    Where an open file can be neither renamed nor read by others (Windows), a hidden file beside it
    is locked in its place.

    Args:
        path: of the file or directory.
        create: make the file if need be; False for a directory, which has to be there.

    Raises:
        BlockingIOError: another process holds it, or another lock of this one.
        FileNotFoundError: it is not there, and not to be made.
        OSError: it cannot be opened, or its file system knows no locks.
    """

    def __init__(self, path: Path, create: bool = True):
        self._flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        self._path = path
        if fcntl is None:
            self._flags = os.O_RDWR | os.O_CREAT
            self._path = path.with_name(f".{path.name}.lock")
        while True:
            self._handle = os.open(self._path, self._flags, 0o666)
            try:
                (_lock_byte if fcntl is None else _lock_whole)(self._handle)
                if os.path.samestat(os.fstat(self._handle), os.stat(self._path)):
                    return
            except FileNotFoundError:
                pass
            except OSError:
                os.close(self._handle)
                raise
            os.close(self._handle)  # it was renamed or removed between the two calls

    def release(self) -> None:
        """Let others have it."""
        os.close(self._handle)
        if fcntl is None:
            with contextlib.suppress(OSError):  # somebody else has opened it by now
                self._path.unlink()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_) -> None:
        self.release()


def _lock_whole(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_byte(handle: int) -> None:
    import msvcrt

    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock") from None
        raise


def sync(path: Path) -> None:
    """Flush a file or directory to the disk.

    Windows can open no directory to flush it; its file systems keep a journal of names.

    Raises:
        OSError: as the file system reports it.
    """
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # Windows flushes writers only
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process writes, also none of another machine."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name when the block ends well; else it goes,
    and what was there is there still.

    Raises:
        StorageError: in place of what the file system says, which names `path`.
    """
    part = temporary(path)
    try:
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically and durably; a device or a pipe is written to.

    Raises:
        StorageError: it cannot be written; what was there is there still.
    """
    part = path.with_name(f".tmp-{path.name}")
    data = text.encode("utf-8")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        try:
            part.write_bytes(data)
            sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


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
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Valid JSON: numbers that are not finite become null, and half surrogate pairs, which UTF-8
    has no bytes for, stay escaped."""
    value = _without_nan(value)
    how = {"indent": indent, "sort_keys": sort_keys, "allow_nan": False}
    text = json.dumps(value, ensure_ascii=False, **how)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, **how)
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(own) for own in value]
    return value
