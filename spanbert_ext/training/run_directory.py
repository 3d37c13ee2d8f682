"""Exclusive use of a run's directory."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.files import FileLock

LOCK = ".lock"  # in a run's directory


class RunDirectory:
    """Exclusive use of a run's directory, which is made where it is not there; the operating system
    drops the lock when the process dies.

    At the end the directories that were made are removed again where nothing was written: a run
    that is refused leaves none.

    Raises:
        ConfigError: another process holds it; says which.
        StorageError: the directory cannot be made or written, or its file system knows no locks.
    """

    def __init__(self, run: Path):
        self._made = [path for path in (run, *run.parents) if not path.exists()]
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the output directory {run}: {error.strerror}"
            ) from error
        path = run / LOCK
        try:
            path.open("ab").close()
        except OSError as error:
            raise StorageError(f"cannot write in {run}: {error.strerror}") from error
        try:
            self._lock = FileLock(path)
        except BlockingIOError:
            holder = path.read_bytes().decode("utf-8", "replace").strip() or "another process"
            raise ConfigError(
                f"{run} is in use by {holder}; wait for that run, or choose another output"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot lock {run}: {error.strerror}") from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        note = f"pid {os.getpid()} on {socket.gethostname()} since {since}\n"
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its note
            path.write_bytes(note.encode("utf-8"))

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # it has gone already, or another process is there
            made = self._made
            if made and [path.name for path in made[0].iterdir()] == [LOCK]:
                (made[0] / LOCK).unlink()
                for path in made:
                    path.rmdir()
        self._lock.release()
