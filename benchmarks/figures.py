"""What the pictures of `benchmarks.plot` have in common: colours, axes, legend and foot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

Row = dict[str, str]

OURS, FLOOR = "#c0392b", "#555555"
# Distinct also in grey; ours is always red, on top and thick.
COLOURS = ("#1f5fa8", "#3b9c6b", "#d98a1f", "#7b52ab", "#2aa5b8", "#8c564b", "#999999")
MARKERS = "sD^vPXh"


def shapes_of(row: Row) -> dict[str, str]:
    """The `shapes` column as a mapping."""
    return dict(part.split("=", 1) for part in row["shapes"].split())


def make_figure(pyplot, panels: int, title: str):
    """A figure of panels, at most three beside each other, with its title."""
    columns = panels if panels <= 3 else 2
    lines_of_panels = -(-panels // columns)
    width = max(7.5, 5.2 * columns)
    figure, axes = pyplot.subplots(
        lines_of_panels,
        columns,
        figsize=(width, 1.6 + 4.4 * lines_of_panels),
        squeeze=False,
        layout="constrained",
    )
    for unused in axes.flat[panels:]:
        unused.set_visible(False)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure, axes.flat[:panels]


def finish_axis(axis, title: str, size_label: str, sizes: Sequence[float]) -> None:
    """Title, grid and logarithmic scales with a tick at every size."""
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(textwrap.fill(title, 42), fontsize=11)
    axis.set_xlabel(size_label)
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.grid(which="major", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def add_foot(figure, axes, rows: Sequence[Row]) -> None:
    """Under the panels: one legend for all of `axes`, where it hides no line, and the session."""
    width, height = figure.get_size_inches()
    row = rows[0]
    parts = [row["hardware"], f"torch {row['torch']}", row["backend"], f"commit {row['commit']}"]
    under = [" · ".join([*parts, row["date"][:10]]), row["command"]]
    letters = int(15 * width)  # of 8 points, in one line
    lines = [line for text in under for line in textwrap.wrap(text, letters)]
    text_height = 0.16 * len(lines) + 0.1  # in inches, as are the others
    figure.text(
        0.5, 0.05 / height, "\n".join(lines), ha="center", va="bottom", fontsize=8, color="#444444"
    )
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = min(len(entries), int(width / 2.4))
    legend_height = 0.22 * -(-len(entries) // columns) + 0.1 if entries else 0.0
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="lower center", ncols=columns, fontsize=9,
            bbox_to_anchor=(0.5, text_height / height), frameon=False, borderaxespad=0,
        )  # fmt: skip
    below = (text_height + legend_height) / height
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
