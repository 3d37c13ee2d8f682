"""`python -m benchmarks.gpu --out DIR`: everything a GPU is needed for, in one command.

Builds the package, runs the CUDA tests and compute-sanitizer, then measures. Every part is a child
process under a limit of its own, so one that fails or hangs costs only itself; measured rows are
written as they come. A table is printed last. Without a GPU it does what it can and says what it
left out; `--dry-run` lists the parts.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.installed import ROOT

TESTS = ROOT / "python_tests"
# What a sanitizer runs of the CUDA tests: every operation on small cases; a sanitizer makes them a
# hundred times slower.
SANITIZED = (
    "native_code_runs", "empty_inputs", "nothing_is_written", "views_give", "span_overflow",
    "head_is_the_formula and 129", "loss_is_torch and mean-163840", "large_masks and 3000",
)  # fmt: skip
_LEAST_S = 10  # a part is not started with less time left
# (part, limit in seconds, what it measures), what matters most first: the budget ends before the
# limits do, which are for hangs.
MEASURED = (
    ("ceilings", 25, ("ceilings",)),
    ("masking", 25, ("masking",)),
    ("sbo", 50, ("sbo", "residual")),
    ("loss", 60, ("loss",)),
    ("step_base", 100, ("step_base",)),
    ("step_large", 120, ("step_large",)),
    ("step_small", 60, ("sync", "step_small")),
    ("attention", 45, ("attention", "epilogue")),
    ("step_kinds", 75, ("step_kinds",)),
    ("step_dropout", 90, ("step_dropout",)),
    ("step_original", 30, ("step_original",)),
)


@dataclass(frozen=True)
class Part:
    """A child process.

    Args:
        name: also the argument of `--only`.
        stage: parts of one stage run at the same time, stages one after another.
        limit_s: it is stopped after so long.
        command: words.
        cwd: where it runs.
        needs: "", "gpu", or a program that must be on PATH.
        environment: variables it gets besides ours.
    """

    name: str
    stage: int
    limit_s: int
    command: tuple[str, ...]
    cwd: Path = ROOT
    needs: str = "gpu"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a part ended."""

    part: Part
    state: str
    seconds: float = 0.0
    summary: str = ""


def list_parts(site: Path, out: Path, smoke: bool = False) -> list[Part]:
    """All parts in order; `site` is where the build is installed, `smoke` means tiny sizes on the
    CPU.
    """
    python = sys.executable
    pip = (python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found = [
        Part("build", 0, 150, (*pip, "--upgrade", "--target", str(site), str(ROOT)), needs=""),
        Part("tests", 1, 100, (*pytest, "-m", "cuda", *cuda_tests()), TESTS, needs=""),
    ]
    chosen = " or ".join(f"({words})" for words in SANITIZED)
    selected = (*pytest, *cuda_tests(), "-m", "cuda", "-k", chosen)
    sanitizer = find_sanitizer()
    for tool in ("memcheck", "racecheck", "initcheck"):
        checker = (sanitizer, "--tool", tool, *_only_our_kernels(sanitizer), "--error-exitcode=9")
        found.append(Part(tool, 1, 100, (*checker, *selected), TESTS, sanitizer, uncached))
    words = (python, "-m", "benchmarks.gpu_parts")
    options = ("--out", str(out), *(("--device", "cpu", "--quick") if smoke else ()))
    needs = "" if smoke else "gpu"
    found.append(Part("warm", 1, 100, (*words, "warm", *options), needs=needs))
    for stage, (name, limit, names) in enumerate(MEASURED, start=2):
        found.append(Part(name, stage, limit, (*words, *names, *options), needs=needs))
    return found


def cuda_tests() -> list[str]:
    """Files with CUDA tests: collecting the others takes time, and packages a GPU machine may not
    have.
    """
    files = sorted(TESTS.rglob("test_*.py"))
    asks = re.compile(r"mark\.cuda|^def test_\w+\((device|gpu)\b", re.M)
    return [str(f.relative_to(TESTS)) for f in files if asks.search(f.read_text("utf-8"))]


def find_sanitizer() -> str:
    """compute-sanitizer: on PATH, in a CUDA toolkit, or in NVIDIA's wheel; its bare name if it is
    nowhere."""
    name = "compute-sanitizer"
    found = [shutil.which(name)]
    found += sorted(Path("/usr/local").glob(f"cuda*/bin/{name}"))
    found += [p for e in sys.path for p in sorted(Path(e).glob(f"nvidia/*/{name}/{name}"))]
    return next((str(path) for path in found if path), name)


def _only_our_kernels(sanitizer: str) -> tuple[str, ...]:
    """The option that leaves torch's kernels unchecked, as this version of the tool spells it."""
    if shutil.which(sanitizer) is None:
        return ()
    text = subprocess.run((sanitizer, "--help"), capture_output=True, text=True, timeout=60).stdout
    for option in ("--kernel-name", "--kernel-regex", "--filter"):
        if option in text:
            return (option, "kernel_substring=spanbert")
    return ()


def obstacle(part: Part, has_gpu: bool) -> str:
    """Why a part cannot run here; empty if it can."""
    if part.needs == "":
        return ""
    if not has_gpu:
        return "torch sees no CUDA device"
    if part.needs != "gpu" and shutil.which(part.needs) is None:
        return f"{part.needs} was not found"
    return ""


def run_stage(
    parts: list[Part], deadline: float, log: Path, transcripts: Path, shared: dict[str, str]
) -> list[Outcome]:
    """Start the parts together; wait for each until its limit or the deadline.

    What they print goes to a file each in `transcripts`, then to `log`.
    """
    running = []
    for part in parts:
        process = subprocess.Popen(
            part.command,
            cwd=part.cwd,
            env={**os.environ, **shared, **part.environment},
            stdout=(transcripts / part.name).open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.append((part, process, time.monotonic()))
    outcomes = []
    for part, process, began in running:
        limit = min(began + part.limit_s, deadline)
        try:
            code = process.wait(timeout=max(0.1, limit - time.monotonic()))
            state = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = "stopped at its limit"
        seconds = time.monotonic() - began
        text = (transcripts / part.name).read_text(errors="replace")
        outcomes.append(Outcome(part, state, seconds, _summary(text)))
        with log.open("a") as file:
            file.write(f"== {part.name}: {state}, {seconds:.1f} s\n")
            file.write(f"{shlex.join(part.command)}\n{text}\n")
        if state != "ok":
            print(f"-- {part.name}: {state}\n" + "\n".join(text.splitlines()[-15:]), flush=True)
    return outcomes


def _summary(text: str) -> str:
    """The line that says how a test run or a sanitizer ended."""
    lines = [line.strip("= ") for line in text.splitlines()]
    wanted = [s for s in lines if "SUMMARY" in s or " passed" in s or " failed" in s]
    return "; ".join(wanted[-2:])


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="directory of the CSV files, report.txt, log.txt")
    parser.add_argument("--budget", type=float, default=470, help="seconds for everything")
    parser.add_argument("--only", default="", help="names of parts, separated by commas")
    parser.add_argument(
        "--build", choices=("always", "never"), default="always",
        help="never measures the package that is installed already",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes on the CPU: whether the parts run at all"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the parts and stop")
    given = parser.parse_args(words)
    if given.out is None and not given.dry_run:
        parser.error("--out is required")
    return given


def main(words: list[str] | None = None) -> int:
    """Run the parts; 0 if every part that could run ended well."""
    given = arguments(words)
    with tempfile.TemporaryDirectory(prefix="spanbert_ext_") as directory:
        site, transcripts = Path(directory, "site"), Path(directory, "transcripts")
        transcripts.mkdir()
        parts = _wanted(list_parts(site, given.out or Path("DIR"), given.smoke), given)
        if given.dry_run:
            for part in parts:
                words = shlex.join(part.command)
                print(f"{part.stage:2} {part.name:14}{part.limit_s:4} s  {words}")
            print(f"limits of the parts; all together end after {given.budget:g} s")
            return 0
        given.out.mkdir(parents=True, exist_ok=True)
        outcomes = _run_all(parts, given, site, transcripts)
    text = _report(outcomes, given.out)
    (given.out / "report.txt").write_text(text + "\n")
    print(text)
    late = [o.part.name for o in outcomes if o.state == "not run: no time left"]
    if late:
        again = ("python", "-m", "benchmarks.gpu", "--out", str(given.out))
        again += ("--build", given.build, "--only", ",".join(["build", *late]))
        print(f"\nthe parts without time: {shlex.join(again)}")
    left_out = [o for o in outcomes if o.state != "ok" and not o.state.startswith("not run: torch")]
    return 1 if left_out else 0


def _wanted(parts: list[Part], given: argparse.Namespace) -> list[Part]:
    names = [name for name in given.only.split(",") if name]
    unknown = set(names) - {part.name for part in parts}
    if unknown:
        raise SystemExit(f"--only: no such part: {', '.join(sorted(unknown))}")
    if given.build == "never":
        parts = [part for part in parts if part.name != "build"]
    return [part for part in parts if not names or part.name in names]


def _run_all(
    parts: list[Part], given: argparse.Namespace, site: Path, transcripts: Path
) -> list[Outcome]:
    import torch

    has_gpu = torch.cuda.is_available()
    deadline = time.monotonic() + given.budget
    shared = {
        "PYTHONUNBUFFERED": "1",
        # What one part compiled, the next one finds.
        "TORCHINDUCTOR_CACHE_DIR": str(transcripts.parent / "inductor"),
        "SPANBERT_BENCHMARK_SESSION": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "SPANBERT_BENCHMARK_COMMAND": "python -m benchmarks.gpu " + " ".join(sys.argv[1:]),
    }
    if any(part.name == "build" for part in parts):
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        # Without the root: what is measured is the build, also where a developer names the tree.
        kept = [entry for entry in others if entry and Path(entry).resolve() != ROOT]
        shared["PYTHONPATH"] = os.pathsep.join([str(site), *kept])
    if has_gpu and "CMAKE_CUDA_ARCHITECTURES" not in os.environ:
        # One architecture instead of all: the build is a fifth of the time there is.
        major, minor = torch.cuda.get_device_capability()
        shared["CMAKE_CUDA_ARCHITECTURES"] = f"{major}{minor}"
    outcomes: list[Outcome] = []
    for stage in sorted({part.stage for part in parts}):
        startable = []
        for part in (p for p in parts if p.stage == stage):
            reason = obstacle(part, has_gpu)
            if not reason and deadline - time.monotonic() < _LEAST_S:
                reason = "no time left"
            if reason:
                outcomes.append(Outcome(part, f"not run: {reason}"))
            else:
                startable.append(part)
        outcomes += run_stage(startable, deadline, given.out / "log.txt", transcripts, shared)
    return outcomes


def _report(outcomes: list[Outcome], out: Path) -> str:
    from benchmarks import targets
    from benchmarks.attention_cases import fastest_table
    from benchmarks.records import read

    rows = [row for path in sorted(out.glob("*.csv")) for row in read(path)]
    newest = max((row["date"] for row in rows), default="")
    rows = [row for row in rows if row["date"] == newest]
    lines = [("part", "state", "seconds", "summary")]
    lines += [(o.part.name, o.state, f"{o.seconds:.1f}", o.summary) for o in outcomes]
    sections = [targets.peer_table(rows)] if rows else []
    attention = fastest_table(rows)
    sections += [targets.aligned(attention)] if len(attention) > 1 else []
    sections += [targets.aligned(lines), targets.target_table(rows)]
    return "\n\n".join(sections)


if __name__ == "__main__":
    sys.exit(main())
