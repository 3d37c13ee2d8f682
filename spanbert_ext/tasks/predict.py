"""`spanbert predict TASK IN OUT`: one line for every record, in order, whatever happens between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spanbert_ext.data.storage import new_digest
from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.records import UnreadableLine, read_objects
from spanbert_ext.tasks.config import PredictConfig
from spanbert_ext.tasks.marked_text import MarkedText
from spanbert_ext.tasks.predict_files import OutputFiles
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.tasks.task_file import model_folder
from spanbert_ext.training.checkpoint import digest_file, fail_point, json_text
from spanbert_ext.training.settings import as_flat_dict

CHUNK = 256  # records


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
        StorageError: a file cannot be read or written.
    """
    config.validate()
    began = time.monotonic()
    records, output = map(Path, config.files)
    page = None if config.html is None else Path(config.html)
    try:
        with OutputFiles(output, page, CHUNK) as files:
            identity = _identity(config)
            if files.are_finished(identity, config.overwrite):
                lines = sum(1 for _ in output.open("rb"))
                return PredictResult(lines, lines, 0, time.monotonic() - began, was_finished=True)
            done, total, unusable = _predict_rest(config, records, files)
            files.finish(f"{config.task_name}: {records.name}")
    except OSError as error:
        where = getattr(error, "filename", None) or output
        raise StorageError(f"{where}: {error.strerror or error}") from error
    return PredictResult(total, done, unusable, time.monotonic() - began, was_finished=False)


def _predict_rest(config: PredictConfig, records: Path, files: OutputFiles) -> tuple[int, int, int]:
    """Add the lines that are not there yet: (there before, there now, unusable among the new)"""
    predictor = Predictor.of_settings(config)
    done = files.resume()
    total, unusable = done, 0
    numbered = _records(records)
    for _ in islice(numbered, done):
        pass
    with tqdm(unit=" records", initial=done, disable=None) as bar:
        while chunk := list(islice(numbered, CHUNK)):
            lines, marks, faults = _predict_chunk(predictor, chunk, config.on_error)
            files.append(lines, marks)
            fail_point("after_chunk")
            total, unusable = total + len(lines), unusable + faults
            bar.update(len(lines))
    return done, total, unusable


def _predict_chunk(
    predictor: Predictor, chunk: list[tuple[str, Any]], policy: str
) -> tuple[list[str], list[MarkedText], int]:
    """(lines, blocks of the page, records that could not be used)"""
    task = predictor.task
    examples, faults = {}, {}
    for place, (where, record) in enumerate(chunk):
        try:
            if isinstance(record, DataError):
                raise record
            examples[place] = task.parse(record, where)
        except DataError as error:
            reason = str(error) if where in str(error) else f"{where}: {error}"
            if policy == "error":
                raise DataError(
                    f"{reason}. Mend it, or have a reason in its place with --on_error skip"
                ) from error
            name = record.get("id", where) if isinstance(record, dict) else where
            faults[place] = {"id": name, "error": reason}
    found = dict(zip(examples, predictor(list(examples.values())), strict=True))
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


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, object) of every line that is not blank; in place of what is no object a
    DataError."""
    for number, record in read_objects(path):
        where = f"{path.name}:{number}"
        unreadable = isinstance(record, UnreadableLine)
        yield where, DataError(f"{where}: {record.reason}") if unreadable else record


def _identity(config: PredictConfig) -> dict[str, Any]:
    """What the bytes of the output depend on."""
    digest = new_digest()
    folder = model_folder(config.model)
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.is_file():
            digest.update(f"{file.name} {digest_file(file)}".encode())
    own = as_flat_dict(config)
    for name in ("files", "html", "overwrite", "device"):
        own.pop(name)
    return {
        "task": config.task_name,
        "model": digest.hexdigest(),
        "records": digest_file(Path(config.files[0])),
        "settings": own,
        "html": config.html is not None,
    }
