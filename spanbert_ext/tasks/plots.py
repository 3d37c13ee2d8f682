"""Pictures of an evaluation: which labels are taken for which, and what scores say of rightness.

matplotlib is imported when one is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spanbert_ext.data.storage import temporary
from spanbert_ext.errors import ConfigError, StorageError

_SUFFIXES = (".png", ".svg", ".pdf")
_RIGHT, _WRONG, _QUIET = "#1f5fa8", "#c0392b", "#444444"
_BINS = 40
# Of the cells of a confusion matrix, in inches, and of what is written there, in points.
_CELLS = (0.28, 1.1)
_COUNTS = (5.0, 11.0)
# Widths in heights.
_DIGIT, _LETTER = 0.64, 0.55
_DARK = 0.55  # share of a row from which its cell is too dark for black


def confusion_plot(labels: Sequence[str], matrix: np.ndarray, path: str | Path) -> None:
    """How often each gold label was predicted as each label; colours are shares of the row.

    Args:
        labels: n names, at least one.
        matrix: [n, n] counts, gold x predicted. They are written into the cells where they fit.
        path: .png, .svg or .pdf.

    Raises:
        ConfigError: matplotlib is missing, or the path has another ending.
        StorageError: the file cannot be written.
    """
    figure_class = _figure_class(path)
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
    figure = figure_class(figsize=size, layout="constrained")
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
    axis.set_xlabel("predicted")
    axis.set_ylabel("gold (examples)")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    height = min(1.0, 3.0 / side)
    place = axis.inset_axes((1 + 0.15 / side, (1 - height) / 2, 0.14 / side, height))
    bar = figure.colorbar(image, cax=place)
    bar.set_label("share of the gold label")
    bar.outline.set_visible(False)
    _save(figure, path)


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
) -> None:
    """The distribution of scores of right and of wrong predictions.

    Args:
        scores_right, scores_wrong: any numbers of them; those that are not finite are left out.
        path: .png, .svg or .pdf.
        threshold: a line at this score.

    Raises:
        ConfigError: matplotlib is missing, or the path has another ending.
        StorageError: the file cannot be written.
    """
    figure_class = _figure_class(path)
    groups = [np.asarray(scores, np.float64).ravel() for scores in (scores_right, scores_wrong)]
    groups = [scores[np.isfinite(scores)] for scores in groups]
    everything = np.concatenate(groups)
    figure = figure_class(figsize=(6.4, 3.8), layout="constrained")
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
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    axis.set_xlabel("score")
    axis.set_ylabel("predictions")
    axis.set_ylim(bottom=0)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _figure_class(path: str | Path) -> type:
    if Path(path).suffix not in _SUFFIXES:
        raise ConfigError(f"{path}: a picture must end in {', '.join(_SUFFIXES)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f'{path}: drawing needs matplotlib ({error}): `pip install "spanbert-ext[plot]"`'
        ) from None
    return Figure


def _save(figure, path: str | Path) -> None:
    path = Path(path)
    part = temporary(path)
    try:
        try:
            figure.savefig(part, dpi=140, format=path.suffix[1:])
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
