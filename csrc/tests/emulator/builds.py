"""The three builds of the native module with the CUDA emulator, and how a process uses one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
CSRC = TREE / "csrc"
EMULATOR = CSRC / "tests" / "emulator"
COMMON = [
    f"-I{CSRC}", "-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of the three builds."""

    name: str
    flags: tuple[str, ...]  # of everything
    cuda_flags: tuple[str, ...] = ()  # of the CUDA sources alone
    left_out: str = ""  # tests that need long here and show elsewhere what they show


KINDS = {
    "plain": Kind("plain", ("-O1",)),
    "sanitize": Kind(
        "sanitize",
        (
            "-O1",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ),
        left_out=" and not repeats and not 70 and not gradcheck",
    ),
    # The compiler's calls for the thread sanitizer, answered by record.cpp: that library stays out.
    "races": Kind(
        "races",
        ("-O1", "-DSPANBERT_EMULATOR_RECORDS"),
        ("-fsanitize=thread", "-fno-tree-vectorize"),
        left_out=" and not repeats and not 70",
    ),
}


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise SystemExit("no C++ compiler: set CXX, or install g++ or clang++")
    return found


def includes(build: Path) -> list[str]:
    import pybind11

    return [f"-I{build}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


def sources(kind: Kind, build: Path, sample: Path | None = None) -> list[tuple[Path, list[str]]]:
    """Every source with the options of its own: of the module, or of the emulator and `sample`."""
    native = [*COMMON, *kind.flags]
    shared = [*native, "-DSPANBERT_EMULATOR"]
    cpu = [
        *native, "-DSPANBERT_VARIANT=baseline", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    ]  # fmt: skip
    cuda = [
        *shared, *kind.cuda_flags, "-xc++", "-DSPANBERT_VARIANT=device",
        f"-I{EMULATOR / 'include'}", "-Wno-unknown-pragmas",
    ]  # fmt: skip
    recorders = ("record", "count")
    emulator = [
        path
        for path in sorted(EMULATOR.glob("*.cpp"))
        if kind.name == "races" or path.stem not in recorders
    ]
    if sample:
        return [(sample, cuda), *((path, shared) for path in emulator)]
    return [
        *((path, cuda) for path in sorted(CSRC.rglob("*.cu")) if EMULATOR not in path.parents),
        *((path, cpu) for path in sorted((CSRC / "cpu").glob("*.cpp"))),
        *((path, shared) for path in emulator),
        (CSRC / "bindings.cpp", [*shared, "-fopenmp", *includes(build)]),
    ]


def build_module(kind: Kind, build: Path) -> Path:
    """Compiles and links `_C`, beside links to the package's own files; returns the folder to put
    on the path."""
    package = build / "package" / "spanbert_ext"
    package.mkdir(parents=True, exist_ok=True)
    for path in (TREE / "spanbert_ext").iterdir():
        target = package / path.name
        if not path.name.startswith("_C.") and path.name != "__pycache__" and not target.exists():
            target.symlink_to(path)
    (build / "build_facts.h").write_text(
        '#define SPANBERT_NO_CUDA_REASON "this test build emulates CUDA"\n'
        '#define SPANBERT_NO_OPENMP_REASON ""\n'
    )
    module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    link(kind, build, sources(kind, build), module)
    return package.parent


def build_sample(kind: Kind, build: Path, sample: Path) -> Path:
    """Compiles kernels of a test with the emulator alone; returns a library for ctypes."""
    library = build / f"{sample.stem}.so"
    link(kind, build, sources(kind, build, sample), library)
    return library


def link(kind: Kind, build: Path, compiled: list[tuple[Path, list[str]]], target: Path) -> None:
    objects, jobs = [], []
    for source, options in compiled:
        objects.append(build / f"{source.name}.o")
        jobs.append([compiler(), *options, "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run_or_stop, jobs))
    link_objects(kind, objects, target)


def link_objects(kind: Kind, objects: list[Path], target: Path) -> None:
    linked = [flag for flag in kind.flags if flag.startswith("-fsanitize")]
    run_or_stop([compiler(), "-shared", *linked, "-fopenmp", *map(str, objects), "-o", str(target)])


def run_or_stop(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def environment(kind: Kind, path: Path, seed: int, counts: Path, full: bool) -> dict[str, str]:
    """Variables of a process that uses a build; sanitizers write to files beside `counts`, since
    pytest holds back what a process says that they end."""
    tests = TREE / "python_tests"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (path, tests))),
        "SPANBERT_EMULATOR_SEED": str(seed),
        "SPANBERT_EMULATOR_COUNTS": str(counts),
        "OMP_NUM_THREADS": "1",
        "SPANBERT_EMULATOR_FULL": "1" if full else "",
        "SPANBERT_STRESS_SEED": str(seed),
    }
    if kind.name == "sanitize":
        env["LD_PRELOAD"] = " ".join(library(name) for name in ("libasan.so", "libstdc++.so"))
        log = f":log_path={counts}.sanitizer"
        env["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0" + log
        env["UBSAN_OPTIONS"] = "print_stacktrace=1" + log
    return env


def library(name: str) -> str:
    """Where the compiler keeps a library; clang calls its address sanitizer otherwise."""
    for candidate in (name, "libclang_rt.asan-x86_64.so" if name == "libasan.so" else name):
        found = subprocess.run(
            [compiler(), f"-print-file-name={candidate}"], capture_output=True, text=True
        ).stdout.strip()
        if "/" in found:
            return found
    raise SystemExit(f"{compiler()} has no {name}")
