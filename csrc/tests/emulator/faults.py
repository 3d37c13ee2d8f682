"""Plants faults in the CUDA sources, one by one, and says which build of the emulator catches each.

    python csrc/tests/emulator/faults.py [--all] [--builds DIR] [NAME ...]

A check that cannot fail is none: each fault replaces text in a copy of the sources. The builds are
tried from the cheapest on until one catches it (all of them with --all). "numbers" means that a
result differs from the CPU's; the rest is what the emulator, a sanitizer or the system said. Exits
with 1 if no build catches a fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import builds

HERE = Path(__file__).resolve().parent
BUILDS = ("plain", "sanitize", "races")
SAID = ("AddressSanitizer: ", "runtime error: ", "emulator: ", "differs")  # a line that names it


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a file of csrc; `call` of fault_calls.py shows it."""

    name: str
    file: str
    old: str
    new: str
    call: str


FAULTS = (
    Fault(
        "missing barrier", "cuda/dropout_norm.cu",
        "sums.second[at.part]); });\n      __syncthreads();",
        "sums.second[at.part]); });", "norm",
    ),
    Fault(
        "divergent barrier", "cuda/dropout_norm.cu",
        "        out[which * args.hidden_size + h] = sum;\n      }\n      __syncthreads();",
        "        out[which * args.hidden_size + h] = sum;\n      }\n"
        "      if (threadIdx.x < 64) __syncthreads();", "norm",
    ),
    Fault(
        "wrong lane mask", "cuda/group.cuh", "x += __shfl_xor_sync(kAllLanes, x, step);",
        "x += __shfl_xor_sync(kAllLanes >> 1, x, step);", "norm",
    ),
    Fault(
        "wrong shuffle distance", "cuda/group.cuh",
        "for (int step = 16; step > 0; step >>= 1) x +=",
        "for (int step = 8; step > 0; step >>= 1) x +=", "norm",
    ),
    Fault(
        "off by one at the right edge", "cuda/dropout_norm.cu",
        "h < args.hidden_size; h += kThreads",
        "h <= args.hidden_size; h += kThreads", "norm",
    ),
    Fault(
        "off by one at the left edge", "cuda/dropout_norm.cu",
        "for (int64_t h = threadIdx.x; h < args",
        "for (int64_t h = int64_t(threadIdx.x) + 1; h < args", "norm",
    ),
    Fault(
        "uninitialised shared read", "cuda/span_mask.cu",
        "if ((threadIdx.x & 31) == 31) warp_sums[",
        "if ((threadIdx.x & 63) == 31) warp_sums[", "mask",
    ),
    Fault(
        "lost partial sum", "cuda/group.cuh", "for (int lane = 1; lane < kChunkLanes; ++lane) sum",
        "for (int lane = 1; lane < kChunkLanes - 1; ++lane) sum", "norm_many",
    ),
    Fault(
        "race of two warps", "cuda/span_mask.cu",
        "__syncthreads();  // warp_sums is written again in the next turn", "", "mask_many",
    ),
    Fault(
        "race of two lanes", "rows/span_sampler.h",
        "    const int64_t fresh = count_bits(bits.free, span.first, span.end);\n    g.sync();",
        "    const int64_t fresh = count_bits(bits.free, span.first, span.end);", "mask",
    ),
    Fault(
        "element behind a tensor", "cuda/span_mask.cu", "s < args.span_capacity; s += threads",
        "s <= args.span_capacity; s += threads", "mask",
    ),
    Fault(
        "row guard left out", "cuda/dropout_norm.cu",
        "if (row >= args.rows) return;\n    const Warp warp;",
        "const Warp warp;", "norm",
    ),
    Fault(
        "wrong stride", "rows/softmax_pieces.h",
        "+ row * args.stride);", "+ row * args.vocab_size);",
        "loss",
    ),
    Fault(
        "tail left out", "rows/softmax_pieces.h",
        "for (int v = whole * kWidth + rank; v < vocab_size; v += size) {",
        "for (int v = whole * kWidth + rank; v < whole * kWidth; v += size) {", "loss",
    ),
    Fault(
        "bounds of lengths unchecked", "cuda/span_mask.cu",
        "    check_bounds(args, row);\n", "", "lengths",
    ),
    Fault(
        "narrow index", "rows/softmax_pieces.h", "static_cast<T*>(args.logits) + row * args.stride",
        "static_cast<T*>(args.logits) + int(row) * int(args.stride)", "loss_huge",
    ),
    Fault(
        "swapped turn of a double buffer", "cuda/group.cuh",
        "reinterpret_cast<N*>(memory) + turn * 2 * kWarps", "reinterpret_cast<N*>(memory)", "head",
    ),
    Fault(
        "element behind a shared array", "cuda/group.cuh",
        "lanes[threadIdx.y][threadIdx.x] = sum;\n",
        "lanes[threadIdx.y][threadIdx.x + (threadIdx.y == kChunkLanes - 1)] = sum;\n", "norm_many",
    ),
    Fault(
        "wrong number of chunks", "cuda/dropout_norm.cu",
        "chunks = divide_up(args.rows, norm_rows_per_chunk(args.rows));",
        "chunks = args.rows / norm_rows_per_chunk(args.rows);", "norm_many",
    ),
)  # fmt: skip

# The CUDA source in which a call's kernels are; the others keep the objects of the clean build.
SOURCES = {
    "norm": "dropout_norm.cu", "norm_many": "dropout_norm.cu", "mask": "span_mask.cu",
    "mask_many": "span_mask.cu", "lengths": "span_mask.cu", "loss": "cross_entropy.cu",
    "loss_huge": "cross_entropy.cu", "head": "sbo.cu",
}  # fmt: skip


def plant(kind, clean: Path, fault: Fault, work: Path) -> Path:
    """Builds the module with a fault in it from the objects in `clean`; returns what to put on the
    path."""
    tree, package = work / "csrc", work / "package"
    shutil.copytree(clean / "package", package, symlinks=True)
    shutil.copytree(builds.CSRC, tree)
    text = (tree / fault.file).read_text()
    if fault.old not in text:
        raise SystemExit(f"{fault.name}: {fault.file} no longer holds {fault.old!r}")
    (tree / fault.file).write_text(text.replace(fault.old, fault.new, 1))
    name = SOURCES[fault.call]
    options = next(o for path, o in builds.sources(kind, clean) if path.name == name)
    options = [option.replace(str(builds.CSRC), str(tree)) for option in options]
    planted = work / "planted.o"
    builds.run_or_stop(
        [
            builds.compiler(),
            *options,
            "-Wno-error",
            "-c",
            str(tree / "cuda" / name),
            "-o",
            str(planted),
        ]
    )
    objects = [planted, *(o for o in sorted(clean.glob("*.o")) if o.name != f"{name}.o")]
    builds.link_objects(kind, objects, next((package / "spanbert_ext").glob("_C*")))
    return package


def caught(kind, path: Path, call: str, work: Path) -> str:
    """What a build said of a call, or "" if all was well."""
    env = builds.environment(kind, path, 1, work / "counts", False)
    command = [sys.executable, str(HERE / "fault_calls.py"), call]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, cwd=work, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    reports = "".join(file.read_text() for file in work.glob("counts.sanitizer*"))
    lines = (reports + done.stdout + done.stderr).splitlines()
    for word in SAID:
        for line in lines:
            if word in line:
                message = line[line.index(word) :].removeprefix("emulator: ")
                return "numbers" if word == "differs" else message
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    raise SystemExit(
        f"{call}: exit {done.returncode} for no reason that is known\n" + "\n".join(lines)
    )


def tried(fault: Fault, folder: Path, every: bool) -> dict[str, str]:
    """What each build that was tried said of a fault."""
    said = {}
    for name in BUILDS:
        with tempfile.TemporaryDirectory() as work:
            path = plant(builds.KINDS[name], folder / name, fault, Path(work))
            said[name] = caught(builds.KINDS[name], path, fault.call, Path(work))
        if said[name] and not every:
            break
    return said


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="try every build on every fault")
    parser.add_argument(
        "--builds", type=Path, help="holds builds that run kept in DIR/KIND; the rest are made"
    )
    parser.add_argument("names", nargs="*", help="of the faults; all without any")
    options = parser.parse_args(arguments)
    missed = []
    chosen = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = options.builds or Path(temporary)
        for name in BUILDS:
            if not (folder / name / "package").exists():
                (folder / name).mkdir(parents=True)
                builds.build_module(builds.KINDS[name], folder / name)
        tables = pool.map(partial(tried, folder=folder, every=options.all), chosen)
        for fault, said in zip(chosen, tables, strict=True):
            print(f"{fault.name} ({fault.file})")
            for name, message in said.items():
                print(f"    {name}: {message or 'not caught'}"[:240], flush=True)
            if not any(said.values()):
                missed.append(fault.name)
    print(f"{len(chosen)} planted faults, missed: {', '.join(missed) or 'none'}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
