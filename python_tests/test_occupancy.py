"""Resident blocks of a kernel, by hand and against NVIDIA's calculator."""

import itertools
import shutil
import subprocess

import pytest

from benchmarks import occupancy


@pytest.mark.parametrize(
    ("shape", "blocks", "share"),
    [
        # 80 registers a thread are 2560 a warp; a quarter of 65536 has six of these, the four
        # partitions 24: six blocks of four warps, of 64.
        (("sm_90", 80, 128, 0), 6, 24 / 64),
        # 81 are 2592, in units of 256 2816: five a partition, 20, five blocks.
        (("sm_90", 81, 128, 0), 5, 20 / 64),
        # 16 registers: 64 warps are 32 blocks of two, all there may be; blocks of one warp leave
        # half of the warps idle.
        (("sm_90", 16, 64, 0), 32, 1.0),
        (("sm_90", 16, 32, 0), 32, 0.5),
        (("sm_120", 16, 32, 0), 24, 0.5),
        # 46336 bytes and 1024 are 47360, 370 units of 128: three in 164 KB, four in 228 KB, two in
        # 100 KB.
        (("sm_80", 32, 128, 46336), 3, 12 / 64),
        (("sm_90", 32, 128, 46336), 4, 16 / 64),
        (("sm_120", 32, 128, 46336), 2, 8 / 48),
        # 6272 and 1024 are 57 units, of which 228 KB hold 32 times; a byte more is a unit more.
        (("sm_90", 16, 64, 6272), 32, 1.0),
        (("sm_90", 16, 64, 6273), 31, 62 / 64),
        # A block of 99 KB fills 12.0 to the byte; one byte more does not fit at all.
        (("sm_120", 32, 128, 99 << 10), 1, 4 / 48),
        (("sm_120", 32, 128, (99 << 10) + 1), 0, 0.0),
        # 640 threads of 96 registers: 3072 a warp, five a partition, 20 warps, just this block.
        (("sm_90", 96, 640, 512), 1, 20 / 64),
        # 1024 threads of 64 registers are all there are; of 65 too many.
        (("sm_80", 64, 1024, 0), 1, 0.5),
        (("sm_80", 65, 1024, 0), 0, 0.0),
    ],
)
def test_occupancy_by_hand(shape, blocks, share):
    assert occupancy.blocks_per_sm(*shape) == blocks
    assert occupancy.occupancy(*shape) == pytest.approx(share)


def test_occupancy_of_an_unknown_architecture():
    with pytest.raises(ValueError, match="the limits of sm_87 are not known"):
        occupancy.blocks_per_sm("sm_87", 32, 128, 0)


CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, warps, shared, registers, threads, bytes;
  while (std::scanf("%d%d%d%d%d%d", &major, &warps, &shared, &registers, &threads, &bytes) == 6) {
    cudaOccDeviceProp gpu;
    gpu.computeMajor = major;
    gpu.maxThreadsPerBlock = 1024;
    gpu.maxThreadsPerMultiprocessor = 32 * warps;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536;
    gpu.warpSize = 32;
    gpu.sharedMemPerBlock = 48 << 10;
    gpu.sharedMemPerMultiprocessor = shared;
    gpu.sharedMemPerBlockOptin = shared - 1024;
    gpu.reservedSharedMemPerBlock = 1024;
    gpu.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult found;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &gpu, &kernel, &state, threads, bytes)) {
      return 1;
    }
    std::printf("%d\\n", found.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_against_nvidias_calculator(tmp_path):
    """Every kind of limit, on every architecture, against the header of the toolkit."""
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc on this machine, so no cuda_occupancy.h")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    command = ["nvcc", "calculator.cpp", "-o", "calculator"]  # it knows where the header is
    subprocess.run(command, cwd=tmp_path, check=True)
    registers = [16, 24, 32, 33, 40, 41, 64, 72, 80, 81, 96, 97, 128, 144, 168, 176, 255]
    threads = [32, 64, 96, 128, 160, 256, 384, 512, 608, 768, 1000, 1024]
    shared = [0, 1, 4864, 6272, 6273, 12288, 46336, 48 << 10, (48 << 10) + 1, 99 << 10, 101377]
    shapes = list(itertools.product(occupancy.LIMITS, registers, threads, shared))
    asked = "\n".join(
        f"{arch[3:-1]} {occupancy.LIMITS[arch].warps} {occupancy.LIMITS[arch].shared} {r} {t} {s}"
        for arch, r, t, s in shapes
    )
    done = subprocess.run([tmp_path / "calculator"], input=asked, text=True, capture_output=True)
    assert list(map(int, done.stdout.split())) == [
        occupancy.blocks_per_sm(*shape) for shape in shapes
    ]
