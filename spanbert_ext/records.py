"""Lines of text files, and the records in them: decided here, whoever reads them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from spanbert_ext.errors import DataError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_EXCERPT = 200  # characters


@dataclass(frozen=True, slots=True)
class UnreadableLine:
    """A line that is not UTF-8, or not the JSON that is expected of it.

    Args:
        reason: in words.
        excerpt: its start, with U+FFFD for what is no character.
    """

    reason: str
    excerpt: str


def read_lines(path: str | Path) -> Iterator[str | UnreadableLine]:
    """The lines of a file without their ends, one after the other.

    LF, CRLF and CR end a line, also mixed in one file, and nothing else does: vertical tab, form
    feed, NEL and U+2028 are characters of it. The last line may lack its end. A byte order mark is
    no part of the text.

    Args:
        path: UTF-8, plain or gzip, whatever it is called.

    Raises:
        DataError: it cannot be opened, or its gzip data is damaged.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == _GZIP
            raw.seek(0)
            yield from decoded_lines(gzip.GzipFile(fileobj=raw) if compressed else raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip data ({error}); fetch the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def decoded_lines(stream: BinaryIO) -> Iterator[str | UnreadableLine]:
    """The lines of bytes, as `read_lines` gives those of a file."""
    first = True
    for line in _split(stream):
        yield _decoded(line.removeprefix(_BOM) if first else line, first)
        first = False


def _split(stream) -> Iterator[bytes]:
    for line in stream:  # up to a LF; no byte of a longer character is a LF or a CR
        ended = line.endswith(b"\n")
        parts = line.removesuffix(b"\n").removesuffix(b"\r" if ended else b"").split(b"\r")
        if not ended and not parts[-1]:
            parts.pop()
        yield from parts


def _decoded(line: bytes, first: bool) -> str | UnreadableLine:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "; is the file UTF-16?" if first and line.startswith(_UTF16) else ""
        return UnreadableLine(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}{hint}",
            line[: 4 * _EXCERPT].decode("utf-8", "replace")[:_EXCERPT],
        )


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | UnreadableLine]]:
    """The objects of a file of JSON lines with the numbers of their lines, from 1; blank lines are
    passed over.

    Raises:
        DataError: as `read_lines`.
    """
    for number, line in enumerate(read_lines(path), 1):
        if isinstance(line, UnreadableLine):
            yield number, line
        elif line.strip():
            yield number, parse_object(line)


def parse_object(line: str) -> dict[str, Any] | UnreadableLine:
    """The JSON object in a line, or why there is none."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        return UnreadableLine(
            f"not valid JSON ({error.msg}, column {error.colno})", line[:_EXCERPT]
        )
    except (ValueError, RecursionError) as error:
        return UnreadableLine(f"not valid JSON ({error})", line[:_EXCERPT])
    if not isinstance(found, dict):
        kind = shown_value(found).partition(" of ")[0]
        return UnreadableLine(f"expected a JSON object, found {kind}", line[:_EXCERPT])
    return found


def read_json(path: str | Path, expected: str) -> Any:
    """What a file that is one JSON value holds.

    Args:
        path: as for `read_lines`.
        expected: what the file should be, for messages.

    Raises:
        DataError: it cannot be read or is not JSON; says what it seems to be.
    """
    lines: list[str] = []
    for number, line in enumerate(read_lines(path), 1):
        if isinstance(line, UnreadableLine):
            raise DataError(f"{path}:{number}: {line.reason}. Expected {expected}")
        lines.append(line)
    try:
        return json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        seen = f"it is not valid JSON ({error})"
        first = parse_object(next((line for line in lines if line.strip()), ""))
        if not isinstance(first, UnreadableLine):
            seen = f"it is JSON lines, {shown_value(first)} in the first"
        raise DataError(f"{path}: {seen}. Expected {expected}") from None


def fields_of(record: Iterable[Any]) -> str:
    """Names of a record's fields, for messages: one line, whatever they are."""
    return ", ".join(repr(str(name)[:40]) for name in islice(record, 12)) or "none"


def shown_value(value: Any) -> str:
    """A JSON value in a message: what kind it is and what is in it."""
    if isinstance(value, dict):
        return f"an object with the fields {fields_of(value)}"
    if isinstance(value, list):
        inner = f", the first {shown_value(value[0])}" if value else ""
        return f"a list of {len(value)}{inner}"
    kinds = {str: "a string", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), "a number")


def used_columns(rows: Sequence[Sequence[str]]) -> int:
    """Columns of a table that hold something in any row: what is beyond is left of a separator at
    the end of lines, and no column."""
    return max((_filled(row) for row in rows), default=0)


def without_empty_end(row: list[str], columns: int) -> list[str]:
    """A row without its empty cells beyond that many columns."""
    return row[: max(columns, _filled(row))]


def _filled(row: Sequence[str]) -> int:
    return next((n for n in range(len(row), 0, -1) if row[n - 1].strip()), 0)
