"""The group algorithms of the CUDA kernels, run by 32 threads on the CPU and compared with one
thread.

ThreadSanitizer sees a missing barrier as a race, as racecheck would on a GPU.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
SUMMARIES = {
    "group_test": "39 sequences and 18 row cases with groups of 32, 0 failures",
    "group_loss_test": "44 row and 120 column cases with groups of 32, 0 failures",
}


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    assert found, "a C++ compiler built the package, so there must be one"
    return found


@pytest.mark.parametrize("name", SUMMARIES)
@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_thirty_two_threads_give_what_one_gives(compiler, sanitizer, name, tmp_path):
    program, source = tmp_path / name, SOURCES / f"{name}.cpp"
    build = [compiler, "-std=c++20", "-O1", "-g", "-pthread", str(source), "-o", str(program)]
    if sanitizer:
        build += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    for seed in ("1", "2"):
        # Address randomisation of new kernels puts mappings where ThreadSanitizer keeps its shadow.
        run = subprocess.run(
            ["setarch", "-R", str(program), seed], capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert SUMMARIES[name] in run.stdout
