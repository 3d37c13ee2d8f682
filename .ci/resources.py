"""Prints registers and shared memory of every kernel from a `ptxas -v` log; fails if a hot one
spills.

Kernels on double rows exist for gradient checks and may spill.
"""

import re
import subprocess
import sys
from pathlib import Path


def main(log: str) -> int:
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes spill stores.*?"
        r"Used (\d+) registers([^\n]*)\n",
        re.S,
    )
    rows = pattern.findall(Path(log).read_text())
    names = "\n".join(row[0] for row in rows)
    plain = subprocess.run(["c++filt"], input=names, text=True, capture_output=True, check=True)
    spilled = []
    for demangled, row in zip(plain.stdout.splitlines(), rows, strict=True):
        name = re.sub(
            r"spanbert::(device::)?|\(anonymous namespace\)::|\(.*\)$|^void ", "", demangled
        )
        _, arch, spill, registers, rest = row
        shared = re.search(r"(\d+) bytes smem", rest)
        size = shared[1] if shared else "0"
        print(f"{arch:7} {registers:>3} registers {size:>5} B shared {spill} B spilled  {name}")
        if int(spill) and "double" not in name:
            spilled.append(f"{name} ({arch})")
    if not rows or spilled:
        print(f"spills in: {', '.join(spilled)}" if rows else "no kernels found in the log")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
