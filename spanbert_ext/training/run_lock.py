"""Exclusive use of a run's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from spanbert_ext.errors import ConfigError, StorageError

LOCK = ".lock"  # in a run's directory


class RunLock:
    """Exclusive use of a run's directory; the operating system drops it when the process dies.

    Raises:
        ConfigError: another process holds it; says which.
        StorageError: the directory cannot be written, or its file system knows no locks.
    """

    def __init__(self, run: Path):
        try:
            self._file = (run / LOCK).open("ab+", buffering=0)
        except OSError as error:
            raise StorageError(f"cannot write in {run}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().decode("utf-8", "replace").strip() or "another process"
            self._file.close()
            if not isinstance(error, BlockingIOError):
                raise StorageError(f"cannot lock {run}: {error.strerror}") from error
            raise ConfigError(
                f"{run} is in use by {holder}; wait for that run, or choose another output"
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        note = f"pid {os.getpid()} on {socket.gethostname()} since {since}\n"
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its note
            self._file.truncate(0)
            self._file.write(note.encode("utf-8"))

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
