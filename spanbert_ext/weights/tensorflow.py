"""Variables of a TensorFlow checkpoint (`NAME.index`, `NAME.data-00000-of-00001`) without
TensorFlow.

The index is a sorted table in LevelDB's format: blocks of entries whose keys share a prefix with
the one before, a block that says where the blocks are, and 48 bytes at the end that say where that
one is. A key is a variable's name, its value a protocol buffer (BundleEntryProto) with type, shape,
and place in the data. Variables are read when they are asked for, so that what an optimizer keeps
beside them costs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from spanbert_ext.errors import DataError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_NUMPY = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "?", 19: "<f2"}  # DataType of TensorFlow
_FIXED = {1: 8, 5: 4}  # bytes of a protocol buffer's field, by wire type


class TensorflowCheckpoint(Mapping[str, np.ndarray]):
    """Name -> array, read from the disk each time.

    Args:
        prefix: path of the checkpoint without `.index`.

    Raises:
        DataError: there is none, or it is damaged.
    """

    def __init__(self, prefix: Path):
        self._prefix = prefix
        path = prefix.with_name(prefix.name + ".index")
        try:
            table = path.read_bytes()
            entries = dict(_entries_of_table(table))
            self._shards = _fields(entries.pop(b"", b"")).get(1, [1])[0]
            self._entries = {key.decode(): _fields(value) for key, value in entries.items()}
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, IndexError, struct.error) as error:
            raise DataError(f"{path}: not the index of a TensorFlow checkpoint: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a variable."""
        (shape,) = self._entries[name].get(2, [b""])
        return tuple(_fields(dimension).get(1, [0])[0] for dimension in _fields(shape).get(2, []))

    def __getitem__(self, name: str) -> np.ndarray:
        entry, shape = self._entries[name], self.shape(name)
        number, offset, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
        kind = _NUMPY.get(entry.get(1, [0])[0])
        path = self._prefix.with_name(
            f"{self._prefix.name}.data-{number:05d}-of-{self._shards:05d}"
        )
        if kind is None or 7 in entry:
            raise DataError(f"{path}: {name} is no plain array of numbers")
        if np.dtype(kind).itemsize * int(np.prod(shape)) != size:
            raise DataError(f"{path}: {name} has shape {shape} but {size} bytes")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"{path}: the file ends inside {name}; fetch it again")
        return np.frombuffer(data, kind).reshape(shape)


def _entries_of_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a table, in order."""
    footer = table[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as one")
    _, place = _handle(footer, 0)
    index, _ = _handle(footer, place)
    for _, value in _entries_of_block(table, *index):
        yield from _entries_of_block(table, *_handle(value, 0)[0])


def _entries_of_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = table[offset : offset + size]
    if len(block) != size or table[offset + size] != 0:
        raise ValueError("it is cut off, or compressed")
    (restarts,) = struct.unpack("<I", block[-4:])
    end, place, key = size - 4 * (restarts + 1), 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, the place behind)"""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(number, the place behind)"""
    number, shift = 0, 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _fields(message: bytes) -> dict[int, list]:
    """Field number -> its values, of a protocol buffer: integers, or bytes where it is longer."""
    found: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == 0:
            value, place = _varint(message, place)
        else:
            length, place = (
                (_FIXED[tag & 7], place) if tag & 7 in _FIXED else _varint(message, place)
            )
            value, place = message[place : place + length], place + length
        found.setdefault(tag >> 3, []).append(value)
    return found
