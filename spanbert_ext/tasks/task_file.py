"""`spanbert_task.json`: what a fine-tuned model's folder says about its task. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import spanbert_ext
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.files import json_text
from spanbert_ext.settings import build
from spanbert_ext.settings.stored import completed
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.task import DownstreamTask
from spanbert_ext.training import checkpoint

TASK_FILE = "spanbert_task.json"
BEST = "best"  # of a fine-tuning run: the folder of its best model
FORMAT = 1


def write_task(folder: Path, task: DownstreamTask) -> None:
    """Store a task's name, options and facts beside its model."""
    content = {
        "format": FORMAT,
        "version": spanbert_ext.__version__,
        "task": task.name,
        "options": build.as_flat_dict(task.options),
        "facts": task.facts,
    }
    (folder / TASK_FILE).write_text(json_text(content, indent=1) + "\n", "utf-8")


def model_folder(name: str | Path) -> Path:
    """Where the model of a name lies: the best model of a fine-tuning run, or its newest checkpoint
    where there is none yet; else the name itself.

    Raises:
        StorageError: none of a run's checkpoints is whole.
    """
    best = Path(name) / BEST
    return best if (best / TASK_FILE).is_file() else checkpoint.model_directory(Path(name))


def stored_beside(name: str) -> Mapping[str, Any] | None:
    """`read_task_file` of the folder that a name means: a directory, a run, an archive or a hub
    name.

    Raises:
        ConfigError, DataError, StorageError: as `models.open_model`.
    """
    folder = model_folder(name)
    if folder.is_dir():
        return read_task_file(folder)
    from spanbert_ext.tasks.models import open_model  # only here: it brings torch

    with open_model(name) as start:
        return read_task_file(start.folder)


def read_task_file(folder: Path) -> Mapping[str, Any] | None:
    """What `write_task` stored; None where there is no such file.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    path = folder / TASK_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise StorageError(
                f"{path} has format {content['format']}, this version reads {FORMAT}"
            )
        if not isinstance(content["options"], dict) or not isinstance(content["facts"], dict):
            raise ValueError("options and facts must be objects")
        if content["task"] not in registry.TASKS:
            raise ValueError(f"this version has no task {content['task']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    return content


def stored_options(stored: Mapping[str, Any]) -> Any:
    """The options that a model was trained with.

    Raises:
        StorageError: they are not those of this version.
    """
    try:
        entry = registry.entry_of(stored["task"])
        cls, section = entry.options_class(), f"{entry.section}."
        writer = stored.get("version")
        options = completed(stored["options"], cls, TASK_FILE, writer, section=section)
        return build.build(cls, options)
    except ConfigError as error:
        raise StorageError(f"{TASK_FILE}: {str(error).removeprefix(f'{TASK_FILE}: ')}") from error


def stored_task(
    stored: Mapping[str, Any], name: str | None = None, options: Any = None
) -> DownstreamTask:
    """The task of a model.

    Args:
        name: of the task that is wanted; one with the same settings and the same head can use the
            model too where it learns no labels, as squad and mrqa can use each other's.
        options: in place of the stored ones.

    Raises:
        ConfigError: the model is one of another task.
        StorageError: as `stored_options`.
    """
    trained = registry.entry_of(stored["task"])
    wanted = trained if name is None else registry.entry_of(name)
    options = stored_options(stored) if options is None else options
    task = None
    if wanted.section == trained.section:
        task = wanted.make(options, stored["facts"])
    if task is None or (wanted.name != trained.name and task.labels()):
        raise ConfigError(f"the model was fine-tuned for {trained.name}, not for {wanted.name}")
    return task
