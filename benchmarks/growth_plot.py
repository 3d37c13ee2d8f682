"""How the coreference model grows with the document: a picture of time and one of memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.figures import (
    COLOURS,
    FLOOR,
    MARKERS,
    Row,
    add_foot,
    finish_axis,
    make_figure,
    shapes_of,
)


def draw_growth(pyplot, rows: Sequence[Row]):
    """Time and peak of memory against pieces, a line for every model and mode."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: float(row["size"])):
        shapes = shapes_of(row)
        name = f"{row['variant']}, {shapes['layers']} layers of {shapes['H']}"
        lines[f"{name}, {row['note']}" if row["note"] else name].append(row)
    figure, axes = make_figure(pyplot, 2, "Coreference: what a document costs")
    sizes = sorted({float(row["size"]) for row in rows})
    units = (("median_us", 1e6, "seconds"), ("peak_mb", 1024, "GB, the peak of the process"))
    for axis, (column, unit, label) in zip(axes, units, strict=True):
        for place, (name, points) in enumerate(lines.items()):
            axis.plot(
                [float(row["size"]) for row in points],
                [float(row[column]) / unit for row in points],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                label=name,
            )
        finish_axis(axis, label, "pieces of a document", sizes)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    first, last = sizes[0], sizes[-1]
    low = min(float(row["median_us"]) for row in rows if float(row["size"]) == first) / 1e6
    axes[0].plot([first, last], [low, low * last / first], ":", color=FLOOR, label="linear")
    add_foot(figure, axes, rows)
    return figure
