"""A text with labelled spans, as the HTML page shows it. Nothing but data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mark:
    """A labelled stretch of a text.

    Args:
        start, end: characters, end exclusive.
        label: shown beside it: an entity type, "answer", a cluster's number.
        group: marks of one group have one colour; default the label.
        note: shown when the pointer rests on it (a score).
    """

    start: int
    end: int
    label: str
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class MarkedText:
    """One block of the page.

    Args:
        title: a line above the text, as a question or an id.
        text: whole; shown as it is, escaped.
        marks: may nest and may overlap.
        facts: name and value pairs below it.
        names: (group, what it stands for) of groups that are this text's own, as clusters are; the
            page's legend leaves them out.
    """

    title: str
    text: str
    marks: tuple[Mark, ...] = ()
    facts: tuple[tuple[str, str], ...] = field(default=())
    names: tuple[tuple[str, str], ...] = field(default=())
