"""What every picture shares: when matplotlib is imported, how axes look, how a file is written."""

from __future__ import annotations

from pathlib import Path

from spanbert_ext.errors import ConfigError
from spanbert_ext.files import staged

SUFFIXES = (".png", ".svg", ".pdf")


def figure_class(what: str) -> type:
    """matplotlib's Figure.

    Args:
        what: wants to draw; for the message.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f'{what} needs matplotlib ({error}): `pip install "spanbert-ext[plot]"`'
        ) from None
    return Figure


def plain_axis(axis) -> None:
    """A quiet grid behind what is drawn, and no frame."""
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path: str | Path) -> None:
    """Write a figure whole or not at all; the ending says how.

    Raises:
        StorageError: the file cannot be written.
    """
    path = Path(path)
    with staged(path) as part:
        figure.savefig(part, dpi=130, format=path.suffix[1:])
