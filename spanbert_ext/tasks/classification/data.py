"""The tab-separated files of GLUE. A quotation mark is a character like any other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError
from spanbert_ext.records import UnreadableLine, fields_of, read_lines, without_empty_end
from spanbert_ext.tasks.classification.layouts import HIGHEST, ID_NAMES, LOWEST, Layout
from spanbert_ext.tasks.gold_fields import gold_elsewhere
from spanbert_ext.tasks.rejects import Rejects

logger = logging.getLogger("spanbert_ext")


@dataclass(frozen=True, slots=True)
class GlueExample:
    """A sentence or a pair.

    Args:
        id: what the file's index column says, or the number of the line.
        texts: one or two.
        gold: label, or score; None where it is not known.
    """

    id: str
    texts: tuple[str, ...]
    gold: str | float | None = None


@dataclass(frozen=True)
class Columns:
    """Where in a line things stand.

    Args:
        texts: places of the text or of the two.
        label, id: places; None where the file has none.
        names: of the header; a number without a header.
    """

    texts: tuple[int, ...]
    label: int | None
    id: int | None
    names: tuple[str, ...]


class _Fault(ValueError):
    """A record that cannot be used: the reason, and the start of what is wrong."""

    def __init__(self, reason: str, excerpt: str = ""):
        super().__init__(reason)
        self.reason, self.excerpt = reason, excerpt


def read_file(path: str | Path, layout: Layout, rejects: Rejects) -> list[GlueExample]:
    """The examples of a file, in its order; blank lines are passed over.

    Args:
        rejects: told of lines that are not UTF-8, have too few or too many columns, an unknown
            label or an impossible score, and where there are labels of those with an empty text.

    Raises:
        DataError: it cannot be read, or its header does not name the texts; what `rejects` raises.
    """
    path = Path(path)
    examples: list[GlueExample] = []
    columns = None
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        if columns is None:
            # Where the first line is data, what is wrong with it is found below.
            first = (line if isinstance(line, str) else line.excerpt).split("\t")
            first = without_empty_end(first, 1)
            columns = _columns(first, layout, f"{path}:{number}")
            if columns.label is None:
                named = " or ".join(layout.label)
                if other := gold_elsewhere(columns.names, "label", layout.label):
                    raise DataError(
                        f"{path}:{number}: no column {named}, is it {other[:40]!r}? Columns there: "
                        f"{fields_of(columns.names)}. Expected {layout.form()}"
                    )
                logger.warning("%s: no column %s, so there is nothing to score", path, named)
            if columns.names:
                continue
        id = str(number)
        try:
            fields = _fields(line, columns, layout)
            id = id if columns.id is None else fields[columns.id].strip() or id
            texts = tuple(fields[place] for place in columns.texts)
            if columns.label is not None:  # of a test set every line must be answered
                texts = tuple(map(_text, texts))
            gold = None if columns.label is None else gold_of(fields[columns.label], layout)
        except _Fault as fault:
            rejects.add(id, f"{path}:{number}", fault.reason, fault.excerpt)
        else:
            examples.append(GlueExample(id, texts, gold))
    rejects.check(path, len(examples))
    return examples


def _columns(first: Sequence[str], layout: Layout, where: str) -> Columns:
    """From a file's first line."""
    names = [name.strip().lower() for name in first]
    texts = next((t for t in layout.texts if set(t) <= set(names)), None)
    if texts is not None:
        label = next((names.index(name) for name in layout.label if name in names), None)
        id = next((names.index(name) for name in ID_NAMES if name in names), None)
        return Columns(tuple(names.index(name) for name in texts), label, id, tuple(names))
    if layout.bare and len(first) == layout.bare[2]:
        return Columns(layout.bare[:1], layout.bare[1], None, ())
    wanted = " or ".join(" and ".join(t) for t in layout.texts)
    without = f", and it has not the {layout.bare[2]} columns without one" if layout.bare else ""
    shown = ", ".join(map(repr, first[:8])) + (", ..." if len(first) > 8 else "")
    raise DataError(
        f"{where}: the header names no columns {wanted}{without}; it is {shown[:200]}. Expected "
        f"columns parted by tabs, under a header such as {layout.form()}"
    )


def _fields(line: str | UnreadableLine, columns: Columns, layout: Layout) -> list[str]:
    if isinstance(line, UnreadableLine):
        raise _Fault(line.reason, line.excerpt)
    count = len(columns.names) or layout.bare[2]
    fields = without_empty_end(line.split("\t"), count)
    if len(fields) < count:
        missing = columns.names[len(fields)] if columns.names else f"number {len(fields) + 1}"
        raise _Fault(
            f"{len(fields)} columns where {count} are expected, column {missing} is missing",
            line,
        )
    if len(fields) > count:
        raise _Fault(
            f"{len(fields)} columns where {count} are expected: is there a tab in a text?",
            line,
        )
    return fields


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise _Fault("the text is not a string", repr(text))
    if not text.strip():
        raise _Fault("the text is empty", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can state it; no tokenizer takes it.
        raise _Fault(f"half a surrogate pair at character {error.start} of the text") from None
    return text


def gold_of(value: Any, layout: Layout) -> str | float:
    """The label or the score that a file or a record states.

    Raises:
        ValueError: it is none of this task.
    """
    if layout.labels:
        label = str(value).strip()  # JSON has numbers where files have digits
        if label not in layout.labels:
            known = ", ".join(layout.labels)
            raise _Fault(f"unknown label; known are {known}", label)
        return label
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not LOWEST <= score <= HIGHEST:
        raise _Fault(f"the score is no number from {LOWEST:g} to {HIGHEST:g}", str(value))
    return score


def parse_record(record: dict[str, Any], layout: Layout, where: str) -> GlueExample:
    """The example of a JSON record: its texts by any of the names of the task's files, and if it
    likes an id and a gold label.

    Raises:
        DataError: a text is missing or empty, or the label is none of this task.
    """
    texts = next((t for t in layout.texts if all(record.get(n) is not None for n in t)), None)
    if texts is None:
        wanted = " or ".join(" and ".join(t) for t in layout.texts)
        has = ", ".join(map(repr, list(record)[:8])) or "nothing"
        raise DataError(f"{where}: the record needs {wanted}; it has {has}")
    gold = next((record[name] for name in layout.label if record.get(name) is not None), None)
    id = next((record[name] for name in ID_NAMES if record.get(name) is not None), where)
    try:
        return GlueExample(
            str(id),
            tuple(_text(record[name]) for name in texts),
            None if gold is None else gold_of(gold, layout),
        )
    except _Fault as fault:
        shown = f" ({fault.excerpt[:80]!r})" if fault.excerpt else ""
        raise DataError(f"{where}: {fault.reason}{shown}") from None
