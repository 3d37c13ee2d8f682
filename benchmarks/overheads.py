"""`python -m benchmarks.overheads --corpus DIR [--large DIR]`: what pre-training costs besides
training.

* loader: CPU time of making a step's batch, as a share of the step, and what a checkpoint stalls;
* processes: tokens/s of two processes with one thread each, of one process with both threads;
* memory: what a process holds at its end, on the corpus and on a much larger one. Pages of the
  mapped token files are counted apart: the system takes them back when it needs them.

Runs are the command itself in processes of its own; variants take turns, rates are medians of the
log lines after the first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.installed import ROOT, prefer_installed

prefer_installed()

from benchmarks import environment, records  # noqa: E402

COLUMNS = (*records.COLUMNS, "value", "unit")
_STEPS_PER_LINE = 10
_WARM_UP_STEPS = 5


def settings(corpus: Path, output: Path, preset: str, rows: int, length: int, steps: int) -> dict:
    """Dotted settings of a run that validates nothing and saves once, at its end."""
    return {
        "corpus": str(corpus), "output": str(output), "preset": preset, "steps": steps,
        "device": "cpu", "precision": "fp32", "log_every": min(_STEPS_PER_LINE, steps),
        "optimizer.warmup_steps": 1, "batch.rows": rows, "batch.max_length": length,
        "validation.rows": 1, "validation.every": 0, "checkpoint.every": 1_000_000,
    }  # fmt: skip


class PretrainProcess:
    """`spanbert pretrain` in a process of its own, at its end.

    Args:
        options: dotted settings.
        threads: OMP_NUM_THREADS of each process.

    `held` is what it held just before it ended, in MB: all, without file pages, and the most.
    """

    def __init__(self, options: dict[str, Any], threads: int):
        words = [f"--{name}={value}" for name, value in options.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "spanbert_ext", "pretrain", *words],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
        self.held: dict[str, float] = {}
        while process.poll() is None:
            self.held = _held(process.pid) or self.held
            time.sleep(0.02)
        if process.returncode:
            raise RuntimeError(f"the run ended with exit code {process.returncode}: {options}")
        lines = (Path(options["output"]) / "metrics.jsonl").read_text("utf-8").splitlines()
        self.events = [json.loads(line) for line in lines]

    def of(self, event: str, field: str) -> list[float]:
        """A field of all events of a kind."""
        return [row[field] for row in self.events if row["event"] == event]


def _held(pid: int) -> dict[str, float]:
    try:
        text = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {"all": "VmRSS", "own": "RssAnon", "most": "VmHWM"}
    if any(name not in fields for name in names.values()):  # it has ended
        return {}
    return {key: int(fields[name].split()[0]) / 1024 for key, name in names.items()}


def loader_rows(corpus: Path, work: Path, steps: int) -> list[dict[str, Any]]:
    """Batch and step, on one thread in this process; the stall of a checkpoint in its own."""
    import torch

    from spanbert_ext.settings import build as dotted
    from spanbert_ext.training.config import PretrainConfig
    from spanbert_ext.training.loop import HostStep, LoopSettings
    from spanbert_ext.training.optimizer import build_optimizer
    from spanbert_ext.training.pretrain import PretrainObjective
    from spanbert_ext.training.ranks import ALONE

    torch.set_num_threads(1)
    found = []
    for rows, length in ((16, 64), (32, 128), (16, 512)):
        options = settings(corpus, work / "loader", "tiny", rows, length, 1000)
        config = dotted.build(PretrainConfig, options)
        objective = PretrainObjective(config)
        objective.read()
        objective.prepare(None, torch.device("cpu"), ALONE, contextlib.ExitStack())
        model = objective.build_model().train()
        objective.data = objective.build_batches(model)
        optimizer = build_optimizer(model, config.optimizer)
        step = HostStep(model, optimizer, objective, LoopSettings(1000, 1e-4, 1, 1.0, "fp32", 1000))
        making, whole = [], []
        for number in range(_WARM_UP_STEPS + steps):
            begun = time.thread_time()
            objective.data.batches(number)
            objective.data.num_tokens(number)
            making.append(time.thread_time() - begun)
            begun = time.thread_time()
            step(number)
            whole.append(time.thread_time() - begun)
        share = median(making[_WARM_UP_STEPS:]) / median(whole[_WARM_UP_STEPS:])
        shapes = f"preset=tiny rows={rows} length={length}"
        found.append(_row("loader share of the step", shapes, 100 * share, "%", steps))
    run = PretrainProcess(settings(corpus, work / "saved", "base", 2, 64, 2), threads=2)
    (seconds,) = run.of("checkpoint", "seconds")
    (size,) = run.of("checkpoint", "bytes")
    shapes = f"preset=base bytes={size:.0f}"
    return [*found, _row("checkpoint stall", shapes, seconds, "s", 1)]


def process_rows(corpus: Path, work: Path, steps: int, turns: int) -> list[dict[str, Any]]:
    """Tokens/s of one process and of two, taking turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(turns):
        for processes, measured in rates.items():
            options = settings(corpus, work / f"{processes}-{turn}", "tiny", 32, 128, steps)
            run = PretrainProcess(options | {"nproc": processes}, threads=2 // processes)
            measured += run.of("train", "tokens_per_s")[1:-1]
    shapes = "preset=tiny rows=32 length=128"
    found = [
        _row(f"{processes} process(es) on 2 cores", shapes, median(measured), "tokens/s", turns)
        for processes, measured in rates.items()
    ]
    ratio = median(rates[2]) / median(rates[1])
    return [*found, _row("2 processes / 1", shapes, ratio, "ratio", turns)]


def memory_rows(corpora: Sequence[Path], work: Path, steps: int) -> list[dict[str, Any]]:
    """What a process holds at its end, on each corpus."""
    from spanbert_ext.data import open_corpus

    found = []
    for number, corpus in enumerate(corpora):
        options = settings(corpus, work / f"memory-{number}", "tiny", 8, 64, steps)
        run = PretrainProcess(options, threads=2)
        shapes = f"pieces={open_corpus(str(corpus)).num_tokens}"
        labels = {"all": "resident", "own": "without file pages", "most": "peak resident"}
        found += [_row(labels[key], shapes, run.held[key], "MB", 1) for key in labels]
    return found


def _row(variant: str, shapes: str, value: float, unit: str, samples: int) -> dict[str, Any]:
    return environment.describe("cpu") | {
        "op": "overheads", "variant": variant, "shapes": shapes, "samples": samples,
        "value": value, "unit": unit,
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, append to the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overheads", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--large", type=Path, help="a much larger corpus, for the memory")
    parser.add_argument("--steps", type=int, default=40, help="of every run")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--parts", default="loader,memory,processes", help="separated by commas")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "overheads.csv"
    )
    options = parser.parse_args(words)
    corpora = [options.corpus, *([options.large] if options.large else [])]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        parts = {
            "loader": lambda: loader_rows(options.corpus, work, options.steps),
            "memory": lambda: memory_rows(corpora, work, options.steps),
            "processes": lambda: process_rows(options.corpus, work, options.steps, options.turns),
        }
        for name in options.parts.split(","):
            rows = [{c: records.as_text(row.get(c)) for c in COLUMNS} for row in parts[name]()]
            records.append(options.results, rows, COLUMNS)
            for row in rows:
                shown = f"{row['variant']:28s} {row['shapes']:40s} {row['value']:>12s}"
                print(f"{shown} {row['unit']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
