"""Every mistake that the emulator must stop, and its neighbours that are none.

csrc/tests/emulator/stop_kernels.cu has the kernels: blocks of 64 threads, 1024 floats of memory.
"""

from __future__ import annotations

import ctypes
import re

import pytest
from emulator_builds import load_sample

NAMES = (
    "barrier left out", "two barriers", "lane absent", "lane not named", "own lane not named",
    "warp against barrier", "assertion", "misaligned read", "misaligned write", "behind shared",
    "before shared", "large array", "uninitialised", "race of warps", "race of lanes",
    "race of blocks", "read then written", "behind barrier", "behind syncwarp", "behind shuffle",
    "all read", "order",
)  # fmt: skip
STOPPED = {
    "barrier left out": r"thread \d+ of 64: waits at the barrier of csrc/tests/emulator/"
    r"stop_kernels.cu:\d+ for thread 5, which has left the kernel",
    "two barriers": r"waits at the barrier of .*:\d+, while thread 0 waits at the barrier of",
    "lane absent": r"waits at __syncwarp\(0xffffffff\) of .* for lane 7, which has left the kernel",
    "lane not named": r"__shfl_sync\(0x0000ffff\) (reads lane 20, which it does not name"
    r"|does not name its own lane \d+) at csrc/",
    "own lane not named": r"__syncwarp\(0x0000ffff\) does not name its own lane \d+ at csrc/",
    "warp against barrier": r"for lane 3, which waits at the barrier",
    "assertion": r"thread 9 of 64: assertion `i != 9` failed at csrc/.*:\d+",
    "misaligned read": r"misaligned read of 16 bytes",
    "misaligned write": r"misaligned write of 16 bytes",
    "behind shared": r"byte 256 of the shared array shared \[256 bytes\] was written",
    "before shared": r"byte -1 of the shared array shared \[256 bytes\] was written",
    "large array": r"\d+ bytes of shared arrays exceed 48 KB",
}
# Seen only where every access is recorded: without that, the values are what they should be in
# some order.
RECORDED = {
    "behind shared": r"writes 4 bytes outside its shared arrays at csrc/",
    "before shared": r"writes 4 bytes outside its shared arrays at csrc/",
    "uninitialised": r"reads byte \d+ of the shared array shared at csrc/.*, which no thread wrote",
    "race of warps": r"of the shared array shared at csrc/.*(nothing between|no thread wrote)",
    "race of lanes": r"of the shared array shared at csrc/.*(nothing between|no thread wrote)",
    "race of blocks": r"writes global memory at .*, and block \d, thread \d+ wrote it at csrc/",
    "read then written": r"of the shared array shared at csrc/.* (read|wrote) it at csrc/",
    "behind shuffle": r"of the shared array shared at csrc/.*(nothing between|no thread wrote)",
    "order": r"global memory at .* with nothing between them",
}
FINE = ("behind barrier", "behind syncwarp", "all read")


class Sample:
    def __init__(self, library):
        self.library = library
        self.floats = (ctypes.c_float * 1028)()
        address = -(-ctypes.addressof(self.floats) // 16) * 16
        self.values = (ctypes.c_float * 1024).from_address(address)

    def run(self, name, blocks=1, threads=64, shared_bytes=0):
        """Why a kernel stopped; "" if it ended."""
        message = ctypes.create_string_buffer(1024)
        self.library.spanbert_run_stop(
            NAMES.index(name), ctypes.c_int64(blocks), ctypes.c_int64(threads),
            ctypes.c_int64(shared_bytes), self.values, message, ctypes.c_size_t(1024),
        )  # fmt: skip
        return message.value.decode()

    def seed(self, seed):
        self.library.spanbert_emulator_seed(ctypes.c_uint64(seed))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Sample(load_sample("plain", "stop_kernels.cu", tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return Sample(load_sample("races", "stop_kernels.cu", tmp_path_factory.mktemp("races")))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", STOPPED)
def test_a_mistake_is_named(plain, name, seed):
    plain.seed(seed)
    message = plain.run(name)
    assert message.startswith("emulator: kernel sample, block 0")
    assert re.search(STOPPED[name], message), message
    assert plain.run("behind barrier") == ""  # the next launch knows nothing of it


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_accesses_show_conflicts_in_any_order(recorded, name, seed):
    recorded.seed(seed)
    message = recorded.run(name, blocks=2)
    assert re.search(RECORDED[name], message), message
    assert recorded.run("behind barrier") == ""


@pytest.mark.parametrize("name", FINE)
def test_what_is_in_order_is_fine(plain, recorded, name):
    for sample in (plain, recorded):
        for seed in range(5):
            sample.seed(seed)
            assert sample.run(name) == ""


def test_a_read_by_many_and_one_write_of_another_place_conflict_in_no_build(recorded):
    recorded.values[0] = 5
    assert recorded.run("all read") == ""
    assert list(recorded.values[64:128]) == [5] * 64


def test_the_seed_decides_the_order(plain):
    def first(seed):
        plain.seed(seed)
        assert plain.run("order") == ""
        return plain.values[0]

    found = [first(seed) for seed in range(20)]
    assert found == [first(seed) for seed in range(20)]
    assert len(set(found)) > 10


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"threads": 96}, "kernel sample was given 96 threads a block; it takes 64 at most"),
        ({"blocks": 1 << 31}, f"kernel sample was given {1 << 31} blocks; it takes 2147483647"),
        ({"blocks": -1}, "kernel sample was given -1 blocks"),
        ({"shared_bytes": 232449}, "was given 232449 bytes of shared memory on this GPU; it takes"),
        ({"shared_bytes": 1 << 32}, f"was given {1 << 32} bytes of shared memory; it takes"),
        ({"shared_bytes": 232448}, r"256 bytes of shared arrays and 232448 of the launch exceed"),
    ],
)
def test_a_limit_is_named_with_its_number(plain, launch, said):
    assert said in plain.run("behind barrier", **launch)
    assert plain.run("behind barrier") == ""


def test_no_blocks_are_no_launch(plain):
    plain.values[1] = 7
    assert plain.run("behind barrier", blocks=0) == ""
    assert plain.values[1] == 7


def test_a_smaller_card_has_its_own_limit(tmp_path, monkeypatch):
    """Compute capability 8.6, 8.9 and 12.0: 99 KB."""
    monkeypatch.setenv("SPANBERT_EMULATOR_SHARED", "101376")
    small = Sample(load_sample("plain", "stop_kernels.cu", tmp_path))
    assert small.run("behind barrier", shared_bytes=101376 - 256) == ""
    assert "it takes 101376 at most" in small.run("behind barrier", shared_bytes=101377)
