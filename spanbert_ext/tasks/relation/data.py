"""Records with a pair of entities, as TACRED's files have them or as text with offsets.

TACRED: `{"id", "token": [...], "subj_start", "subj_end", "obj_start", "obj_end", "subj_type",
"obj_type", "relation"}`, spans in tokens with their end included; other columns are not looked at.

Text: `{"id", "text", "subject": [start, end], "object": [start, end], "subject_type",
"object_type", "relation"}`, spans in characters with their end excluded.

The two entities may overlap, even be the same words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError
from spanbert_ext.records import fields_of, read_json, shown_value
from spanbert_ext.tasks.forms import TACRED
from spanbert_ext.tasks.gold_fields import missing_gold

# What the Penn Treebank writes for brackets.
_BRACKETS = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
}
_KNOWN = (
    *("id", "docid", "token", "text", "subject", "object", "subject_type", "object_type"),
    *("subj_start", "subj_end", "obj_start", "obj_end", "subj_type", "obj_type"),
    *("stanford_pos", "stanford_ner", "stanford_head", "stanford_deprel"),
)
_VISIBLE = re.compile(r"\S+")
_MISSING = object()

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RelationExample:
    """A sentence with two entities.

    Args:
        id: of the record.
        tokens: words; of a text also the parts into which an entity's edge cuts a word.
        subject, object: tokens of the entities, end exclusive, never empty; they may overlap.
        subject_type, object_type: as PERSON; None where not given.
        relation: gold label; None where not known.
        raw: the text that the tokens were cut from; None where tokens were given.
        offsets: characters of each token in `raw`, end exclusive; empty where tokens were given.
    """

    id: str
    tokens: tuple[str, ...]
    subject: Span
    object: Span
    subject_type: str | None = None
    object_type: str | None = None
    relation: str | None = None
    raw: str | None = None
    offsets: tuple[Span, ...] = ()

    @property
    def text(self) -> str:
        """The text; given tokens are joined by blanks."""
        return " ".join(self.tokens) if self.raw is None else self.raw

    def characters(self, span: Span) -> Span:
        """The stretch of `text` that some tokens cover, end exclusive."""
        first, stop = span
        if self.raw is not None:
            return self.offsets[first][0], self.offsets[stop - 1][1]
        start = sum(map(len, self.tokens[:first])) + first
        return start, start + len(" ".join(self.tokens[first:stop]))


def load_records(path: str | Path) -> list[Any]:
    """The records of a TACRED file: one JSON list.

    Raises:
        DataError: the file cannot be read, is not JSON or holds something else.
    """
    records = read_json(path, f"a JSON list of records, {TACRED}")
    if not isinstance(records, list):
        raise DataError(
            f"{path}: expected a JSON list of records, {TACRED}; found {shown_value(records)}"
        )
    return records


def identifier(record: Any, otherwise: str) -> str:
    """The record's id; `otherwise` where it has none."""
    own = record.get("id") if isinstance(record, dict) else None
    usable = isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip()
    # One line of a prediction file belongs to one id, so it has no line break or tab.
    return " ".join(str(own).split()) if usable else otherwise


def example_of(record: Any, id: str, needs_types: bool, needs_relation: bool) -> RelationExample:
    """The example of a record in either form.

    Args:
        id: that the example gets.
        needs_types: records without the entities' types cannot be used.
        needs_relation: records without a gold label cannot be used.

    Raises:
        DataError: the record cannot be used. The message says why, not where.
    """
    if not isinstance(record, dict):
        raise DataError(f"expected an object with fields, found {_kind(record)}")
    if "token" not in record and "text" not in record:
        raise DataError(
            "expected the field token (and subj_start, subj_end, obj_start, obj_end) or text (and "
            f"subject, object); there are {fields_of(record)}"
        )
    if "token" in record:
        placed, types = _of_tokens(record), ("subj_type", "obj_type")
    else:
        placed, types = _of_text(record), ("subject_type", "object_type")
    if needs_relation and record.get("relation") is None:
        raise DataError(missing_gold(record, "relation", '"relation": "born_in"', _KNOWN))
    subject_type, object_type = (_name(record, field, needs_types) for field in types)
    return RelationExample(
        id=id,
        subject_type=subject_type,
        object_type=object_type,
        relation=_name(record, "relation", needs_relation),
        **placed,
    )


def excerpt_of(record: Any) -> str:
    """The start of a record's sentence, for messages."""
    if not isinstance(record, dict):
        return str(record)
    words = record.get("token", record.get("text", ""))
    return " ".join(map(str, words[:20])) if isinstance(words, list) else str(words)


def _of_tokens(record: dict[str, Any]) -> dict[str, Any]:
    tokens = _field(record, "token")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"token: expected a list of strings, found {_kind(tokens)}")
    if not tokens:
        raise DataError("token: the list is empty")
    return {
        "tokens": tuple(_BRACKETS.get(token.upper(), token) for token in tokens),
        "subject": _token_span(record, "subj", len(tokens)),
        "object": _token_span(record, "obj", len(tokens)),
    }


def _token_span(record: dict[str, Any], role: str, count: int) -> Span:
    fields = f"{role}_start", f"{role}_end"
    values = [_field(record, field) for field in fields]
    for field, value in zip(fields, values, strict=True):
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{field}: expected a token's number, found {_kind(value)}")
        if not 0 <= value < count:
            raise DataError(f"{field}: {value} lies outside the {count} tokens, counted from 0")
    first, last = values
    if last < first:
        raise DataError(
            f"{fields[1]}: {last} comes before {fields[0]} {first}; the end is included"
        )
    return first, last + 1


def _of_text(record: dict[str, Any]) -> dict[str, Any]:
    text = record["text"]
    if not isinstance(text, str):
        raise DataError(f"text: expected a string, found {_kind(text)}")
    spans = [_character_span(record, field, text) for field in ("subject", "object")]
    offsets = _words(text, sorted({edge for span in spans for edge in span}))
    starts = {start: place for place, (start, _) in enumerate(offsets)}
    ends = {end: place + 1 for place, (_, end) in enumerate(offsets)}
    subject, object = ((starts[start], ends[end]) for start, end in spans)
    return {
        "tokens": tuple(text[start:end] for start, end in offsets),
        "subject": subject,
        "object": object,
        "raw": text,
        "offsets": tuple(offsets),
    }


def _character_span(record: dict[str, Any], field: str, text: str) -> Span:
    """The characters of an entity, without white space at its ends."""
    span = _field(record, field)
    whole = isinstance(span, (list, tuple)) and len(span) == 2
    if not whole or not all(isinstance(v, int) and not isinstance(v, bool) for v in span):
        raise DataError(
            f"{field}: expected [start, end] in characters, end excluded, found {span!r:.40}"
        )
    start, end = span
    if not 0 <= start <= end <= len(text):
        raise DataError(
            f"{field}: [{start}, {end}] is no stretch of the text, which has {len(text)} characters"
        )
    covered = text[start:end]
    if not covered.strip():
        raise DataError(f"{field}: [{start}, {end}] covers no visible character")
    return start + len(covered) - len(covered.lstrip()), start + len(covered.rstrip())


def _words(text: str, edges: list[int]) -> list[Span]:
    """Stretches without white space, cut also at the edges, which are ascending."""
    found, next_edge = [], 0
    for word in _VISIBLE.finditer(text):
        start, end = word.span()
        while next_edge < len(edges) and edges[next_edge] < end:
            edge = edges[next_edge]
            next_edge += 1
            if start < edge:
                found.append((start, edge))
                start = edge
        found.append((start, end))
    return found


def _field(record: dict[str, Any], field: str) -> Any:
    value = record.get(field, _MISSING)
    if value is _MISSING:
        raise DataError(f"the field {field} is missing; there are {fields_of(record)}")
    return value


def _name(record: dict[str, Any], field: str, needed: bool) -> str | None:
    value = _field(record, field) if needed else record.get(field)
    if value is None and not needed:
        return None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{field}: expected a name, found {value!r:.40}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"{value!r:.40}")
