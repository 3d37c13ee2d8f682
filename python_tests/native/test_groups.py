"""The group algorithms of the CUDA kernels, run by 32 threads on the CPU and compared with one
thread.

ThreadSanitizer sees a missing barrier as a race, as racecheck would on a GPU.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "tests"
SUMMARIES = {
    "group_test": "8 packed cases, 39 sequences, 419 checks with groups of 32, 0 failures",
    "group_loss_test": "44 row and 120 column cases with groups of 32, 0 failures",
}


@pytest.fixture(scope="module")
def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert found, "a C++ compiler built the package, so there must be one"
    return found


# What a build for one instruction set needs of /proc/cpuinfo.
FLAGS = {"x86-64-v3": {"avx2", "bmi2", "fma"}, "x86-64-v4": {"avx512f", "avx512bw", "avx512dq"}}


@pytest.mark.parametrize("name", SUMMARIES)
@pytest.mark.parametrize("option", ["", "thread", "address,undefined", *FLAGS])
def test_thirty_two_threads_give_what_one_gives(compiler, option, name, tmp_path):
    program, source = tmp_path / name, SOURCES / f"{name}.cpp"
    build = [compiler, "-std=c++20", "-O1", "-g", "-pthread", f"-I{SOURCES.parent}"]
    build += [str(source), "-o", str(program)]
    if option in FLAGS:
        if not FLAGS[option] <= set(Path("/proc/cpuinfo").read_text().split()):
            pytest.skip(f"this machine does not run {option}")
        # One thread and 32 are compiled apart: where a compiler joins a product and a sum in one of
        # them alone, a row of one number, whose variance is only rounding, differs.
        build += [f"-march={option}", "-O3", "-ffp-contract=off"]
    elif option:
        if "undefined" in option:
            build += ["-O0"]  # compiles in a sixth of the time, and nothing is optimised away
        build += [f"-fsanitize={option}", "-fno-sanitize-recover=all"]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    # Address randomisation of new kernels puts mappings where ThreadSanitizer keeps its shadow.
    start = ["setarch", "-R"] if shutil.which("setarch") else []
    for seed in ("1", "2"):
        run = subprocess.run([*start, program, seed], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stdout + run.stderr
        assert SUMMARIES[name] in run.stdout
