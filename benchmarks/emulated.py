"""What the CUDA kernels of a pre-training step ask of memory, counted without a GPU.

`python -m benchmarks.emulated` builds the emulator (csrc/tests/emulator) with its counters, runs
the operations of a default step at the published base shapes on it, and prints a table of their
kernels; `--record` adds it to results/emulated.csv and `--report FILE` writes it as markdown.
It needs what csrc/tests/emulator/run needs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "csrc" / "tests" / "emulator" / "run"
RESULTS = ROOT / "benchmarks" / "results" / "emulated.csv"
SECTOR = 32  # bytes
TRAFFIC, WAYS = 1.15, 2  # goals: bytes of a launch over the least, and words a bank has to give
# Of a tally in count.cpp.
TALLY = ("requests", "bytes", "sectors", "ideal", "turns", "degrees", "worst", "place")
HEADER = (
    "operation", "kernel", "dtype", "least", "request", "block", "launch", "sectors", "ideal",
    "ways", "mean", "barriers",
)  # fmt: skip
PLACES = ("kernel", "dtype", "lines", "what")
# Helpers that every access goes through: the lines that matter are those that call them.
HELPERS = ("csrc/common/", "csrc/rows/columns.h", "csrc/rows/dropout_norm_columns.h")


@dataclass(frozen=True)
class Row:
    """A kernel in one operation; sizes in bytes, counts of all its launches.

    `requested` is what the threads ask for; `by_request`, `by_block` and `by_launch` are the
    sectors that makes, each counted for every request of a warp, once a block and once a launch.
    `ideal` is the least `by_request` could be: the distinct bytes of each request, in whole
    sectors. Shared memory takes `degrees` turns for `turns`. `whole` is the least of the operation.
    """

    operation: str
    kernel: str
    dtype: str
    shapes: str
    launches: int
    blocks: int
    gpu_threads: int
    barriers: int
    whole: int
    least: int
    requested: int
    requests: int
    by_request: int
    ideal: int
    by_block: int
    by_launch: int
    turns: int
    degrees: int
    worst: int

    def cells(self) -> tuple[str, ...]:
        """A line of the table, as HEADER names it."""
        traffic = (self.by_request, self.by_block, self.by_launch)
        sectors = (self.by_request, self.ideal)
        return (
            self.operation,
            self.kernel,
            self.dtype,
            f"{self.least / 1e3:.1f} kB",
            *(f"{moved / self.least:.2f}" for moved in traffic),
            *(f"{moved / SECTOR / max(self.requests, 1):.1f}" for moved in sectors),
            str(self.worst or "-"),
            f"{self.degrees / self.turns:.2f}" if self.turns else "-",
            f"{self.barriers / self.blocks:.3g}",
        )


# Columns of the recorded table beside those of all tables.
COUNTS = tuple(field.name for field in fields(Row))[4:]


@dataclass(frozen=True)
class Place:
    """Where in the sources a kernel misses a goal, and by how much."""

    kernel: str
    dtype: str
    line: str
    what: str


class Counters:
    """The counters of a loaded test build."""

    def __init__(self, library: str):
        self._library = ctypes.CDLL(library)
        for name in ("spanbert_emulator_counts", "spanbert_emulator_line"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.spanbert_emulator_line.argtypes = [ctypes.c_size_t]

    def of(self, run) -> dict[str, dict[str, list[int]]]:
        """What `run()` did, by kernel and kind of line (count.cpp)."""
        self._library.spanbert_emulator_count(1)
        try:
            run()
        finally:
            self._library.spanbert_emulator_count(0)
        return parse(self._library.spanbert_emulator_counts(0).decode())

    def places(self) -> Iterator[tuple[str, str, dict[str, int]]]:
        """Kernel, kind of access and tally of each place of the last `of`."""
        for line in self._library.spanbert_emulator_counts(1).decode().splitlines():
            kernel, kind, *values = line.split("\t")
            if kind != "kernel":
                yield kernel, kind, dict(zip(TALLY, map(int, values), strict=True))

    def line(self, place: int) -> str:
        """The two innermost lines of a place that are no helper's."""
        chain = self._library.spanbert_emulator_line(place).decode().split(" < ")
        told = [line for line in chain if not line.startswith(HELPERS)] or chain
        return " < ".join(line.removeprefix("csrc/") for line in told[:2])


def parse(text: str) -> dict[str, dict[str, list[int]]]:
    """Lines of count.cpp by kernel and kind."""
    found: dict[str, dict[str, list[int]]] = {}
    for line in text.splitlines():
        kernel, kind, *values = line.split("\t")
        found.setdefault(kernel, {})[kind] = list(map(int, values))
    return found


def row_of(operation, kernel: str, counted: dict[str, list[int]]) -> Row:
    """The row of one kernel of an operation."""
    launches, blocks, threads, barriers, *once = counted["kernel"]
    tallies = {
        kind: dict(zip(TALLY, counted[kind], strict=True)) for kind in counted if kind != "kernel"
    }
    memory = [tallies[kind] for kind in ("read", "written")]
    shared = [tallies[kind] for kind in ("shared_read", "shared_written")]
    sums = {name: sum(tally[name] for tally in memory) for name in TALLY}
    return Row(
        operation=operation.name,
        kernel=kernel,
        dtype=operation.dtype,
        shapes=" ".join(f"{name}={size}" for name, size in operation.shapes.items()),
        launches=launches,
        blocks=blocks,
        gpu_threads=threads,
        barriers=barriers,
        whole=operation.whole,
        least=operation.least[kernel],
        requested=sums["bytes"],
        requests=sums["requests"],
        by_request=SECTOR * sums["sectors"],
        ideal=SECTOR * sums["ideal"],
        by_block=SECTOR * sum(once[:2]),
        by_launch=SECTOR * sum(once[2:]),
        turns=sum(tally["turns"] for tally in shared),
        degrees=sum(tally["degrees"] for tally in shared),
        worst=max(tally["worst"] for tally in shared),
    )


def misses(row: Row, counters: Counters) -> Iterator[Place]:
    """Places of the operation that ran last where a kernel misses a goal, or where its warps ask
    for more sectors than their bytes fill."""
    places = [(kind, tally) for kernel, kind, tally in counters.places() if kernel == row.kernel]
    lines: dict[tuple[str, str], list[dict[str, int]]] = {}
    for kind, tally in places:
        lines.setdefault((counters.line(tally["place"]), kind), []).append(tally)
    for (line, kind), tallies in lines.items():
        worst = max(tally["worst"] for tally in tallies)
        sectors, ideal, requests = (
            sum(tally[name] for tally in tallies) for name in ("sectors", "ideal", "requests")
        )
        if worst > WAYS:
            mean = sum(t["degrees"] for t in tallies) / sum(t["turns"] for t in tallies)
            yield Place(
                row.kernel, row.dtype, line, f"{kind}: {worst} ways at worst, {mean:.2f} on average"
            )
        elif sectors > TRAFFIC * ideal and SECTOR * (sectors - ideal) > 0.05 * row.least:
            each = f"{sectors / requests:.1f} sectors a request for {ideal / requests:.1f}"
            share = SECTOR * (sectors - ideal) / row.least
            yield Place(
                row.kernel, row.dtype, line, f"{kind}: {each}, {share:.2f} of the least more"
            )


def measure(library: str) -> tuple[list[Row], list[Place]]:
    """All rows, and the places where they miss.

    Raises:
        AssertionError: a step launches a kernel that no row is about, or a kernel computes bytes
            that `least` does not know of.
    """
    from benchmarks import emulated_cases

    counters, rows, places = Counters(library), [], []
    for operation in emulated_cases.operations():
        counted = counters.of(operation.run)
        assert counted.keys() == operation.least.keys(), (operation.name, counted.keys())
        for kernel, kinds in counted.items():
            rows.append(row_of(operation, kernel, kinds))
            places += misses(rows[-1], counters)
    for precision in ("bf16", "fp32"):
        launched = counters.of(emulated_cases.launched_by_a_step(precision)).keys()
        lost = launched - {row.kernel for row in rows}
        assert not lost, f"a step launches kernels that the table lacks: {sorted(lost)}"
    return rows, list(dict.fromkeys(places))


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def by_operation(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Lines of a table: what the launches of an operation move together, over its least."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operation, row.dtype), []).append(row)
    lines = [("operation", "dtype", "least", "launches")]
    for (operation, dtype), group in groups.items():
        whole, moved = group[0].whole, sum(row.by_launch for row in group)
        lines.append((operation, dtype, f"{whole / 1e3:.1f} kB", f"{moved / whole:.2f}"))
    return lines


def as_markdown(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose first line is its header, and an empty line."""
    for number, line in enumerate(cells):
        yield "| " + " | ".join(line) + " |"
        if number == 0:
            yield "|---" * len(line) + "|"
    yield ""


def summary(rows: Sequence[Row]) -> str:
    """How many rows reach the goals."""
    within = sum(row.by_launch <= TRAFFIC * row.least for row in rows)
    free = sum(row.worst <= WAYS for row in rows)
    return (
        f"{len(rows)} rows: {within} move at most {TRAFFIC} times the least in a launch, "
        f"{free} have no bank conflict above {WAYS} ways"
    )


def markdown(rows: Sequence[Row], places: Sequence[Place], about: dict[str, str]) -> str:
    """The table and the places as markdown; `about` as `environment.describe` has it."""
    lines = [
        f"# What kernels ask of memory, counted by the emulator, {about['date'][:10]}",
        "",
        f"`{about['command']}` at {about['commit']}; rows: `benchmarks/results/{RESULTS.name}`.",
        summary(rows) + ".",
        "",
        *as_markdown([HEADER, *(row.cells() for row in rows)]),
        *as_markdown(by_operation(rows)),
        *as_markdown([PLACES, *map(astuple, places)]),
    ]
    return "\n".join(lines)


def record(path: Path, rows: Sequence[Row], about: dict[str, str]) -> None:
    """Append the table to a file of results; `about` as `environment.describe` has it."""
    from benchmarks import records

    columns = (*records.COLUMNS, *COUNTS)
    lines = []
    for row in rows:
        line = {name: getattr(row, name) for name in COUNTS} | about
        line |= {"op": row.operation, "variant": row.kernel, "dtype": row.dtype}
        line |= {"shapes": row.shapes, "threads": 1, "device": "emulated"}
        lines.append({name: line.get(name, "") for name in columns})
    records.append(path, lines, columns)


def run_on_emulator(build: Path, arguments: Sequence[str]) -> int:
    """This command again, on a test build that comes before every other package."""
    build.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(RUN), "--races", "--build-only", "--keep", str(build)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    package = done.stdout.strip()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((package, str(ROOT))),
        "SPANBERT_EXT_BACKEND": "emulated",
        "SPANBERT_BENCHMARK_COMMAND": "python -m benchmarks.emulated",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.call(
        [sys.executable, "-m", "benchmarks.emulated", *arguments], cwd=package, env=environment
    )


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=Path, help="a folder for the test build, which stays")
    parser.add_argument("--record", action="store_true", help=f"add it to results/{RESULTS.name}")
    parser.add_argument("--report", type=Path, help="write the table as markdown")
    options = parser.parse_args(arguments)
    if os.environ.get("SPANBERT_EXT_BACKEND") != "emulated":
        if options.report:
            arguments += ["--report", str(options.report.resolve())]
        with tempfile.TemporaryDirectory() as temporary:
            return run_on_emulator((options.build or Path(temporary)).resolve(), arguments)
    from benchmarks import environment
    from spanbert_ext.ops import backend

    rows, places = measure(backend.native_module.__file__)
    print("\n".join(aligned([HEADER, *(row.cells() for row in rows)])))
    print("\n".join(aligned(by_operation(rows))))
    print("\n".join(aligned([astuple(p) for p in places])))
    print(summary(rows))
    about = environment.describe("cpu")
    if options.record:
        record(RESULTS, rows, about)
    if options.report:
        options.report.write_text(markdown(rows, places, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
