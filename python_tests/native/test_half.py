"""fp16 on the CPU: every half, and the floats around every rounding decision, with each compiler
that is there, by the F16C instructions and by integers.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "tests" / "half_test.cpp"
COMPILERS = [name for name in ("g++", "g++-11", "clang++", "clang++-14") if shutil.which(name)]
QUIET_HALF, QUIET_FLOAT = 0x0200, 0x00400000


def interesting_floats():
    """[N] uint32 bits: halves, ties between neighbours, what lies beside both, and random bits."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    finite = np.unique(halves[np.isfinite(halves)])
    ties = (finite[1:] + finite[:-1]) / 2  # exact, also as float
    edges = np.array([65504, 65519.996, 65520, 2.0**16, 2.0**-25, 2.0**-26, 1e-45, 3.4e38, 0.0])
    values = np.concatenate([finite, ties, edges, -edges]).astype(np.float32)
    bits = values.view(np.uint32)
    special = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0x7F802000]
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    return np.concatenate([bits, bits + 1, bits - 1, np.array(special, np.uint32), random])


def halves_of(bits):
    """numpy's rounding; a NaN keeps its sign and upper payload bits and becomes quiet."""
    with np.errstate(over="ignore"):
        rounded = bits.view(np.float32).astype(np.float16).view(np.uint16)
    sign_and_payload = ((bits >> 16) & 0x8000) | ((bits >> 13) & 0x3FF) | 0x7C00 | QUIET_HALF
    return np.where(np.isnan(bits.view(np.float32)), sign_and_payload, rounded).astype(np.uint16)


def floats_of_all_halves():
    bits = np.arange(65536, dtype=np.uint32)
    widened = bits.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    nan = ((bits & 0x8000) << 16) | ((bits & 0x3FF) << 13) | 0x7F800000 | QUIET_FLOAT
    is_nan = (bits & 0x7FFF) > 0x7C00
    return np.where(is_nan, nan, widened).astype(np.uint32)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("option", ["", "-mf16c"])
def test_halves_have_the_bits_of_numpy(compiler, option, tmp_path):
    if option and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("F16C is an extension of x86")
    program, bits = tmp_path / "half_test", interesting_floats()
    build = [compiler, "-std=c++17", "-O2", f"-I{SOURCE.parents[1]}", *option.split()]
    build += [str(SOURCE), "-o", str(program)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    output = subprocess.run([program], input=bits.tobytes(), capture_output=True, check=True).stdout
    floats = np.frombuffer(output[: 4 * 65536], np.uint32)
    halves = np.frombuffer(output[4 * 65536 :], np.uint16)
    np.testing.assert_array_equal(floats, floats_of_all_halves())
    np.testing.assert_array_equal(halves, halves_of(bits))
