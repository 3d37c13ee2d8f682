"""`spanbert predict TASK IN OUT`: one line for every record, in order, whatever happens between.

Lines go to `OUT.part`, a chunk at a time; when all are there the file takes its name. A hidden file
beside it says which model, records and settings they are of. A command that was killed goes on
after the last whole chunk: chunks are cut at the same records every time, so that the bytes are
those of a run that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spanbert_ext.data.storage import new_digest
from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.tasks import html
from spanbert_ext.tasks.config import PredictConfig
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.tasks.task_file import model_folder
from spanbert_ext.training.checkpoint import digest_file, fail_point, write_text
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
    files = _OutputFiles(output, config.html is not None)
    try:
        identity = _identity(config)
        state = files.begin(identity, config.overwrite)
        if state == "finished":
            lines = sum(1 for _ in output.open("rb"))
            return PredictResult(lines, lines, 0, time.monotonic() - began, was_finished=True)
        predictor = Predictor.load(
            config.model,
            config.device,
            config.precision,
            options=config.task_options,
            task_name=config.task_name,
        )
        predictor.batch_tokens = config.batch_tokens
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
        if config.html is not None:
            title = f"{config.task_name}: {records.name}"
            html.write_page(Path(config.html), title, files.marked_texts())
        files.finish(identity)
    except OSError as error:
        where = getattr(error, "filename", None) or output
        raise StorageError(f"{where}: {error.strerror or error}") from error
    return PredictResult(total, done, unusable, time.monotonic() - began, was_finished=False)


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
            if policy == "error":
                raise DataError(
                    f"{error}. Mend it, or have a reason in its place with --on_error skip"
                ) from error
            name = record.get("id", where) if isinstance(record, dict) else where
            faults[place] = {"id": name, "error": str(error)}
    found = dict(zip(examples, predictor(list(examples.values())), strict=True))
    lines, marks = [], []
    for place in range(len(chunk)):
        if place in faults:
            lines.append(_json(faults[place]))
            marks.append(MarkedText(str(faults[place]["id"]), "", facts=(("error", "unusable"),)))
        else:
            example = examples[place]
            lines.append(_json({"id": example.id} | task.as_json(example, found[place])))
            marks.append(task.marked(example, found[place]))
    return lines, marks, len(faults)


def _json(value: dict[str, Any]) -> str:
    # Lone surrogates, which JSON can carry and UTF-8 cannot, stay escaped.
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, object) of every line that is not blank; in place of what is no object a
    DataError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield where, DataError(f"{where}: not a JSON object in UTF-8: {error}")
                continue
            if not isinstance(record, dict):
                yield where, DataError(f"{where}: expected a JSON object")
                continue
            yield where, record


def _identity(config: PredictConfig) -> dict[str, Any]:
    """What the bytes of the output depend on."""
    digest = new_digest()
    folder = model_folder(config.model)
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.suffix in (".json", ".txt"):
            digest.update(file.read_bytes())
        elif file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}".encode())
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


class _OutputFiles:
    """The lines that are there, the blocks of the page, and what they belong to.

    Args:
        output: the file to be written.
        with_marks: keep blocks of a page too.
    """

    def __init__(self, output: Path, with_marks: bool):
        self._output = output
        self._part = output.with_name(output.name + ".part")
        self._marks = output.with_name(f".{output.name}.marks") if with_marks else None
        self._state = output.with_name(f".{output.name}.state")

    def begin(self, identity: dict[str, Any], overwrite: bool) -> str:
        """`finished`, or `open`: then `resume` says how many lines there are.

        Raises:
            ConfigError: the files belong to another command.
        """
        stored = self._read_state()
        same = stored is not None and stored["identity"] == identity
        if same and stored["finished"] and self._output.is_file() and not overwrite:
            return "finished"
        there = [p for p in (self._output, self._part) if p.exists()]
        unfinished = same and not stored["finished"]
        if there and not overwrite and not unfinished:
            raise ConfigError(
                f"{there[0]} is there already, of another model, other records or other settings; "
                "name another file, or give --overwrite true"
            )
        if not unfinished or overwrite:
            for path in (self._output, self._part, self._marks):
                if path is not None:
                    path.unlink(missing_ok=True)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._state, _json({"identity": identity, "finished": False}))
        return "open"

    def resume(self) -> int:
        """Cut the files after the last whole chunk; the number of records there."""
        parts = [self._part] if self._marks is None else [self._part, self._marks]
        lines = min(_whole_lines(part) for part in parts)
        kept = lines - lines % CHUNK
        for part in parts:
            _keep_lines(part, kept)
        return kept

    def append(self, lines: list[str], marks: list[MarkedText]) -> None:
        """Add a chunk, durably."""
        _append(self._part, "".join(line + "\n" for line in lines))
        if self._marks is not None:
            rows = (_json(dataclasses.asdict(block)) + "\n" for block in marks)
            _append(self._marks, "".join(rows))

    def marked_texts(self) -> Iterator[MarkedText]:
        """The blocks of all chunks."""
        if not self._marks.exists():
            return
        with self._marks.open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                marks = tuple(Mark(**mark) for mark in fields.pop("marks"))
                facts = tuple((name, value) for name, value in fields.pop("facts"))
                yield MarkedText(**fields, marks=marks, facts=facts)

    def finish(self, identity: dict[str, Any]) -> None:
        """All lines are there."""
        if not self._part.exists():  # no record at all
            _append(self._part, "")
        os.replace(self._part, self._output)
        write_text(self._state, _json({"identity": identity, "finished": True}))
        if self._marks is not None:
            self._marks.unlink(missing_ok=True)

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state.read_text("utf-8"))
            return {"identity": state["identity"], "finished": bool(state["finished"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _keep_lines(path: Path, lines: int) -> None:
    """Cut a file after its first `lines` lines."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        for _ in range(lines):
            file.readline()
        file.truncate(file.tell())
