"""Units of work: which parts of which files are read together.

Units depend on the files and on `unit_bytes` alone, never on the number of workers. Small files
share a unit; a large .txt or .jsonl file is divided where a document ends. What is compressed, and
a .txt file that is one document, stays whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.sources import Source

_BLOCK = 1 << 20


class Extent(NamedTuple):
    """Bytes [start, stop) of a source, given by its number."""

    source: int
    start: int
    stop: int


Unit = tuple[Extent, ...]


def plan_units(sources: Sequence[Source], config: PrepareConfig) -> list[Unit]:
    """The units that together are all sources in order; none is empty.

    Raises:
        OSError: a file cannot be read.
    """
    units: list[Unit] = []
    current: list[Extent] = []
    for number, source in enumerate(sources):
        for start, stop in itertools.pairwise(_borders(source, config)):
            current.append(Extent(number, start, stop))
            if unit_size(current) >= config.unit_bytes:
                units.append(tuple(current))
                current = []
    return [*units, tuple(current)] if current else units


def unit_size(unit: Sequence[Extent]) -> int:
    """Bytes to read."""
    return sum(extent.stop - extent.start for extent in unit)


def describe(unit: Unit, sources: Sequence[Source]) -> str:
    """The files of a unit, for messages."""
    first, last = sources[unit[0].source], sources[unit[-1].source]
    if len(unit) > 1:
        return f"{len(unit)} files, {first.path} to {last.path}"
    if unit[0].stop - unit[0].start == first.size:
        return str(first.path)
    return f"{first.path}, bytes {unit[0].start} to {unit[0].stop}"


def _borders(source: Source, config: PrepareConfig) -> Iterator[int]:
    """0, the places where the source is divided, its size."""
    yield 0
    is_one_document = source.kind == "txt" and config.documents == "file"
    if source.kind != "parquet" and not source.compressed and not is_one_document:
        place = 0
        with open(source.path, "rb") as stream:
            while source.size - place > config.unit_bytes:
                place = _next_border(stream, place + config.unit_bytes, source.kind == "txt")
                if place >= source.size:
                    break
                yield place
    yield source.size


def _next_border(stream: BinaryIO, place: int, behind_blank: bool) -> int:
    """The first place, at `place` or later, where a line begins, the one before being blank if
    asked; the end of the file if there is none.

    Blank in the sense of bytes; lines that are blank to Unicode alone are passed over, like a line
    longer than a block, so this holds no more than a block.
    """
    stream.seek(place - 1)
    begins = False
    while part := stream.readline(_BLOCK):
        ends = part.endswith(b"\n")
        if ends and (not behind_blank or (begins and part.isspace())):
            break
        begins = ends
    return stream.tell()
