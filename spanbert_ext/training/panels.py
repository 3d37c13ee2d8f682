"""What `spanbert plot` draws.

Lines are running medians over a fiftieth of the run, bands the 10th to 90th percentile there, and
what lies far above is a dot of its own, so that neither noise nor one bad step hides the course.
Each loss a run logs has its panel: a run with more heads has more of them. Losses and metrics of
different tasks are not comparable and have panels of their own.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from spanbert_ext.training import pictures
from spanbert_ext.training.plots import Curve, Run, first_metrics, is_loss

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
_OF_ANY_TASK = ("grad_norm", "tokens_per_s", "lr")
_SMOOTHED_SHARE = 50  # a window is this part of the logged lines
_SPIKE_RATIO = 3
_TRAINING = {"linewidth": 1.8, "marker": "o", "markersize": 4}
_BAND = {"alpha": 0.2, "linewidth": 0}
_SPIKE = {"linestyle": "", "marker": ".", "markersize": 4}
_HELD_OUT = {
    "linestyle": "--", "linewidth": 1.2,
    "marker": "o", "markersize": 3.5, "markerfacecolor": "white",
}  # fmt: skip


class Panel(NamedTuple):
    """What one pair of axes shows: a number of the runs of one task, or of all (None)."""

    name: str
    task: str | None


def panels(runs: Sequence[Run]) -> list[Panel]:
    """What is drawn: of each task its losses (MLM, SBO, others) and first metrics; then norm,
    speed and learning rate of all runs together."""
    found = []
    for task in dict.fromkeys(run.task for run in runs):
        own = [run for run in runs if run.task == task]
        there = {name for run in own for name in (*run.train, *run.held_out)}
        losses = sorted(filter(is_loss, there), key=lambda n: ([*_TITLES, n].index(n), n))
        metrics = dict.fromkeys(name for run in own for name in first_metrics(run.held_out))
        found += [Panel(name, task) for name in (*losses, *metrics)]
    return found + [Panel(n, None) for n in _OF_ANY_TASK if any(n in run.train for run in runs)]


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


def draw(figure_class: type, runs: Sequence[Run]):
    """The figure: one panel for each number, one colour for each run."""
    wanted = panels(runs)
    lines = -(-len(wanted) // (2 if len(wanted) <= 4 else 3))
    # So many in each line that none is empty; those of a shorter line are wider.
    counts = [len(range(line, len(wanted), lines)) for line in range(lines)]
    most = max(counts)
    legend_lines = (-(-len(runs) // most) if len(runs) > 1 else 0) + 1
    below = 0.35 + 0.23 * legend_lines  # inches
    height = 3.2 * lines + 0.5 + below
    figure = figure_class(figsize=(4.8 * max(most, 2), height), layout="constrained")
    whose = f"{len(runs)} runs" if len(runs) > 1 else runs[0].label
    figure.suptitle(_as_is(f"Learning curves of {whose}"), fontsize=14, fontweight="bold")
    grid = figure.add_gridspec(lines, math.lcm(*counts))
    places = [(line, n, count) for line, count in enumerate(counts) for n in range(count)]
    last = max(c.steps[-1] for run in runs for c in (*run.train.values(), *run.held_out.values()))
    named = len({run.task for run in runs}) > 1
    last = max(last, 1)
    drawn: set[str] = set()
    for panel, (line, n, count) in zip(wanted, places, strict=True):
        width = grid.ncols // count
        axis = figure.add_subplot(grid[line, n * width : (n + 1) * width])
        own = f"{panel.task or 'pre-training'}: " if named and panel.task is not None else ""
        axis.set_title(own + _title(panel.name), fontsize=11)
        drawn |= _draw_panel(axis, panel, runs)
        axis.set_xlim(-0.02 * last, 1.02 * last)
    _add_legends(figure, runs, drawn, most, 0.3 / height)
    figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - below / height))
    return figure


def _coloured(runs: Sequence[Run]) -> Iterable[tuple[Run, str]]:
    return zip(runs, itertools.cycle(_COLOURS), strict=False)


def _draw_panel(axis, panel: Panel, runs: Sequence[Run]) -> set[str]:
    """Keys of the legend for what was drawn."""
    name, drawn = panel.name, set()
    shown: list[float] = []  # what must fit; a single spike need not
    spikes: list[tuple[Curve, str]] = []
    for run, colour in _coloured(runs):
        if panel.task not in (None, run.task):
            continue
        if name in run.train:
            curve = run.train[name]
            window = 1 if name == "lr" else max(1, len(curve.values) // _SMOOTHED_SHARE)
            low, middle, high = running_quantiles(curve.values, window, (0.1, 0.5, 0.9))
            look = _TRAINING | {"color": colour, "markevery": _alone(middle)}
            axis.plot(curve.steps, middle, **look)
            drawn.add("training")
            if low != high:
                axis.fill_between(curve.steps, low, high, color=colour, **_BAND)
                drawn.add("band")
            shown += low + high
            spikes.append((_spikes(curve, middle), colour))
        if name in run.held_out:
            curve = run.held_out[name]
            axis.plot(curve.steps, curve.values, color=colour, **_HELD_OUT)
            shown += curve.values
            drawn.add("held out")
    axis.set_xlabel("step")
    axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
    pictures.plain_axis(axis)
    _scale(axis, name, [value for value in shown if math.isfinite(value)])
    top = axis.get_ylim()[1]
    for curve, colour in spikes:
        if curve.steps:
            heights = [min(value, top) for value in curve.values]
            (dots,) = axis.plot(curve.steps, heights, color=colour, clip_on=False, **_SPIKE)
            dots.set_in_layout(False)
            drawn.add("spike")
    return drawn


def _alone(values: Sequence[float]) -> list[int]:
    """Places of finite values without a finite neighbour, of which a line shows nothing."""
    there = [False, *map(math.isfinite, values), False]
    return [n for n in range(len(values)) if there[n : n + 3] == [False, True, False]]


def _title(name: str) -> str:
    if name in _TITLES:
        return _TITLES[name]
    if is_loss(name):
        return name.removesuffix("_loss").upper() + " loss"
    return name.replace("_", " ") + ", held out"


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
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        return
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axis.set_ylim(0 if name in ("tokens_per_s", "lr") else low - room, high + 2 * room)
    if name == "tokens_per_s":
        axis.yaxis.set_major_formatter(lambda value, _: short_number(value))
    if name == "lr":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _add_legends(figure, runs: Sequence[Run], drawn: set[str], columns: int, line: float) -> None:
    """At the foot: the runs, where there are several, and under them what the lines mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = {"color": "#444444"}
    median = "training, running median" if "band" in drawn else "training"
    meaning = {
        "training": Line2D([], [], label=median, linewidth=1.8, **grey),
        "band": Patch(label="10th to 90th percentile", alpha=0.2, **grey),
        "spike": Line2D([], [], label=f"more than {_SPIKE_RATIO} medians", **grey, **_SPIKE),
        "held out": Line2D([], [], label="held out", **grey, **_HELD_OUT),
    }
    look = {"loc": "lower center", "frameon": False, "borderaxespad": 0.3}
    handles = [handle for name, handle in meaning.items() if name in drawn]
    figure.legend(handles=handles, ncols=4, fontsize=9, **look)
    if len(runs) > 1:
        entries = [
            Line2D([], [], color=colour, linewidth=3, label=_as_is(run.label))
            for run, colour in _coloured(runs)
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
