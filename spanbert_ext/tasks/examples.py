"""The files of a task as examples: whatever is lost on the way, or never was there, is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.files import new_digest
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.file_checks import same_files
from spanbert_ext.tasks.rejects import Reject, Rejects, as_lines
from spanbert_ext.tasks.task import DownstreamTask

logger = logging.getLogger("spanbert_ext")


@dataclass(frozen=True)
class Examples:
    """What some files hold.

    Args:
        all: their examples, one file after the other.
        files: of each example.
        rejects: records left out.
    """

    all: list[Any]
    files: list[str]
    rejects: list[Reject]


def read_examples(
    task: DownstreamTask,
    paths: Sequence[str],
    policy: Literal["error", "skip"],
    reject_limit: float,
    purpose: str | None,
) -> Examples:
    """Read files that train or measure a task.

    Args:
        policy, reject_limit: as for `Rejects`.
        purpose: what the gold answers are for, as "train"; None where a file may have none.

    Raises:
        DataError: as `DownstreamTask.read`, or there is no gold answer in a file.
    """
    examples: list[Any] = []
    files: list[str] = []
    found: list[Reject] = []
    for path in paths:
        rejects = Rejects(policy, reject_limit)
        own = task.read(path, rejects)
        if purpose is not None and not any(map(task.has_gold, own)):
            raise DataError(
                f"{path}: examples without a gold answer cannot {purpose}; {task.gold_hint}"
            )
        examples += own
        files += [path] * len(own)
        found += rejects.found
    return Examples(examples, files, found)


def check_ids(examples: Examples) -> None:
    """Refuse ids that occur twice, where a file is to have one line for each.

    Raises:
        DataError: names the id and the files.
    """
    seen: dict[str, str] = {}
    for example, path in zip(examples.all, examples.files, strict=True):
        if example.id in seen:
            where = {seen[example.id], path}
            places = f"twice in {path}" if len(where) == 1 else f"in {seen[example.id]} and {path}"
            raise DataError(
                f"the id {example.id!r} is {places}: a file of predictions has one line for each "
                "id, and one of the two would be lost. Evaluate the files one by one, or give the "
                "records ids of their own"
            )
        seen[example.id] = path


@dataclass(frozen=True)
class FinetuneData:
    """What was read before the run's directory is touched.

    Args:
        train, dev: examples.
        digest: of the files' bytes.
        rejects: JSON lines of records left out.
    """

    train: list[Any]
    dev: list[Any]
    digest: str
    rejects: str


def read_data(config: FinetuneConfig, task: DownstreamTask) -> FinetuneData:
    """Read the files of a run; the task learns its labels from the training files.

    Raises:
        DataError: as `read_examples`.
    """
    for one, other in same_files(config.dev, config.train):
        logger.warning(
            "dev %s is the training file %s: its scores say nothing about other text", other, one
        )
    digest, rejects = new_digest(), []

    def examples_of(paths: list[str], purpose: str) -> list[Any]:
        examples = read_examples(task, paths, config.on_error, config.reject_limit, purpose)
        rejects.extend(examples.rejects)
        for path in paths:
            digest.update(Path(path).read_bytes())
        return examples.all

    train = examples_of(config.train, "train")
    task.learn_labels(train)  # a label that only dev has is a fault of dev
    dev = examples_of(config.dev, "choose the best model (without --dev the last one counts)")
    return FinetuneData(train, dev, digest.hexdigest(), as_lines(rejects))


def draw_sample(data: FinetuneData, config: FinetuneConfig) -> FinetuneData:
    """The data with `train_limit` of its training examples, in their order."""
    if config.train_limit is None or config.train_limit >= len(data.train):
        return data
    draw = np.random.Generator(np.random.Philox(key=[config.seed, 1 << 32]))
    kept = sorted(draw.permutation(len(data.train))[: config.train_limit])
    return replace(data, train=[data.train[i] for i in kept])
