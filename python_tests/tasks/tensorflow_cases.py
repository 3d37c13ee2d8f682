"""Checkpoints as TensorFlow writes them: a sorted table of protocol buffers, and raw numbers."""

import struct

import numpy as np

_TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}


def varint(number):
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries, interval=16):
    """Entries whose keys share a prefix with the one before, but for every 16th."""
    data, restarts, before = b"", [], b""
    for place, (key, value) in enumerate(entries):
        shared = 0
        if place % interval == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(before), len(key)) and before[shared] == key[shared]:
                shared += 1
        own = key[shared:]
        data += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        before = key
    restarts = restarts or [0]
    return data + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_bundle(prefix, arrays, entries_of_block=20):
    """`prefix`.index and its data."""
    data, entries = b"", [(b"", field(1, 1))]
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        raw = array.tobytes()
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        value = field(1, _TYPES[array.dtype.name]) + field(2, shape)
        value += field(4, len(data)) + field(5, len(raw)) + varint(6 << 3 | 5) + b"\0" * 4
        entries.append((name.encode(), value))
        data += raw
    table, index = b"", []

    def add(entries):
        nonlocal table
        content = block(entries)
        handle = varint(len(table)) + varint(len(content))
        table += content + b"\0" * 5  # not compressed, and a checksum
        return handle

    for start in range(0, len(entries), entries_of_block):
        part = entries[start : start + entries_of_block]
        index.append((part[-1][0], add(part)))
    handles = add([]) + add(index)
    table += handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(table)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
