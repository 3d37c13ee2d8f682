"""Text files read and written line by line, with faults that name the place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spanbert_ext.errors import DataError, StorageError


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file without their ends; only line feeds end a line.

    Raises:
        DataError: the file cannot be opened, or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; convert the file first") from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines, each ended by a line feed.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
