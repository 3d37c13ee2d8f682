"""What the compiler alone tells of the CUDA kernels, without a GPU: registers, spills, shared
memory, occupancy and how wide the accesses to global memory are.

`python -m benchmarks.resources LOG KERNELS` reads what a build with -DSPANBERT_EXT_PTXAS=ON leaves:
its output, and its folder `kernels` with PTX and machine code. It compares them with
`results/resources.csv`, which `--record` writes. Kernels on double rows exist for gradient checks:
they may spill, and their accesses may be narrow.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks import access_widths, compiled_kernels
from benchmarks.occupancy import blocks_per_sm, occupancy

RESULTS = Path(__file__).resolve().parent / "results" / "resources.csv"
RECORD = "python -m benchmarks.resources LOG KERNELS --record"

# Dynamic shared memory is known to the launch alone. Here it is that of the published base shapes,
# by the bytes of a working value, behind the block's reductions.
HIDDEN, POSITIONS = 768, 15
_REDUCTION = 256
DYNAMIC: tuple[tuple[str, Callable[[int], int]], ...] = (
    (r"(GeluLayerNorm|SboFirstLayer)<.*Strided", lambda value: 4 * HIDDEN * value),  # four warps
    (r"(GeluLayerNorm|SboFirstLayer)Backward<.*Strided", lambda value: 6 * HIDDEN * value),
    (r"GeluLayerNormBackward<.*Packed", lambda value: 0),
    (r"SboFirstLayerBackward<.*Packed", lambda value: POSITIONS * HIDDEN * value),
    (r"AnyDropoutNorm", lambda value: HIDDEN * (value + 2)),  # a row and its draws
)

# Kernels whose rows are meant to move 16 bytes at a time; the others are for rows that cannot.
WIDE = (r"CrossEntropyRows<.*, true>$", r"(Wide)?DropoutNorm(Backward)?<", r"\w+<.*\bPacked<")
_LEAST_WIDE = 0.6  # instructions for a row's ragged end are unrolled, and count with the rest
_WIDE_DROP = 0.05  # an array that falls back costs a kernel of four arrays 0.2


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled for one architecture: a row of the table.

    Sizes are in bytes, registers those of a thread. `threads` of a block and `blocks_asked` of a
    multiprocessor are the launch bounds, `occupancy` is the share of the warps it can hold, and
    `wide_share` that of the bytes which instructions move 16 or more at a time (None where there
    was no disassembler).
    """

    kernel: str
    architecture: str
    nvcc: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    dynamic_shared: int
    threads: int
    blocks_asked: int
    blocks_per_sm: int
    occupancy: float
    wide_share: float | None

    @property
    def name(self) -> str:
        return f"{self.kernel} ({self.architecture})"

    @property
    def is_wide(self) -> bool:
        """Whether its rows are meant to move 16 bytes at a time."""
        return "double" not in self.kernel and any(re.match(p, self.kernel) for p in WIDE)


def dynamic_shared(kernel: str) -> int:
    """Dynamic shared bytes of a block at the base shapes.

    Raises:
        ValueError: DYNAMIC does not tell.
    """
    for pattern, size in DYNAMIC:
        if re.match(pattern, kernel):
            return _REDUCTION + size(8 if "double" in kernel else 4)
    raise ValueError(
        f"{kernel} uses dynamic shared memory; add to DYNAMIC in benchmarks/resources.py what its "
        "launch asks for"
    )


def read_build(log: Path, kernels: Path) -> list[Kernel]:
    """All kernels of a build, by label and architecture.

    Raises:
        ValueError: the files are not what the build writes.
    """
    used = compiled_kernels.read_log(log.read_text())
    declared = {}
    for path in sorted(kernels.glob("*.ptx")):
        declared |= compiled_kernels.read_ptx(path.read_text())
    if lost := sorted(set(used) - set(declared)):
        raise ValueError(f"{kernels} has no PTX of {lost[0][0]} for {lost[0][1]}; build again")
    labels = compiled_kernels.labels(sorted({name for name, _ in used}))
    shares = access_widths.read_cubins(kernels)
    rows = {}
    for (mangled, arch), code in used.items():
        kernel, source = labels[mangled], declared[mangled, arch]
        dynamic = dynamic_shared(kernel) if source.is_dynamic else 0
        shape = (arch, code.registers, source.threads, code.static_shared + dynamic)
        # A template of a header is compiled in several files, alike, and has one row.
        rows[kernel, int(re.sub(r"\D", "", arch))] = Kernel(
            kernel=kernel,
            architecture=arch,
            nvcc=source.nvcc,
            **code._asdict(),
            dynamic_shared=dynamic,
            threads=source.threads,
            blocks_asked=source.blocks_asked,
            blocks_per_sm=blocks_per_sm(*shape),
            occupancy=round(occupancy(*shape), 4),
            wide_share=round(shares[mangled, arch], 4) if shares else None,
        )
    return [rows[key] for key in sorted(rows)]


def write_table(path: Path, rows: Iterable[Kernel]) -> None:
    """Replace the recorded table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Kernel)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_table(path: Path) -> list[Kernel]:
    """The recorded table; empty where there is none.

    Raises:
        ValueError: the table is of another version.
    """
    if not path.exists():
        return []
    read = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda s: float(s) if s else None,
    }
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != [f.name for f in fields(Kernel)]:
            raise ValueError(f"{path} has other columns than this version writes: {RECORD}")
        return [
            Kernel(**{f.name: read[f.type](row[f.name]) for f in fields(Kernel)}) for row in rows
        ]


def faults(rows: Sequence[Kernel]) -> list[str]:
    """What is wrong with the kernels of a build in themselves."""
    wrong = []
    for row in rows:
        if row.spill_stores + row.spill_loads and "double" not in row.kernel:
            wrong.append(
                f"{row.name} spills: {row.spill_stores} bytes of stores, {row.spill_loads} of loads"
            )
        if row.blocks_per_sm < row.blocks_asked:
            wrong.append(
                f"{row.name} asks for {row.blocks_asked} blocks a multiprocessor, and "
                f"{row.blocks_per_sm} fit: {_needs(row)}"
            )
        if row.is_wide and row.wide_share is not None and row.wide_share < _LEAST_WIDE:
            wrong.append(
                f"{row.name} is meant to move 16 bytes at a time, and does with "
                f"{row.wide_share:.0%} of its bytes"
            )
    for pattern in WIDE:
        if not any(re.match(pattern, row.kernel) for row in rows):
            wrong.append(f"no kernel is called {pattern}: correct WIDE in benchmarks/resources.py")
    return wrong


def losses(rows: Sequence[Kernel], recorded: Sequence[Kernel]) -> list[str]:
    """How the kernels of a build differ for the worse from those of the table, which has to have
    all of them; both are the same compiler's."""
    if not recorded:
        return [f"nothing is recorded yet: {RECORD}"]
    wrong = []
    before = {row.name: row for row in recorded}
    for row in rows:
        old = before.get(row.name)
        if old is None:
            wrong.append(f"{row.name} is not in the table")
            continue
        if row.occupancy < old.occupancy:
            wrong.append(
                f"{row.name} keeps {row.occupancy:.1%} of the warps, recorded are "
                f"{old.occupancy:.1%}: {_needs(row)}, before {_needs(old)}"
            )
        shares = row.wide_share, old.wide_share
        if row.is_wide and None not in shares and shares[0] < shares[1] - _WIDE_DROP:
            wrong.append(
                f"{row.name} moves {shares[0]:.0%} of its bytes 16 at a time, recorded are "
                f"{shares[1]:.0%}"
            )
    compiled, architectures = {row.name for row in rows}, {row.architecture for row in rows}
    for old in recorded:
        if old.architecture in architectures and old.name not in compiled:
            wrong.append(f"{old.name} is in the table and was not compiled")
    return [*wrong, f"if that is meant, record it: {RECORD}"] if wrong else []


def _needs(row: Kernel) -> str:
    shared = row.static_shared + row.dynamic_shared
    return f"{row.registers} registers, {shared} bytes of shared memory, {row.threads} threads"


def _line(row: Kernel) -> str:
    share = "" if row.wide_share is None else f"{row.wide_share:>4.0%}"
    return (
        f"{row.architecture:<7}{row.registers:>4}{row.spill_stores:>6}{row.stack:>6}"
        f"{row.static_shared:>7}{row.dynamic_shared:>8}{row.threads:>8}{row.blocks_per_sm:>7}"
        f"{row.occupancy:>7.1%}{share:>6}  {row.kernel}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("log", type=Path, help="output of a build with -DSPANBERT_EXT_PTXAS=ON")
    parser.add_argument("kernels", type=Path, help="the folder `kernels` of that build")
    parser.add_argument("--record", action="store_true", help=f"write results/{RESULTS.name}")
    args = parser.parse_args(arguments)
    try:
        rows = read_build(args.log, args.kernels)
        if args.record:
            write_table(RESULTS, rows)
        recorded = read_table(RESULTS)
    except (OSError, ValueError) as error:
        print(f"Cannot tell what the kernels need: {error}")
        return 1
    print("arch   regs spill stack static dynamic threads blocks  warps  wide  kernel")
    print("\n".join(map(_line, rows)))
    wrong = faults(rows)
    here, there = ({row.nvcc for row in table} for table in (rows, recorded))
    if recorded and here != there:
        print(
            f"nvcc {min(here)} is not that of the table, {min(there)}: only faults were looked for"
        )
    else:
        wrong += losses(rows, recorded)
    if rows[0].wide_share is None:
        print(access_widths.MISSING)
    print(
        "\n".join([*wrong, f"{len(rows)} kernels: {'not as they should be' if wrong else 'fine'}"])
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
