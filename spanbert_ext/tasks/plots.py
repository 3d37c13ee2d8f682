"""Pictures of an evaluation: which labels are taken for which, and what scores say of rightness.

matplotlib is imported when one is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spanbert_ext.errors import ConfigError
from spanbert_ext.training import pictures

_RIGHT, _WRONG, _QUIET = "#1f5fa8", "#c0392b", "#444444"
_BINS = 40
# Of the cells of a confusion matrix, in inches, and of what is written there, in points.
_CELLS = (0.28, 1.1)
_COUNTS = (5.0, 11.0)
# Widths in heights.
_DIGIT, _LETTER = 0.64, 0.55
_DARK = 0.55  # share of a row from which its cell is too dark for black


def confusion_plot(
    labels: Sequence[str],
    matrix: np.ndarray,
    path: str | Path,
    title: str = "",
    unit: str = "examples",
) -> None:
    """How often each gold label was predicted as each label; colours are shares of the row.

    Args:
        labels: n names, at least one.
        matrix: [n, n] counts, gold x predicted. They are written into the cells where they fit.
        path: .png, .svg or .pdf.
        title: above the picture.
        unit: what is counted.

    Raises:
        ConfigError: matplotlib is missing, or the path has another ending.
        StorageError: the file cannot be written.
    """
    matrix, count = np.asarray(matrix), len(labels)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"matrix: {count} labels need shape ({count}, {count}): {matrix.shape}")
    totals = matrix.sum(1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    cell = float(np.clip(7 / count, *_CELLS))
    side = cell * count
    small = 9 if cell > 0.4 else 7
    longest = max(len(label) for label in labels) * _LETTER * small / 72  # inches
    turned = longest > 0.9 * cell
    size = (side + longest + 2.2, side + 0.9 + longest * turned)
    figure = _figure(path, size)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for place in np.arange(count - 1) + 0.5:
        axis.axhline(place, color="white", linewidth=0.6)
        axis.axvline(place, color="white", linewidth=0.6)
    _write_counts(axis, matrix, shares, cell)
    rows = [f"{label}  ({total:,})" for label, total in zip(labels, totals.tolist(), strict=True)]
    axis.set_yticks(range(count), rows, fontsize=small, parse_math=False)
    look = {"fontsize": small, "parse_math": False, "rotation": 90 if turned else 0}
    axis.set_xticks(range(count), labels, **look)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel(f"gold ({unit})")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    height = min(1.0, 3.0 / side)
    place = axis.inset_axes((1 + 0.15 / side, (1 - height) / 2, 0.14 / side, height))
    bar = figure.colorbar(image, cax=place)
    bar.set_label("share of the gold label")
    bar.outline.set_visible(False)
    pictures.save(figure, path)


def _write_counts(axis, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    for row, column in np.argwhere(matrix):
        shown = str(matrix[row, column])
        points = min(_COUNTS[1], 72 * 0.9 * cell / (_DIGIT * max(2, len(shown))))
        if points >= _COUNTS[0]:
            colour = "white" if shares[row, column] > _DARK else "#222222"
            axis.text(
                column, row, shown, ha="center", va="center", fontsize=points, color=colour
            ).set_in_layout(False)


def score_plot(
    scores_right: Sequence[float] | np.ndarray,
    scores_wrong: Sequence[float] | np.ndarray,
    path: str | Path,
    threshold: float | None = None,
    quantity: str = "score",
    title: str = "",
) -> None:
    """The distribution of scores of right and of wrong predictions.

    Args:
        scores_right, scores_wrong: any numbers of them; those that are not finite are left out.
        path: .png, .svg or .pdf.
        threshold: a line at this score, which must decide what is predicted.
        quantity: what the scores are.
        title: above the picture.

    Raises:
        ConfigError: matplotlib is missing, or the path has another ending.
        StorageError: the file cannot be written.
    """
    figure = _figure(path, (6.4, 3.8))
    groups = [np.asarray(scores, np.float64).ravel() for scores in (scores_right, scores_wrong)]
    groups = [scores[np.isfinite(scores)] for scores in groups]
    everything = np.concatenate(groups)
    axis = figure.subplots()
    if len(everything):
        whole = (0, 1) if everything.min() >= 0 and everything.max() <= 1 else None
        edges = np.histogram_bin_edges(everything, _BINS, whole)
        for scores, colour, name in zip(groups, (_RIGHT, _WRONG), ("right", "wrong"), strict=True):
            heights, _ = np.histogram(scores, edges)
            look = {"color": colour, "linewidth": 1.6, "label": f"{name} ({len(scores):,})"}
            axis.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
            axis.stairs(heights, edges, **look)
    else:
        axis.text(0.5, 0.5, "no scores", transform=axis.transAxes, ha="center", color=_QUIET)
    if threshold is not None and np.isfinite(threshold):
        shown = f"threshold {threshold:.4g}"
        axis.axvline(threshold, color=_QUIET, linestyle="--", linewidth=1.2, label=shown)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    axis.set_title(title, fontsize=11, parse_math=False)
    axis.set_xlabel(quantity)
    axis.set_ylabel("predictions")
    axis.set_ylim(bottom=0)
    axis.yaxis.get_major_locator().set_params(integer=True)
    pictures.plain_axis(axis)
    pictures.save(figure, path)


def _figure(path: str | Path, size: tuple[float, float]):
    if Path(path).suffix not in pictures.SUFFIXES:
        raise ConfigError(f"{path}: a picture must end in {', '.join(pictures.SUFFIXES)}")
    return pictures.figure_class(f"{path}: drawing")(figsize=size, layout="constrained")
