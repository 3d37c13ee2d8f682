"""Reads what nvcc and ptxas tell of CUDA kernels: the lines of `ptxas -v` in the output of a build,
and the PTX that nvcc keeps. Kernels have their mangled name and architecture ("sm_90") as key.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

Key = tuple[str, str]


class Used(NamedTuple):
    """What the machine code of a kernel needs: registers of a thread, and bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int


class Declared(NamedTuple):
    """What the source asks for: launch bounds, and whether there is dynamic shared memory."""

    nvcc: str
    threads: int
    blocks_asked: int
    is_dynamic: bool


_BEGIN = r"Compiling entry function '(\w+)' for '(sm_\w+)'"
_KERNEL = re.compile(
    _BEGIN + r"(?:(?!Compiling entry).)*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads(?:(?!Compiling entry).)*?Used (\d+) registers([^\n]*)",
    re.S,
)


def read_log(log: str) -> dict[Key, Used]:
    """Registers and memory of every kernel in the output of a build.

    Raises:
        ValueError: the text has no lines of `ptxas -v`, or some of another form.
    """
    kernels = {}
    for name, arch, stack, stores, loads, registers, rest in _KERNEL.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels[name, arch] = Used(
            registers=int(registers),
            spill_stores=int(stores),
            spill_loads=int(loads),
            stack=int(stack),
            static_shared=int(shared[1]) if shared else 0,
        )
    begun = set(re.findall(_BEGIN, log))
    if not begun or set(kernels) != begun:
        raise ValueError(
            f"{len(begun)} kernels begin in the log and {len(kernels)} of them were understood; it "
            "must be the output of a build with -DSPANBERT_EXT_PTXAS=ON"
        )
    return kernels


def read_ptx(text: str) -> dict[Key, Declared]:
    """The kernels of one PTX file.

    Raises:
        ValueError: nvcc did not write the text, or a kernel has no launch bounds.
    """
    target = re.search(r"^\.target (sm_\w+)", text, re.M)
    version = re.search(r"Cuda compilation tools, release [\d.]+, V([\d.]+)", text)
    if not target or not version:
        raise ValueError("a PTX file names neither its architecture nor the nvcc that wrote it")
    dynamic = re.findall(r"^\.extern \.shared [^;\n]*?(\w+)\[\];", text, re.M)
    kernels = {}
    for entry in re.split(r"\.entry\s+", text)[1:]:
        name, head = re.match(r"\w+", entry)[0], entry[: entry.index("{")]
        threads = re.search(r"\.maxntid ([\d, ]+)", head)
        blocks = re.search(r"\.minnctapersm (\d+)", head)
        if not threads:
            raise ValueError(f"kernel {name} has no launch bounds: its occupancy is unknown")
        kernels[name, target[1]] = Declared(
            nvcc=version[1],
            threads=math.prod(map(int, threads[1].split(","))),
            blocks_asked=int(blocks[1]) if blocks else 1,
            is_dynamic=any(symbol in entry for symbol in dynamic),
        )
    return kernels


def labels(names: Sequence[str]) -> dict[str, str]:
    """Short labels of mangled names, by c++filt of binutils."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True
    )
    return dict(zip(names, map(label, done.stdout.splitlines()), strict=True))


def label(demangled: str) -> str:
    """What starts a kernel, without namespaces, the template `entry` and the list of arguments.

    Args:
        demangled: such as "void spanbert::device::entry<spanbert::device::SpanSample<int> >(Args)"
    """
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:  # between <> it is a cast
            name = name[:at]
            break
    name = re.sub(r"\b[A-Za-z_]\w*::", "", name).replace(" >", ">")
    started = re.fullmatch(r"entry<(.*)>", name)
    return started[1] if started else name
