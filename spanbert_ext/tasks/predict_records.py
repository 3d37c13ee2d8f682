"""What `spanbert predict` reads: JSON lines, or a text, in chunks that are computed together."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError
from spanbert_ext.records import UnreadableLine, decoded_lines, parse_object, read_lines
from spanbert_ext.tasks.task import DownstreamTask

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Item:
    """One record of the input.

    Args:
        where: file and line; for a text the file's name.
        record: a JSON object; in place of what is none the fault.
        size: its bytes.
        end: bytes of the file up to its end.
    """

    where: str
    record: dict[str, Any] | DataError
    size: int
    end: int


def items_of(path: Path, task: DownstreamTask) -> Iterator[Item]:
    """The records of a file: a text where it ends in .txt, else every line that is not blank.

    Raises:
        DataError: it is a text, and the task's records need more than that.
    """
    if path.suffix.lower() == TEXT_SUFFIX:
        return iter([_text_of(path, task)])
    return _lines_of(path)


def chunks(items: Iterable[Item], records: int, size: int) -> Iterator[list[Item]]:
    """Cut at the same records every time: a chunk has at most so many records and bytes, and at
    least one record."""
    chunk: list[Item] = []
    room = size
    for item in items:
        if chunk and (len(chunk) == records or item.size > room):
            yield chunk
            chunk, room = [], size
        chunk.append(item)
        room -= item.size
    if chunk:
        yield chunk


def _text_of(path: Path, task: DownstreamTask) -> Item:
    data = path.read_bytes()
    if not task.takes_text:
        raise DataError(
            f"{path}: a text alone is no record of {task.name}. Give a file of JSON lines with one "
            f"object a line, such as {task.example_record}"
        )
    try:
        record = {"text": data.decode("utf-8-sig")}
    except UnicodeDecodeError:
        lines = enumerate(decoded_lines(io.BytesIO(data)), 1)
        number, line = next(found for found in lines if isinstance(found[1], UnreadableLine))
        record = DataError(f"{path.name}:{number}: {line.reason}")
    return Item(path.name, record, len(data), len(data))


def _lines_of(path: Path) -> Iterator[Item]:
    end = 0
    for number, line in enumerate(read_lines(path), 1):
        found = line if isinstance(line, UnreadableLine) else parse_object(line)
        text = found.excerpt if isinstance(line, UnreadableLine) else line
        size = len(text.encode("utf-8")) + 1
        end += size
        if not text.strip():
            continue
        if isinstance(found, UnreadableLine):
            hint = f"; a file that is one text must end in {TEXT_SUFFIX}" if number == 1 else ""
            found = DataError(f"{path.name}:{number}: {found.reason}{hint}")
        yield Item(f"{path.name}:{number}", found, size, end)
