"""`spanbert evaluate TASK`: the numbers of a fine-tuned model on data with gold answers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.progress import Progress, watched_by
from spanbert_ext.tasks import html
from spanbert_ext.tasks.config import EvaluateConfig
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.task import DownstreamTask
from spanbert_ext.training.checkpoint import write_text


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a model and write what the settings ask for.

    Args:
        config: of `registry.settings_class(EvaluateConfig, TASK)`.

    Returns:
        task, model, data, examples, rejected, seconds, and the task's numbers under "metrics".

    Raises:
        ConfigError, DataError, StorageError: the settings, the data or the model cannot be used.
    """
    config.validate()
    predictor = Predictor.of_settings(config)
    task, examples, rejected = predictor.task, [], []
    for path in config.data:
        rejects = Rejects(config.on_error)
        examples += task.read(path, rejects)
        rejected += rejects.found
    examples = examples[: config.limit]
    if not examples:
        raise DataError(f"{', '.join(config.data)}: there is nothing to evaluate")
    began = time.monotonic()
    predictions = _predictions(predictor, examples)
    seconds = time.monotonic() - began
    numbers = task.score(examples, predictions)
    try:
        _write(config, task, examples, predictions)
    except OSError as error:
        raise StorageError(f"cannot write {error.filename}: {error.strerror or error}") from error
    result = {
        "task": task.name,
        "model": config.model,
        "data": list(config.data),
        "examples": len(examples),
        "rejected": [f"{r.where}: {r.id}: {r.reason}" for r in rejected],
        "seconds": round(seconds, 2),
        "metrics": numbers,
    }
    if config.metrics is not None:
        text = json.dumps(result, indent=1, ensure_ascii=False)
        write_text(Path(config.metrics), text + "\n")
    return result


def _predictions(predictor: Predictor, examples: list[Any]) -> list[Any]:
    """One for each example, while somebody watches."""
    predictions: list[Any] = []
    with (
        Progress(unit=" examples", stream="stderr") as whole,
        Progress(unit="", stream="stderr", passing=True) as inside,
        watched_by(inside),
    ):
        whole("evaluating", 0, len(examples))
        try:
            for start in range(0, len(examples), predictor.chunk):
                predictions += predictor(examples[start : start + predictor.chunk])
                whole("evaluating", len(predictions), len(examples))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written; an evaluation begins anew") from None
    return predictions


def _write(
    config: EvaluateConfig, task: DownstreamTask, examples: list[Any], predictions: list[Any]
) -> None:
    """The files that are asked for."""
    if config.predictions is not None:
        task.write_predictions(Path(config.predictions), examples, predictions)
    if config.html is not None:
        blocks = (task.marked(e, p) for e, p in zip(examples, predictions, strict=True))
        files = ", ".join(Path(path).name for path in config.data)
        title = f"{task.name}: {files}, predicted by {config.model}"
        html.write_page(Path(config.html), title, blocks)
    if config.plot is not None:
        task.plot(Path(config.plot), examples, predictions)
