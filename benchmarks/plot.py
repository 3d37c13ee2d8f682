"""`python -m benchmarks.plot`: pictures of what `benchmarks/results/*.csv` holds, and of nothing
else.

Time against size for every operation, peers beside ours and the floor as a line; the parts of a
step; the memory of the vocabulary loss; what documents cost in coreference. Each picture shows one
session, named under it.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.figures import (
    COLOURS,
    FLOOR,
    MARKERS,
    OURS,
    Row,
    add_foot,
    finish_axis,
    make_figure,
    shapes_of,
)
from benchmarks.growth_plot import draw_growth
from benchmarks.installed import ROOT

# op -> (file, title, label of the size axis)
OPERATIONS = {
    "span_mask": ("masking", "Span masking", "rows of 512 tokens"),
    "sbo": ("sbo", "Span boundary head, forward and backward", "rows of 512 tokens"),
    "residual": ("residual", "LayerNorm(dropout(x) + residual), forward and backward", "rows"),
    "attention_dropout": (
        "attention_dropout", "Attention of a layer with dropout, forward and backward",
        "tokens of a sequence",
    ),
    "cross_entropy": (
        "cross_entropy", "Vocabulary loss, forward and backward", "rows with a target",
    ),
    "step": ("step", "Pre-training step", "rows of a batch"),
}  # fmt: skip
# Shapes that make another panel, not another point.
PANEL_SHAPES = ("hidden", "width", "preset", "attention_dropout", "dropout")
PART_COLOURS = ("#c0392b", "#1f5fa8", "#d98a1f", "#4b8fcb", "#8a8a8a")


def read_session(results: Path, device: str) -> list[Row]:
    """Cold rows of the newest session of one kind of device, over all files together.

    Sessions differ from file to file where a later one measured less; each operation has its own.
    """
    found = [row for row in records.read_measured(results) if row["device"] == device]
    newest: dict[str, str] = defaultdict(str)
    for row in found:
        newest[row["op"]] = max(newest[row["op"]], row["date"])
    return [
        row
        for row in found
        if row["date"] == newest[row["op"]] and row["cache"] == "cold" and row["median_us"]
    ]


def panels_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one operation by the title of their panel."""
    panels: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        shapes = shapes_of(row)
        fixed = [f"{n.replace('_', ' ')} {shapes[n]}" for n in PANEL_SHAPES if n in shapes]
        panels[", ".join([row["dtype"], *fixed])].append(row)
    return dict(sorted(panels.items()))


def series_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one panel by variant, by threads too where they differ; ascending sizes."""
    several = len({row["threads"] for row in rows}) > 1
    series: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["size"])):
        name = row["variant"].replace("_", " ")
        if several:
            name += f", {row['threads']} thread" + ("s" if row["threads"] != "1" else "")
        if series[name] and series[name][-1]["size"] == row["size"]:
            series[name].pop()  # measured twice in the session: the later one counts
        series[name].append(row)
    # Ours first, then the slowest: the order of the lines at their right ends.
    return dict(sorted(series.items(), key=lambda s: (not s[0].startswith("ours"), -_us(s[1][-1]))))


def _us(row: Row) -> float:
    return float(row["median_us"])


def colours_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of every variant; the same in all panels of a figure."""
    peers = [name for name in names if not name.startswith("ours")]
    found = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(sorted(peers))
    }
    own = [name for name in names if name.startswith("ours")]
    reds = (OURS, "#e88376", "#7d1f14", "#f2b8b0")
    return found | {name: (reds[i % len(reds)], "o") for i, name in enumerate(own)}


def draw_times(pyplot, rows: Sequence[Row], title: str, size_label: str):
    """Time against size, log-log."""
    panels = panels_of(rows)
    figure, axes = make_figure(pyplot, len(panels), f"{title}: time against size")
    names = list(dict.fromkeys(n for panel in panels.values() for n in series_of(panel)))
    looks = colours_of(names)
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        if len({row["size"] for row in panel}) == 1:
            size = f"{float(panel[0]['size']):g} {size_label}"
            _draw_bars(axis, f"{name}, {size}", panel, looks)
            continue
        for variant, points in series_of(panel).items():
            _draw_series(axis, variant, points, looks[variant])
        _draw_floors(axis, panel)
        finish_axis(axis, name, size_label, sorted({float(r["size"]) for r in panel}))
        _label_durations(axis.yaxis, axis.get_ylim())
        axis.set_ylabel("median time of a call (band: 20th to 80th percentile)")
    add_foot(figure, axes, rows)
    return figure


def _draw_floors(axis, panel: Sequence[Row]) -> None:
    """The shortest possible times, a line for every number of threads."""
    floors: dict[str, dict[float, float]] = defaultdict(dict)
    for row in panel:
        if row["floor_us"]:
            floors[row["threads"]][float(row["size"])] = float(row["floor_us"]) / 1e6
    for (threads, points), style in zip(sorted(floors.items()), ("--", ":"), strict=False):
        label = "floor" + (f", {threads} threads" if len(floors) > 1 and threads != "1" else "")
        label += ", 1 thread" if len(floors) > 1 and threads == "1" else ""
        xs, ys = zip(*sorted(points.items()), strict=True)
        axis.plot(xs, ys, style, color=FLOOR, linewidth=1.6, label=label)


def _draw_series(axis, variant: str, points: Sequence[Row], look: tuple[str, str]) -> None:
    is_ours = variant.startswith("ours")
    colour, marker = look
    xs = [float(row["size"]) for row in points]
    axis.plot(
        xs,
        [_us(row) / 1e6 for row in points],
        color=colour,
        marker=marker,
        markersize=6 if is_ours else 5,
        linewidth=2.6 if is_ours else 1.5,
        zorder=3 if is_ours else 2,
        label=variant,
    )
    low, high = ([float(row[c]) / 1e6 for row in points] for c in ("p20_us", "p80_us"))
    axis.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)


def _draw_bars(axis, title: str, rows: Sequence[Row], looks: dict[str, tuple[str, str]]) -> None:
    """One size only: a bar for each variant, with its time and how many times ours it is."""
    series = series_of(rows)
    ours = next((_us(points[-1]) for n, points in series.items() if n == "ours"), None)
    for place, (variant, points) in enumerate(series.items()):
        time_us = _us(points[-1])
        axis.barh(place, time_us / 1e6, color=looks[variant][0], height=0.6)
        text = seconds_text(float(f"{time_us / 1e6:.3g}"))
        if ours is not None and variant != "ours":
            text += f" ({time_us / ours:.2f} x ours)"
        axis.text(time_us / 1e6, place, f" {text}", va="center", fontsize=9)
    if rows[0]["floor_us"]:
        floor = float(rows[0]["floor_us"]) / 1e6
        axis.axvline(floor, linestyle="--", color=FLOOR, linewidth=1.6, label="floor")
    axis.set_yticks(range(len(series)), [name.replace(" ", "\n", 1) for name in series])
    axis.set_ylim(len(series) + 0.2, -0.8)
    axis.set_xlim(0, 1.45 * max(_us(row) for row in rows) / 1e6)
    axis.xaxis.set_major_formatter(lambda value, _: seconds_text(value))
    axis.set_title(textwrap.fill(title, 42), fontsize=11)
    axis.set_xlabel("median time of a call")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _label_durations(axis, limits: tuple[float, float]) -> None:
    """Ticks with units; between the powers of ten too where there are few of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    narrow = limits[1] / limits[0] < 100
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(lambda value, _: seconds_text(value))
    axis.set_minor_formatter(NullFormatter())


def seconds_text(value: float) -> str:
    """A duration with the unit that suits it."""
    for limit, unit, scale in ((1e-3, "µs", 1e6), (1.0, "ms", 1e3)):
        if 0 < value < limit:
            return f"{value * scale:.4g} {unit}"
    return f"{value:.4g} s"


def draw_parts(pyplot, rows: Sequence[Row]):
    """The parts of our step, a bar for each size and precision."""
    bars: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        shapes = shapes_of(row)
        bars[f"{shapes['preset']}, {shapes['rows']} rows, {row['dtype']}"].append(row)
    figure, (axis,) = make_figure(pyplot, 1, "Where the time of our step goes")
    figure.set_size_inches(9.5, 2.4 + 0.75 * len(bars))
    for place, parts in enumerate(bars.values()):
        total, left = sum(map(_us, parts)), 0.0
        for part, colour in zip(parts, PART_COLOURS, strict=False):
            share = _us(part) / total
            label = part["variant"] if place == 0 else None
            axis.barh(place, share, left=left, color=colour, height=0.62, label=label)
            if share > 0.04:
                middle = left + share / 2
                axis.text(
                    middle, place, f"{share:.0%}", ha="center", va="center", color="white",
                    fontsize=10, fontweight="bold",
                )  # fmt: skip
            left += share
        thin = [r for r in parts if _us(r) / total <= 0.04]
        notes = [f"{r['variant']} {_us(r) / total:.1%}" for r in thin]
        text = "\n".join([seconds_text(float(f"{total / 1e6:.3g}")), *notes])
        axis.text(1.01, place, text, va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("share of the step; at the right its time, and parts too thin to see")
    axis.invert_yaxis()
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    add_foot(figure, (), rows)
    return figure


def draw_memory(pyplot, rows: Sequence[Row]):
    """Memory of the vocabulary loss against the number of rows, and what all logits would take."""
    rows = [row for row in rows if row["extra_mb"] and float(row["extra_mb"]) > 0]
    panels = panels_of(rows)
    title = "Vocabulary loss: memory of one call, forward and backward"
    figure, axes = make_figure(pyplot, len(panels), title)
    names = list(dict.fromkeys(n for panel in panels.values() for n in series_of(panel)))
    looks = colours_of(names)
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        for variant, points in series_of(panel).items():
            xs = [float(row["size"]) for row in points]
            ys = [float(row["extra_mb"]) for row in points]
            width = 2.6 if variant.startswith("ours") else 1.5
            colour, marker = looks[variant]
            axis.plot(xs, ys, color=colour, marker=marker, linewidth=width, label=variant)
        item = 4 if panel[0]["dtype"] == "fp32" else 2
        logits = {
            float(r["size"]): float(r["size"]) * int(shapes_of(r)["vocabulary"]) * item / 2**20
            for r in panel
        }
        xs, ys = zip(*sorted(logits.items()), strict=True)
        axis.plot(xs, ys, ":", color=FLOOR, linewidth=1.8, label="the logits alone")
        finish_axis(axis, name, "rows with a target", sorted(logits))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} MiB")
        axis.set_ylabel("most memory beyond the inputs, gradients included")
    add_foot(figure, axes, rows)
    return figure


def draw_all(results: Path, out: Path, device: str, suffix: str = "png") -> list[Path]:
    """Every picture the files have rows for.

    Raises:
        FileNotFoundError: there is nothing to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_session(results, device)
    if not rows:
        raise FileNotFoundError(
            f"{results} holds no row measured on {device}; run `pytest benchmarks/` first (with "
            f"--quick it records only where --results DIR says)"
        )
    out.mkdir(parents=True, exist_ok=True)
    figures = {}
    for op, (name, title, size_label) in OPERATIONS.items():
        own = [row for row in rows if row["op"] == op]
        if own:
            figures[name] = draw_times(pyplot, own, title, size_label)
    parts = [row for row in rows if row["op"] == "step_part"]
    if parts:
        figures["step_parts"] = draw_parts(pyplot, parts)
    losses = [row for row in rows if row["op"] == "cross_entropy"]
    if any(row["extra_mb"] and float(row["extra_mb"]) > 0 for row in losses):
        figures["memory"] = draw_memory(pyplot, losses)
    documents = [row for row in rows if row["op"] == "coref"]
    if documents:
        figures["coref_growth"] = draw_growth(pyplot, documents)
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}_{device}.{suffix}")
        figure.savefig(paths[-1], dpi=100)
        pyplot.close(figure)
    return paths


def main(words: list[str] | None = None) -> int:
    """Draw and print the names of the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    home = ROOT / "benchmarks"
    parser.add_argument("--results", type=Path, default=home / "results")
    parser.add_argument("--out", type=Path, default=home / "plots")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    given = parser.parse_args(words)
    try:
        paths = draw_all(given.results, given.out, given.device, given.format)
    except FileNotFoundError as error:
        print(f"benchmarks.plot: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"benchmarks.plot: {error}; `pip install matplotlib`", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
