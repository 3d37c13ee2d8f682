"""Whether the files that settings name can be read and written without losing one. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

_FEW = 5  # names of a folder, in a message


def no_files(name: str, paths: list[str], required: bool = False) -> list[str]:
    """A line for every file of a setting that is not there, or there twice however it is spelt."""
    if required and not paths:
        return [f"{name}: a file is required"]
    # os.path: a name that no file can have is a file that is not there, and no exception.
    faults = [f"{name}: {path}: {_why_no_file(path)}" for path in paths if not isfile(path)]
    return faults + [
        f"{name}: {one} and {other} are the same file; name it once"
        for one, other in same_files(paths, paths)
    ]


def _why_no_file(path: str) -> str:
    if not isdir(path):
        return "there is no such file"
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    shown = ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" * (len(names) > _FEW))
    return f"is a folder; name files of it ({shown or 'it is empty'})"


def outputs(config: Any, names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """A line for every file to write that is a folder, or another file of the command."""
    faults, seen = [], {}
    others = {Path(path).resolve() for path in inputs}
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        path = Path(value).resolve()
        if path.is_dir():
            faults.append(f"{name}: {value} is a folder; name a file to write")
        elif path in others:
            faults.append(f"{name}: {value} is a file of this command already; name another one")
        elif path in seen and (path.is_file() or not path.exists()):
            faults.append(f"{name}: {value} is the file of {seen[path]} too; name another one")
        seen[path] = name
    return faults


def same_files(paths: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a path and another one that mean the same file, however they are spelt.

    Args:
        paths, others: files; the same list finds what it names twice.
    """
    found, same = [], paths is others
    keys = [_identity(path) for path in others]
    for place, path in enumerate(paths):
        mine = _identity(path)
        end = place if same else len(keys)
        found += [(others[n], path) for n in range(end) if mine is not None and keys[n] == mine]
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
