"""`spanbert plot RUN...`: the learning curves of one or several runs, from their metrics.jsonl.

Lines are running medians over a fiftieth of the run, bands the 10th to 90th percentile there, and
what lies far above is a dot of its own, so that neither noise nor one bad step hides the course.
Each loss a run logs has its panel: a run with more heads has more of them.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanbert_ext.errors import ConfigError, DataError, StorageError

logger = logging.getLogger("spanbert_ext")

METRICS = "metrics.jsonl"
_SUFFIXES = (".png", ".svg", ".pdf")
# Distinct also in grey.
_COLOURS = ("#1f5fa8", "#c0392b", "#3b9c6b", "#d98a1f", "#7b52ab", "#2aa5b8", "#8c564b", "#555555")
_TITLES = {
    "loss": "training loss",
    "mlm_loss": "MLM loss (nats a masked piece)",
    "sbo_loss": "SBO loss (nats a target)",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens a second",
    "lr": "learning rate",
}
_MOST_METRICS = 3  # of a run's held-out numbers that are no losses
_SMOOTHED_SHARE = 50  # a window is this part of the logged lines
_SPIKE_RATIO = 3
_HELD_OUT = {
    "linestyle": "--", "linewidth": 1.2,
    "marker": "o", "markersize": 3.5, "markerfacecolor": "white",
}  # fmt: skip
_SPIKE = {"linestyle": "", "marker": ".", "markersize": 4}


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
        if Path(self.output).suffix not in _SUFFIXES:
            faults.append(f"output: must end in {', '.join(_SUFFIXES)}; got {self.output!r}")
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
    """

    label: str
    train: dict[str, Curve]
    held_out: dict[str, Curve]

    def summary(self) -> str:
        """Steps and held-out losses (those in training where there are none), one line."""
        curves = self.held_out or self.train
        steps = max(curve.steps[-1] for curve in (*self.train.values(), *curves.values()))
        losses = [
            f"{name.removesuffix('_loss')} {curve.values[0]:.3f} -> {curve.values[-1]:.3f}"
            for name, curve in curves.items()
            if _is_loss(name)
        ] or [
            f"{name} {curves[name].values[0]:.2f} -> {curves[name].values[-1]:.2f}"
            for name in _metrics(curves)
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
        DataError: no line holds a loss.
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
    if not any(_is_loss(name) for name in (*train, *held_out)):
        raise DataError(f"{path} holds no loss yet; the first comes with the first log line")
    return Run(label, train, held_out)


def _is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("_loss")


def _metrics(names: Iterable[str]) -> list[str]:
    """The first of a task's numbers; those of single labels ("PER.f1") are left out."""
    return [name for name in names if not _is_loss(name) and "." not in name][:_MOST_METRICS]


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


def running_quantiles(
    values: Sequence[float], window: int, shares: Sequence[float]
) -> list[list[float]]:
    """For every share, the quantile of the `window` values around each one; nan where none of them
    is finite.
    """
    half = window // 2
    inside: list[float] = []  # the finite values of the window, ascending
    quantiles: list[list[float]] = [[] for _ in shares]
    for i in range(-half, len(values)):
        entering, leaving = i + half, i - half - 1
        if entering < len(values) and math.isfinite(values[entering]):
            bisect.insort(inside, values[entering])
        if leaving >= 0 and math.isfinite(values[leaving]):
            del inside[bisect.bisect_left(inside, values[leaving])]
        if i >= 0:
            for share, found in zip(shares, quantiles, strict=True):
                found.append(inside[round(share * (len(inside) - 1))] if inside else math.nan)
    return quantiles


def plot(config: PlotConfig) -> list[Run]:
    """Draw the runs into one picture.

    Raises:
        ConfigError: matplotlib is missing, or a directory is no run.
        DataError: a run has logged nothing yet.
        StorageError: a file cannot be read or written.
    """
    paths = list(dict.fromkeys(find_metrics(run) for run in config.runs))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f'spanbert plot needs matplotlib ({error}): `pip install "spanbert-ext[plot]"`'
        ) from None
    runs = [read_run(path, label) for path, label in zip(paths, labels(paths), strict=True)]
    figure = draw(Figure, runs)
    target = Path(config.output)
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    return runs


def panels(runs: Iterable[Run]) -> list[str]:
    """The names of what is drawn: the loss of a task, or MLM, SBO and further losses; the first
    metrics of a task; then norm, speed, learning rate."""
    runs = list(runs)
    found = {name for run in runs for name in (*run.train, *run.held_out)}
    losses = sorted(name for name in found if _is_loss(name) and name not in _TITLES)
    metrics = [name for run in runs for name in _metrics(run.held_out)]
    wanted = ["loss", "mlm_loss", "sbo_loss", *losses, *dict.fromkeys(metrics)]
    wanted += ["grad_norm", "tokens_per_s", "lr"]
    return [name for name in wanted if name in found]


def draw(figure_class: type, runs: Sequence[Run]):
    """The figure: one panel for each number, one colour for each run."""
    names = panels(runs)
    columns = 2 if len(names) <= 4 else 3
    lines = -(-len(names) // columns)
    legend_lines = (-(-len(runs) // columns) if len(runs) > 1 else 0) + 1
    below = 0.35 + 0.23 * legend_lines  # inches
    height = 3.2 * lines + 0.5 + below
    figure = figure_class(figsize=(4.8 * columns, height), layout="constrained")
    title = "Learning curves" if len(runs) > 1 else f"Learning curves of {runs[0].label}"
    figure.suptitle(_as_is(title), fontsize=14, fontweight="bold")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    last = max(c.steps[-1] for run in runs for c in (*run.train.values(), *run.held_out.values()))
    for axis, name in zip(axes, names, strict=False):
        _draw_panel(axis, name, runs)
        axis.set_xlim(-0.02 * last, 1.02 * last)
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    _add_legends(figure, runs, columns, 0.3 / height)
    figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - below / height))
    return figure


def _draw_panel(axis, name: str, runs: Sequence[Run]) -> None:
    shown: list[float] = []  # what must fit; a single spike need not
    spikes: list[tuple[Curve, str]] = []
    for run, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
        if name in run.train:
            curve = run.train[name]
            window = 1 if name == "lr" else max(1, len(curve.values) // _SMOOTHED_SHARE)
            low, middle, high = running_quantiles(curve.values, window, (0.1, 0.5, 0.9))
            axis.plot(curve.steps, middle, color=colour, linewidth=1.8)
            axis.fill_between(curve.steps, low, high, color=colour, alpha=0.2, linewidth=0)
            shown += low + high
            spikes.append((_spikes(curve, middle), colour))
        if name in run.held_out:
            curve = run.held_out[name]
            axis.plot(curve.steps, curve.values, color=colour, **_HELD_OUT)
            shown += curve.values
    axis.set_title(_title(name), fontsize=11)
    axis.set_xlabel("step")
    axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    _scale(axis, name, [value for value in shown if math.isfinite(value)])
    top = axis.get_ylim()[1]
    for curve, colour in spikes:
        heights = [min(value, top) for value in curve.values]
        (dots,) = axis.plot(curve.steps, heights, color=colour, clip_on=False, **_SPIKE)
        dots.set_in_layout(False)


def _title(name: str) -> str:
    if name in _TITLES or not _is_loss(name):
        return _TITLES.get(name, name.replace("_", " "))
    return name.removesuffix("_loss").upper() + " loss"


def _spikes(curve: Curve, middle: Sequence[float]) -> Curve:
    """The values of more than `_SPIKE_RATIO` times the running median."""
    found = [
        (step, value)
        for step, value, median in zip(curve.steps, curve.values, middle, strict=True)
        if value > _SPIKE_RATIO * median
    ]
    return Curve([step for step, _ in found], [value for _, value in found])


def _scale(axis, name: str, shown: Sequence[float]) -> None:
    if not shown:
        axis.text(0.5, 0.5, "nothing finite", transform=axis.transAxes, ha="center")
        return
    low, high = min(shown), max(shown)
    if name == "grad_norm" and low > 0:
        from matplotlib.ticker import LogLocator, NullFormatter

        axis.set_yscale("log")
        axis.set_ylim(low / 1.2, high * 1.2)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        return
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axis.set_ylim(0 if name in ("tokens_per_s", "lr") else low - room, high + 2 * room)
    if name == "tokens_per_s":
        axis.yaxis.set_major_formatter(lambda value, _: short_number(value))
    if name == "lr":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _add_legends(figure, runs: Sequence[Run], columns: int, line: float) -> None:
    """At the foot: the runs, where there are several, and under them what the lines mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = {"color": "#444444"}
    meaning = [
        Line2D([], [], linewidth=1.8, label="training, running median", **grey),
        Patch(alpha=0.2, label="10th to 90th percentile", **grey),
        Line2D([], [], label=f"more than {_SPIKE_RATIO} medians", **grey, **_SPIKE),
        Line2D([], [], label="held out", **grey, **_HELD_OUT),
    ]
    look = {"loc": "lower center", "frameon": False, "borderaxespad": 0.3}
    figure.legend(handles=meaning, ncols=4, fontsize=9, **look)
    if len(runs) > 1:
        colours = zip(runs, itertools.cycle(_COLOURS), strict=False)
        entries = [
            Line2D([], [], color=colour, linewidth=3, label=_as_is(run.label))
            for run, colour in colours
        ]
        figure.legend(
            handles=entries, ncols=min(len(runs), columns), fontsize=10,
            bbox_to_anchor=(0.5, line), **look,
        )  # fmt: skip


def _as_is(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def short_number(value: float) -> str:
    """1200 -> 1.2k, 2400000 -> 2.4M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
