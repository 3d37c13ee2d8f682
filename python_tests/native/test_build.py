"""What the build decides before it compiles: the GPUs of a toolkit, and whether it can be used."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CMAKE = shutil.which("cmake")
FOLDER = Path(__file__).resolve().parents[2] / "cmake"
pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not on PATH")

OLD, NEW = "80-real;90", "80-real;90-real;100-real;120"


def run_script(name, *options, cwd, **environment):
    """The script's status and what it printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "NVCC"))}
    words = [CMAKE, *options, "-P", str(FOLDER / name)]
    child = subprocess.run(
        words, cwd=cwd, env=env | environment, capture_output=True, text=True, timeout=60
    )
    return child.returncode, " ".join((child.stdout + child.stderr).split())


@pytest.mark.parametrize(
    ("version", "architectures"),
    [
        ("11.8", OLD),
        ("11.8.89", OLD),
        ("12.0", OLD),
        ("12.4", OLD),
        ("12.6", OLD),
        ("12.7", OLD),
        ("12.8", NEW),  # the first that knows Blackwell
        ("12.9", NEW),
        ("13.0", NEW),
        ("13.4", NEW),
        ("14.0", NEW),
    ],
)
def test_architectures_of_a_toolkit(tmp_path, version, architectures):
    found = run_script("architectures.cmake", f"-DVERSION={version}", cwd=tmp_path)
    assert found == (0, architectures)


@pytest.mark.parametrize("version", ["9.0", "11.0", "11.2", "11.7", "11.7.99"])
def test_toolkits_that_are_too_old(tmp_path, version):
    code, said = run_script("architectures.cmake", f"-DVERSION={version}", cwd=tmp_path)
    assert code != 0
    assert f"CUDA {version} is too old: 11.8 or newer is needed" in said


@pytest.mark.parametrize("version", ["", "new", "12", "12.x"])
def test_what_is_no_version(tmp_path, version):
    code, said = run_script("architectures.cmake", f"-DVERSION={version}", cwd=tmp_path)
    assert code != 0 and f"got '{version}'" in said


def toolkit(folder, version, compile_with):
    """An nvcc that knows its version and compiles as told."""
    nvcc = folder / "nvcc"
    says = f"echo 'Cuda compilation tools, release {version}, V{version}.1'"
    nvcc.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then {says}\nelse {compile_with}; fi\n')
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("version", "compile_with", "said"),
    [
        ("11.2", "exit 0", "CUDA 11.2 is too old: 11.8 or newer is needed"),
        ("12.4", "exit 0", "(CUDA 12.4) cannot compile and link a small program: nvcc reported"),
        (
            "12.4",
            "echo 'nvcc fatal   : Unsupported gpu architecture; [compute_90]' >&2; exit 1",
            "small program: nvcc fatal : Unsupported gpu architecture compute_90",
        ),
        (
            "11.8",
            "echo 'x.h:1: error: #error -- unsupported GNU version! gcc later than 11' >&2; exit 1",
            "gcc later than 11 (name an older compiler in CUDAHOSTCXX)",
        ),
        (
            "12.6",
            "echo '/usr/bin/ld: cannot find -lcudart_static: none'; echo 'ld: error: 1'; exit 1",
            "small program: /usr/bin/ld: cannot find -lcudart_static",
        ),
        ("12.6", "exit 3", "small program: no message"),
        ("nothing", "exit 0", "--version does not tell a CUDA version"),
    ],
)
def test_a_toolkit_that_cannot_be_used_is_named_with_the_reason(
    tmp_path, version, compile_with, said
):
    nvcc = toolkit(tmp_path, version, compile_with)
    code, found = run_script("cuda.cmake", cwd=tmp_path, CUDACXX=str(nvcc))
    assert code == 0
    assert found.startswith(str(nvcc)) and said in found


def test_no_toolkit(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    code, found = run_script("cuda.cmake", cwd=tmp_path, PATH=str(tools))
    if "no nvcc was found" not in found:
        pytest.skip(f"CMake finds an nvcc without PATH here: {found}")
    assert (code, found) == (0, "no nvcc was found on PATH, in CUDACXX or under CUDA_HOME")
    code, found = run_script("cuda.cmake", cwd=tmp_path, CUDACXX="/nowhere/nvcc")
    assert found == "the CUDA compiler '/nowhere/nvcc' was asked for and is not there"


COMPILES = 'echo "$@" > options; while [ "$1" != -o ]; do shift; done; touch "$2"'


@pytest.mark.parametrize(
    ("given", "architectures", "options"),
    [
        (
            None,
            OLD,
            "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=[sm_90,compute_90]",
        ),
        ("87", "87", "-gencode=arch=compute_87,code=[sm_87,compute_87]"),
        ("90a-real", "90a-real", "-gencode=arch=compute_90a,code=sm_90a"),
        ("90-virtual", "90-virtual", "-gencode=arch=compute_90,code=compute_90"),
        ("all-major", "all-major", "-arch=all-major"),
    ],
)
def test_a_toolkit_that_works(tmp_path, given, architectures, options):
    nvcc = toolkit(tmp_path, "12.4", COMPILES)
    chosen = [f"-DCMAKE_CUDA_ARCHITECTURES={given}"] if given else []
    code, found = run_script(
        "cuda.cmake", *chosen, cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    assert (code, found) == (0, f"{nvcc} for {architectures}")
    written = (tmp_path / "options").read_text()
    assert written.startswith(f"-std=c++17 {options} -cudart static -o ")
    assert written.strip().endswith("probe.cu")
    assert not (tmp_path / "nvcc_probe").exists()


def test_the_host_compiler_and_flags_are_those_of_cmake(tmp_path):
    nvcc = toolkit(tmp_path, "12.4", COMPILES)
    given = {"CUDACXX": str(nvcc), "CUDAHOSTCXX": "/opt/g++", "CUDAFLAGS": "-a -b"}
    run_script("cuda.cmake", cwd=tmp_path, **given)
    assert " -ccbin=/opt/g++ -a -b " in (tmp_path / "options").read_text()
