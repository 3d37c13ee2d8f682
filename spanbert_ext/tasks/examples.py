"""The files of a task as examples: whatever is lost on the way, or never was there, is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.rejects import Reject, Rejects
from spanbert_ext.tasks.task import DownstreamTask


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
