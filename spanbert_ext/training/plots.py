"""`spanbert plot RUN...`: the learning curves of one or several runs, from their metrics.jsonl."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.training import pictures

logger = logging.getLogger("spanbert_ext")

METRICS = "metrics.jsonl"
_MOST_METRICS = 3  # of a run's held-out numbers that are no losses


@dataclass(frozen=True)
class PlotConfig:
    """Draw learning curves.

    Args:
        runs: directories of runs, or their metrics.jsonl.
        output: the picture; .png, .svg or .pdf.
    """

    runs: list[str]
    output: str = "curves.png"

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = []
        if not self.runs:
            faults.append("runs: at least one directory of a run is required")
        if Path(self.output).suffix not in pictures.SUFFIXES:
            known = ", ".join(pictures.SUFFIXES)
            faults.append(f"output: must end in {known}; got {self.output!r}")
        if faults:
            raise ConfigError("\n".join(faults))


@dataclass(frozen=True)
class Curve:
    """Values over steps, both [n]; a value that was not finite is nan."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Run:
    """What metrics.jsonl of a run holds.

    Args:
        label: shortest end of its path that no other run has.
        train, held_out: name of the number -> its curve.
        task: that it is fine-tuned for; "" of a pre-training, or where nothing says it.
    """

    label: str
    train: dict[str, Curve]
    held_out: dict[str, Curve]
    task: str = ""

    def summary(self) -> str:
        """Steps and held-out losses (those in training where there are none), one line."""
        curves = self.held_out or self.train
        steps = max(curve.steps[-1] for curve in (*self.train.values(), *curves.values()))
        losses = [
            f"{name.removesuffix('_loss')} {curve.values[0]:.3f} -> {curve.values[-1]:.3f}"
            for name, curve in curves.items()
            if is_loss(name)
        ] or [
            f"{name} {curves[name].values[0]:.2f} -> {curves[name].values[-1]:.2f}"
            for name in first_metrics(curves)
        ]
        kind = "held-out" if self.held_out else "training"
        return f"{self.label}: {steps:,} steps, {kind} {', '.join(losses)}"


def find_metrics(run: str) -> Path:
    """metrics.jsonl of a run.

    Raises:
        ConfigError: there is none; names one below, as the demonstration has it.
    """
    path = Path(run)
    if path.is_file():
        return path
    if (path / METRICS).is_file():
        return path / METRICS
    below = sorted(path.glob(f"*/{METRICS}"))
    hint = f"; did you mean {' or '.join(str(p.parent) for p in below[:3])}?" if below else ""
    raise ConfigError(f"runs: {path} holds no {METRICS}{hint}")


def read_run(path: Path, label: str) -> Run:
    """The curves of a metrics.jsonl; lines that are no JSON object with a step are passed over.

    Raises:
        DataError: no line holds a loss or a held-out number.
        StorageError: it cannot be read.
    """
    rows: dict[str, dict[str, dict[int, float]]] = {
        event: defaultdict(dict) for event in ("train", "validation")
    }
    odd = 0
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            event, step = row["event"], int(row["step"])
        except (ValueError, KeyError, TypeError):
            odd += 1
            continue
        for name, value in row.items() if event in rows else ():
            if value is None or (isinstance(value, (int, float)) and name not in ("step", "time")):
                # A step that was done again after a restart counts as it was last.
                rows[event][name][step] = math.nan if value is None else float(value)
    if odd:
        logger.warning("%s: passed over %d line(s) that are not whole", path, odd)
    train, held_out = (_curves(rows[event]) for event in ("train", "validation"))
    if not held_out and not any(map(is_loss, train)):
        raise DataError(f"{path} holds no loss yet; the first comes with the first log line")
    return Run(label, train, held_out, _task_of(path.parent))


def _task_of(run: Path) -> str:
    """What a checkpoint says."""
    for path in sorted(run.glob("step-*/state.json"), reverse=True):
        try:
            return str(json.loads(path.read_text("utf-8"))["settings"].get("task", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ""


def is_loss(name: str) -> bool:
    """Whether a logged number is a loss, not a metric."""
    return name == "loss" or name.endswith("_loss")


def first_metrics(names: Iterable[str]) -> list[str]:
    """The first of a task's numbers; those of single labels ("PER.f1"), counts and thresholds are
    left out."""
    return [
        name
        for name in names
        if not is_loss(name) and "." not in name and not name.endswith(("total", "_thresh"))
    ][:_MOST_METRICS]


def _curves(rows: dict[str, dict[int, float]]) -> dict[str, Curve]:
    found = {}
    for name, points in rows.items():
        steps = sorted(points)
        found[name] = Curve(steps, [points[step] for step in steps])
    return found


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the directories' paths that tell them apart."""
    parts = [path.resolve().parent.parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-count:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{'/'.join(p)} ({number})" for number, p in enumerate(parts, 1)]


def plot(config: PlotConfig) -> list[Run]:
    """Draw the runs into one picture.

    Raises:
        ConfigError: matplotlib is missing, or a directory is no run.
        DataError: a run has logged nothing yet.
        StorageError: a file cannot be read or written.
    """
    from spanbert_ext.training.panels import draw

    paths = list(dict.fromkeys(find_metrics(run) for run in config.runs))
    figure_class = pictures.figure_class("spanbert plot")
    runs = [read_run(path, label) for path, label in zip(paths, labels(paths), strict=True)]
    pictures.save(draw(figure_class, runs), config.output)
    return runs
