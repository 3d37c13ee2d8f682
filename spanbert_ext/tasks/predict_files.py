"""The files of `spanbert predict`: lines that survive a kill, and what they belong to.

Lines go to `OUT.part`, a chunk at a time; when all are there the file takes its name. A hidden file
beside it says which model, records and settings they are of. A command that was killed goes on
after the last whole chunk: chunks are cut at the same records every time, so that the bytes are
those of a run that was never interrupted (what is computed together decides the last digits).
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spanbert_ext.errors import ConfigError
from spanbert_ext.files import FileLock, json_text, write_text
from spanbert_ext.tasks import html
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.training.checkpoint import fail_point


class OutputFiles:
    """What one command writes; no other may at the same time.

    Args:
        output: the file with a line for each record.
        page: of the same predictions, or None.

    Raises:
        ConfigError: another process writes this output.
    """

    def __init__(self, output: Path, page: Path | None):
        self._output, self._page = output, page
        self._part = output.with_name(output.name + ".part")
        self._marks = output.with_name(f".{output.name}.marks") if page is not None else None
        self._parts = [self._part] if page is None else [self._part, self._marks]
        self._state = output.with_name(f".{output.name}.state")
        self._output.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(self._part)
        except BlockingIOError:
            raise ConfigError(
                f"{output}: another process is writing it; wait for that one, or name another file"
            ) from None
        self._part.touch()

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(self, *_) -> None:
        if self._part.exists() and not self._part.stat().st_size:
            self._part.unlink()
        self._lock.release()  # not before: until then the file is ours

    def are_finished(
        self,
        identity: dict[str, Any],
        overwrite: bool,
        complete: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> bool:
        """Whether nothing is left to do; otherwise `count_lines` says how many are there.

        Args:
            identity: what the bytes depend on.
            complete: makes one that an earlier version stored comparable.
            overwrite: also files of another command, or finished ones.

        Raises:
            ConfigError: the files belong to another command.
        """
        stored = self._stored_identity()
        same = stored is not None and complete(stored) == identity
        whole = self._output.is_file() and (self._page is None or self._page.is_file())
        if same and whole and not overwrite:
            self._clear_debris()
            return True
        there = [p for p in (self._output, self._part) if p.is_file() and p.stat().st_size]
        if there and not same and not overwrite:
            raise ConfigError(
                f"{there[0]} is there already, of another model, other records or other settings; "
                "name another file, or give --overwrite"
            )
        if not same or self._output.is_file():
            os.truncate(self._part, 0)
            for path in (self._output, self._marks):
                if path is not None:
                    path.unlink(missing_ok=True)
        write_text(self._state, json_text(identity))
        return False

    def count_lines(self) -> int:
        """Records whose lines are there whole; the last ones may be of a chunk that is not."""
        return min(_whole_lines(part) for part in self._parts)

    def keep_lines(self, count: int) -> None:
        """Cut the files after so many records."""
        for part in self._parts:
            _keep_lines(part, count)

    def append(self, lines: list[str], marks: list[MarkedText]) -> None:
        """Add a chunk, durably."""
        _append(self._part, "".join(line + "\n" for line in lines))
        if self._marks is not None:
            fail_point("between_files")
            rows = (json_text(dataclasses.asdict(block)) + "\n" for block in marks)
            _append(self._marks, "".join(rows))

    def finish(self, title: str) -> None:
        """All lines are there: write the page, and give the output its name."""
        if self._page is not None:
            html.write_page(self._page, title, self._marked_texts())
            fail_point("after_page")
        os.replace(self._part, self._output)
        fail_point("after_output")
        self._clear_debris()

    def _marked_texts(self) -> Iterator[MarkedText]:
        """The blocks of all chunks."""
        if not self._marks.exists():
            return
        with self._marks.open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                marks = tuple(Mark(**mark) for mark in fields.pop("marks"))
                facts, names = (tuple(map(tuple, fields.pop(n, ()))) for n in ("facts", "names"))
                yield MarkedText(**fields, marks=marks, facts=facts, names=names)

    def _clear_debris(self) -> None:
        """What a command that was killed on its last steps has left."""
        if self._page is None:
            return
        self._marks.unlink(missing_ok=True)
        own = f"{glob.escape(self._page.name)}.{glob.escape(socket.gethostname())}-*.part"
        for path in self._page.parent.glob(own):
            path.unlink(missing_ok=True)

    def _stored_identity(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._state.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _keep_lines(path: Path, lines: int) -> None:
    """Cut a file after its first `lines` lines."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        for _ in range(lines):
            file.readline()
        file.truncate(file.tell())
