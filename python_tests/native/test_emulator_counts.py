"""What the emulator counts of a kernel's accesses, against numbers computed by hand.

Every kernel has blocks of two warps; csrc/tests/emulator/count_kernels.cu says what they do.
"""

from __future__ import annotations

import ctypes

import pytest
from emulator_builds import load_sample

COPY, COPY_VECTORS, RAGGED = 0, 1, 2  # 4, 8 and 16: reads of so many bytes of shared memory
FIELDS = ("requests", "bytes", "sectors", "ideal", "turns", "degrees", "worst", "place")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels with the emulator, as a library."""
    folder = tmp_path_factory.mktemp("counts")
    library = load_sample("races", "count_kernels.cu", folder)
    library.spanbert_emulator_counts.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def memory():
    """An address that is a multiple of 128, of 16 KB in front of as much again."""
    held = (ctypes.c_char * (32768 + 128))()
    yield -(-ctypes.addressof(held) // 128) * 128
    del held


def counted(library, memory, kernel, blocks=1, stride=1, offset=0):
    """The fields of the one kernel and those of its kinds of access, of one launch."""
    start, to = ctypes.c_void_p(memory + offset), ctypes.c_void_p(memory + 16384)
    library.spanbert_emulator_count(1)
    library.spanbert_run_sample(kernel, blocks, start, to, stride)
    library.spanbert_emulator_count(0)
    lines = library.spanbert_emulator_counts(0).decode().splitlines()
    rows = {kind: list(map(int, values)) for _, kind, *values in (x.split("\t") for x in lines)}
    return rows.pop("kernel"), {k: dict(zip(FIELDS, v, strict=True)) for k, v in rows.items()}


# 32 neighbouring floats are 4 sectors, 64 are 8; a stride of 2 doubles that. From 4 bytes behind
# the begin of a sector a warp touches 5, a block 9, and both blocks 17: they share one.
@pytest.mark.parametrize(
    ("stride", "offset", "a_request", "ideal", "a_block", "a_launch"),
    [(1, 0, 4, 4, 8, 16), (2, 0, 8, 4, 16, 32), (1, 4, 5, 4, 9, 17), (0, 0, 1, 1, 1, 1)],
    ids=["coalesced", "every second", "misaligned", "one value for all"],
)
def test_copy(library, memory, stride, offset, a_request, ideal, a_block, a_launch):
    kernel, kinds = counted(library, memory, COPY, 2, stride, offset)
    assert kernel == [1, 2, 128, 0, 2 * a_block, 16, a_launch, 16]
    read = kinds["read"]
    assert (read["requests"], read["bytes"]) == (4, 512)
    assert (read["sectors"], read["ideal"]) == (4 * a_request, 4 * ideal)
    assert kinds["written"] == dict(zip(FIELDS, (4, 512, 16, 16, 0, 0, 0, 0), strict=True))
    assert kinds["shared_read"]["requests"] == kinds["shared_written"]["requests"] == 0


def test_wide_accesses_are_one_request(library, memory):
    kernel, kinds = counted(library, memory, COPY_VECTORS, 2)
    assert kernel == [1, 2, 128, 0, 64, 64, 64, 64]
    for kind in ("read", "written"):
        assert kinds[kind] == dict(zip(FIELDS, (4, 2048, 64, 64, 0, 0, 0, 0), strict=True))


def test_lanes_that_leave_a_loop_do_not_shift_the_others(library, memory):
    # Two warps, two rounds: 32 floats in 4 sectors, then 8 floats in 1.
    _, kinds = counted(library, memory, RAGGED)
    read = kinds["read"]
    assert (read["requests"], read["bytes"], read["sectors"]) == (8, 640, 20)


# A warp is served at once, in two halves or in four quarters, by the size of an access.
@pytest.mark.parametrize(
    ("size", "stride", "turns", "degree"),
    [
        (4, 1, 1, 1), (4, 2, 1, 2), (4, 8, 1, 8), (4, 33, 1, 1), (4, 0, 1, 1),
        (8, 1, 2, 1), (8, 2, 2, 2), (16, 1, 4, 1), (16, 2, 4, 2), (16, 0, 4, 1),
    ],
)  # fmt: skip
def test_bank_conflicts(library, memory, size, stride, turns, degree):
    kernel, kinds = counted(library, memory, size, stride=stride)
    assert kernel[:4] == [1, 1, 64, 2]
    read, written = kinds["shared_read"], kinds["shared_written"]
    assert (read["requests"], read["bytes"]) == (2, 64 * size)
    assert (read["turns"], read["degrees"], read["worst"]) == (
        2 * turns,
        2 * turns * degree,
        degree,
    )
    assert (written["requests"], written["turns"], written["worst"]) == (64, 64, 1)


def test_it_counts_from_nothing_and_only_while_it_is_on(library, memory):
    first = counted(library, memory, COPY)
    assert counted(library, memory, COPY) == first
    library.spanbert_run_sample(
        COPY, 1, ctypes.c_void_p(memory), ctypes.c_void_p(memory + 16384), 1
    )
    assert counted(library, memory, COPY) == first
