"""`spanbert evaluate TASK`: the numbers of a fine-tuned model on data with gold answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError, SpanBertError, StorageError
from spanbert_ext.files import json_text, write_text
from spanbert_ext.tasks import html
from spanbert_ext.tasks.config import EvaluateConfig
from spanbert_ext.tasks.examples import check_ids, read_examples
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.training.progress import Progress, watched_by

Say = Callable[[dict[str, Any]], None]


def evaluate(
    config: EvaluateConfig, announce: Say | None = None, wrote: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Score a model and write what the settings ask for: the numbers, the predictions, the page and
    the picture. Where one cannot be written, the others are.

    Args:
        config: of `registry.settings_class(EvaluateConfig, TASK)`.
        announce: is given the result before any file is written.
        wrote: is given every file that was written.

    Returns:
        task, model, data, examples, rejected, seconds, and the task's numbers under "metrics".

    Raises:
        ConfigError, DataError, StorageError: the settings, the data or the model cannot be used; or
            a file cannot be written: then the error's `result` is what would have been returned.
    """
    config.validate()
    predictor = Predictor.of_settings(config)
    task = predictor.task
    submits = task.takes_test_sets and config.predictions is not None
    purpose = None if submits else "be scored"
    examples = read_examples(task, config.data, config.on_error, config.reject_limit, purpose)
    if config.predictions is not None and task.predictions_by_id:
        check_ids(examples)
    chosen = examples.all[: config.limit]
    if not chosen:
        raise DataError(f"{', '.join(config.data)}: there is nothing to evaluate")
    began = time.monotonic()
    predictions = _predictions(predictor, chosen)
    seconds = time.monotonic() - began
    result = {
        "task": task.name,
        "model": config.model,
        "data": list(config.data),
        "examples": len(chosen),
        "rejected": [reject.said for reject in examples.rejects],
        "seconds": round(seconds, 2),
        "metrics": task.score(chosen, predictions),
    }
    if announce is not None:
        announce(result)

    def write_metrics(path: Path) -> None:
        write_text(path, json_text(result, indent=1) + "\n")

    def write_page(path: Path) -> None:
        blocks = (task.marked(e, p) for e, p in zip(chosen, predictions, strict=True))
        files = ", ".join(Path(name).name for name in config.data)
        html.write_page(path, f"{task.name}: {files}, predicted by {config.model}", blocks)

    steps = (
        (config.metrics, write_metrics),
        (config.predictions, lambda path: task.write_predictions(path, chosen, predictions)),
        (config.html, write_page),
        (config.plot, lambda path: task.plot(path, chosen, predictions)),
    )
    _write([(Path(path), write) for path, write in steps if path is not None], result, wrote)
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
        for start in range(0, len(examples), predictor.chunk):
            predictions += predictor(examples[start : start + predictor.chunk])
            whole("evaluating", len(predictions), len(examples))
    return predictions


def _write(
    steps: list[tuple[Path, Callable[[Path], Any]]],
    result: dict[str, Any],
    wrote: Callable[[Path], None] | None,
) -> None:
    """Write every file that can be written; raise for the others at the end."""
    faults: list[SpanBertError] = []
    for path, write in steps:
        try:
            files = write(path) or [path]
        except SpanBertError as error:
            faults.append(error)
        except OSError as error:
            faults.append(StorageError(f"cannot write {path}: {error.strerror or error}"))
        except (ValueError, RuntimeError) as error:  # of drawing, which the others can do without
            faults.append(StorageError(f"cannot write {path}: {type(error).__name__}: {error}"))
        else:
            for file in files if wrote is not None else ():
                wrote(file)
    if faults:
        fault = type(faults[0])("; ".join(map(str, faults)))
        fault.result = result
        raise fault from faults[0]
