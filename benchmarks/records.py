"""Rows of the CSV files: what they hold, how they are written and read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.harness import Case, Timing

COLUMNS = (
    "op", "variant", "shapes", "size", "size_unit", "dtype", "cache", "median_us", "p20_us",
    "p80_us", "samples", "floor_us", "extra_mb", "rel_error", "threads", "device", "hardware",
    "driver", "cuda", "torch", "python", "backend", "package", "commit", "date", "command", "note",
)  # fmt: skip


def rows_of(case: Case, timings: Sequence[Timing]) -> list[dict[str, str]]:
    """One CSV row per variant."""
    rows = []
    for variant, timing in zip(case.variants, timings, strict=True):
        shared = environment.describe(case.device)
        row = {
            "op": case.op,
            "variant": variant.name,
            "shapes": " ".join(f"{name}={size}" for name, size in case.shapes.items()),
            "size": case.size,
            "size_unit": case.size_unit,
            "dtype": case.dtype,
            "cache": variant.cache,
            "median_us": timing.quantile_us(0.5),
            "p20_us": timing.quantile_us(0.2),
            "p80_us": timing.quantile_us(0.8),
            "samples": len(timing.seconds),
            "floor_us": case.floor_us,
            "extra_mb": None if timing.extra_bytes is None else timing.extra_bytes / 2**20,
            "rel_error": timing.rel_error,
            "threads": case.threads or torch.get_num_threads(),
            "note": timing.fault or variant.note,
        }
        rows.append({name: as_text(value) for name, value in (shared | row).items()})
    return rows


def as_text(value: object) -> str:
    """A cell of the file: nothing for None, six digits of a float."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def append(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS) -> None:
    """Append rows to a CSV file, which gets its header when it is new.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() or path.stat().st_size == 0
    if not is_new:
        with path.open(newline="") as file:
            header = tuple(next(csv.reader(file)))
        if header != tuple(columns):
            raise ValueError(f"{path} has other columns than this version writes; move it away")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_measured(folder: Path) -> list[dict[str, str]]:
    """All rows of the files of a folder that hold measurements; tables of other columns stand
    beside them."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        rows = read(path)
        if rows and set(COLUMNS) <= rows[0].keys():
            found += rows
    return found
