"""`spanbert predict TASK IN OUT`: one line for every record, in order, whatever happens between."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spanbert_ext.errors import (
    ConfigError,
    DataError,
    NumericsError,
    SpanBertError,
    StorageError,
)
from spanbert_ext.files import digest_file, json_text, new_digest
from spanbert_ext.settings.build import as_flat_dict, options
from spanbert_ext.settings.stored import completed
from spanbert_ext.tasks.config import PredictConfig
from spanbert_ext.tasks.marked_text import MarkedText
from spanbert_ext.tasks.predict_files import OutputFiles
from spanbert_ext.tasks.predict_records import Item, chunks, items_of
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.tasks.task_file import model_folder
from spanbert_ext.training.checkpoint import fail_point
from spanbert_ext.training.progress import Progress, watched_by

_NO_IDENTITY = ("files", "html", "overwrite", "device")  # settings that change no prediction
# What is computed and kept together: so many records, and of long ones so many bytes for each token
# that is computed at a time. A text that is longer is a chunk of its own.
CHUNK = 256
_BYTES_PER_BATCH_TOKEN = 8


@dataclass(frozen=True)
class PredictResult:
    """What a command has done.

    Args:
        records: lines of the output.
        resumed: of them, written by an earlier command.
        unusable: records with a reason in place of a prediction, in this command.
        seconds: of this command.
        was_finished: nothing was left to do.
    """

    records: int
    resumed: int
    unusable: int
    seconds: float
    was_finished: bool


def predict(config: PredictConfig) -> PredictResult:
    """Predict for the records of a file, or go on with it.

    Args:
        config: of `registry.settings_class(PredictConfig, TASK)`.

    Raises:
        ConfigError: settings that are impossible, or the output belongs to another command.
        DataError: a record cannot be used, with the policy `error`.
        NumericsError: the model's outputs for one are not finite, with the policy `error`.
        StorageError: a file cannot be read or written.
    """
    config.validate()
    began = time.monotonic()
    records, output = map(Path, config.files)
    page = None if config.html is None else Path(config.html)
    try:
        with OutputFiles(output, page) as files:
            identity = _identity(config)
            if files.are_finished(identity, config.overwrite, partial(_completed, type(config))):
                lines = sum(1 for _ in output.open("rb"))
                return PredictResult(lines, lines, 0, time.monotonic() - began, was_finished=True)
            try:
                done, total, unusable = _predict_rest(config, records, files)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_what_is_kept(files, output)) from None
            files.finish(f"{config.task_name}: {records.name}")
    except OSError as error:
        where = getattr(error, "filename", None) or output
        raise StorageError(f"{where}: {error.strerror or error}") from error
    return PredictResult(total, done, unusable, time.monotonic() - began, was_finished=False)


def _predict_rest(config: PredictConfig, records: Path, files: OutputFiles) -> tuple[int, int, int]:
    """Add the lines that are not there yet: (there before, there now, unusable among the new)"""
    predictor = Predictor.of_settings(config)
    there, size, doing = files.count_lines(), records.stat().st_size, f"predicting {records.name}"
    kept = added = unusable = position = 0
    items = items_of(records, predictor.task)
    with (
        Progress(stream="stderr") as whole,
        Progress(unit="", stream="stderr", passing=True) as inside,
    ):
        for chunk in chunks(items, CHUNK, _BYTES_PER_BATCH_TOKEN * config.batch_tokens):
            if not added and kept + len(chunk) <= there:
                kept, position = kept + len(chunk), chunk[-1].end
                continue
            if not added:
                files.keep_lines(kept)
                whole(doing, min(position, size), size)  # a packed file holds more than its size
            shown = chunk[0].where + (f" to {chunk[-1].where}" if len(chunk) > 1 else "")
            with watched_by(lambda part, *far, of=shown: inside(f"{of}: {part}", *far)):
                lines, marks, faults = _predict_chunk(predictor, chunk, config.on_error)
            inside.close()
            files.append(lines, marks)
            fail_point("after_chunk")
            added, unusable = added + len(lines), unusable + faults
            whole(doing, min(chunk[-1].end, size), size)
    files.keep_lines(kept + added)
    return kept, kept + added, unusable


def _what_is_kept(files: OutputFiles, output: Path) -> str:
    kept = files.count_lines()
    if not kept:
        return "no prediction was finished; the same command begins anew"
    return f"{kept} predictions are kept for {output}; the same command goes on behind them"


def _predict_chunk(
    predictor: Predictor, chunk: list[Item], policy: str
) -> tuple[list[str], list[MarkedText], int]:
    """(lines, blocks of the page, records that could not be used)"""
    task = predictor.task
    examples, faults = {}, {}
    for place, item in enumerate(chunk):
        where, record = item.where, item.record
        try:
            if isinstance(record, DataError):
                raise record
            examples[place] = task.parse(record, where)
        except DataError as error:
            faults[place] = _fault(item, error, policy, ". Mend it,")
    found = {}
    attempts = predictor.attempts(iter(examples.values()))
    for place, (_, prediction) in zip(examples, attempts, strict=True):
        found[place] = prediction
        if isinstance(prediction, NumericsError):
            faults[place] = _fault(chunk[place], prediction, policy, ",")
    lines, marks = [], []
    for place in range(len(chunk)):
        if place in faults:
            lines.append(json_text(faults[place]))
            marks.append(MarkedText(str(faults[place]["id"]), "", facts=(("error", "unusable"),)))
        else:
            example = examples[place]
            lines.append(json_text({"id": example.id} | task.as_json(example, found[place])))
            marks.append(task.marked(example, found[place]))
    return lines, marks, len(faults)


def _fault(item: Item, error: SpanBertError, policy: str, remedy: str) -> dict[str, Any]:
    """The line in place of a prediction; raises with the policy `error`."""
    reason = str(error) if item.where in str(error) else f"{item.where}: {error}"
    if policy == "error":
        advice = f"{remedy} or have a reason in its place with --on_error skip"
        raise type(error)(f"{reason}{advice}") from error
    name = item.record.get("id", item.where) if isinstance(item.record, dict) else item.where
    return {"id": name, "error": reason}


def _completed(cls: type, stored: dict[str, Any]) -> dict[str, Any]:
    """The identity that an earlier version stored, with the settings that are younger."""
    names = [option.name for option in options(cls) if option.name not in _NO_IDENTITY]
    try:
        settings = completed(stored.get("settings", {}), cls, "settings", wanted=names)
    except (ConfigError, AttributeError):  # of a later version, or none: another identity
        return stored
    return stored | {"settings": settings}


def _identity(config: PredictConfig) -> dict[str, Any]:
    """What the bytes of the output depend on."""
    digest = new_digest()
    folder = model_folder(config.model)
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.is_file():
            digest.update(f"{file.name} {digest_file(file)}".encode())
    own = as_flat_dict(config)
    for name in _NO_IDENTITY:
        own.pop(name)
    return {
        "task": config.task_name,
        "model": digest.hexdigest(),
        "records": digest_file(Path(config.files[0])),
        "settings": own,
        "html": config.html is not None,
    }
