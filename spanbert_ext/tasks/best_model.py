"""`best/` of a fine-tuning run: the model of the best evaluation so far, with its numbers.

It is committed when it is found, between checkpoints; so what it says of itself counts, not what
the checkpoint that a run goes back to remembers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spanbert_ext.errors import StorageError
from spanbert_ext.files import json_text
from spanbert_ext.tasks.task_file import BEST
from spanbert_ext.training import checkpoint

SCORES = "scores.json"


def keep_best(run: Path, scores: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Replace the best model of a run.

    Args:
        scores: `step` and the numbers of its evaluation.
        write: fills the directory it is given with the model.

    Raises:
        StorageError: it cannot be written; the old one stays.
    """

    def write_both(directory: Path) -> None:
        write(directory)
        text = json_text(scores, indent=1)
        (directory / SCORES).write_text(text + "\n", "utf-8")

    try:
        checkpoint.commit(run, BEST, scores["step"], write_both)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the best model could not be written in {run}: {error}. Make room or repair the path, "
            "and start the same command again"
        ) from error
    checkpoint.sweep(run)  # the one it replaces


def best_scores(run: Path) -> dict[str, Any]:
    """What `keep_best` was given for the model that is there; empty if there is none, or a damaged
    one."""
    folder = run / BEST
    if not folder.is_dir() or checkpoint.find_fault(folder):
        return {}
    try:
        scores = json.loads((folder / SCORES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, dict) else {}
