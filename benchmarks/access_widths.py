"""How wide the accesses to global memory of compiled kernels are, from their disassembly.

Instructions are counted as they stand, not as often as they run: the share tells whether an array
of a kernel fell back to narrow accesses, not how many bytes move.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from benchmarks.compiled_kernels import Key

MISSING = (
    "the disassembler is not here: widths of loads were not checked; "
    "pip install nvidia-cuda-nvdisasm, or take nvdisasm from the CUDA toolkit"
)

# Global accesses, and generic ones, which a kernel uses where a pointer may be either.
_LINE = re.compile(
    r"^\s*\.section\s+\.text\.(?P<kernel>\w+)"
    r"|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(?P<opcode>LDG|STG|LDGSTS|LD|ST)(?P<rest>(?:\.\w+)*)\s",
    re.M,
)


def find_disassembler() -> str | None:
    """nvdisasm of the toolkit or of its wheel; None where there is neither."""
    if found := shutil.which("nvdisasm"):
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.stem == "nvdisasm"), None)


def read_cubins(folder: Path) -> dict[Key, float] | None:
    """Wide share of every kernel in the cubins of a folder; None where there is no disassembler.

    Raises:
        ValueError: the disassembler refuses a file.
    """
    disassembler = find_disassembler()
    if disassembler is None:
        return None
    shares = {}
    for cubin in sorted(folder.glob("*.cubin")):
        done = subprocess.run([disassembler, "-c", cubin], text=True, capture_output=True)
        if done.returncode:
            raise ValueError(f"{disassembler} cannot read {cubin}: {done.stderr.strip()}")
        shares |= {key: wide_share(found) for key, found in read_assembly(done.stdout).items()}
    return shares


def read_assembly(text: str) -> dict[Key, Counter[tuple[str, int]]]:
    """Instructions that reach global memory, counted by (opcode, bits), of each kernel.

    Raises:
        ValueError: the text does not name its architecture.
    """
    target = re.search(r"\.target\s+(sm_\w+)|EF_CUDA_SM(\d+)", text)
    if not target:
        raise ValueError("a disassembly does not name its architecture")
    arch = target[1] or f"sm_{target[2]}"
    kernels: dict[Key, Counter[tuple[str, int]]] = {}
    for match in _LINE.finditer(text):
        if match["kernel"]:
            accesses = kernels.setdefault((match["kernel"], arch), Counter())
        else:
            accesses[match["opcode"], _bits(match["rest"])] += 1
    return kernels


def _bits(modifiers: str) -> int:
    for modifier in modifiers.split("."):
        if size := re.fullmatch(r"[US]?(8|16|64|128|256)", modifier):
            return int(size[1])
    return 32


def wide_share(accesses: Counter[tuple[str, int]]) -> float:
    """Share of the bytes that move 16 or more at a time; 0 if no load does."""
    if not any(opcode.startswith("LD") and bits >= 128 for opcode, bits in accesses):
        return 0.0
    total = sum(bits * count for (_, bits), count in accesses.items())
    return sum(bits * count for (_, bits), count in accesses.items() if bits >= 128) / total
