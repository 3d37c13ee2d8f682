"""Gold answers that stand under another name: seen and told, never read as "there are none"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from spanbert_ext.records import fields_of

# What other formats and tools call the gold answers of a field.
_OTHER_NAMES = {
    "clusters": (
        "mention_clusters",
        "coref_clusters",
        "corefs",
        "coref",
        "coreference",
        "coreferences",
        "coref_chains",
        "chains",
        "entities",
        "mentions",
    ),
    "answers": ("answer", "gold_answers", "detected_answers", "golds", "labels", "targets"),
    "relation": ("label", "rel", "relations", "relation_type", "predicate", "labels", "class"),
    "label": (
        "labels",
        "gold",
        "gold_label",
        "target",
        "class",
        "category",
        "sentiment",
        "answer",
        "score",
        "rating",
        "y",
        "quality",
        "is_duplicate",
        "similarity",
    ),
}


def gold_elsewhere(
    record: Mapping[str, Any] | Collection[str], wanted: str, known: Collection[str]
) -> str:
    """The field that seems to hold the gold answers of a record whose own field is missing or
    empty; "" if none does.

    Args:
        record: fields with their values, or the names of a table's columns.
        wanted: the field.
        known: other fields that the reader knows.
    """
    if isinstance(record, Mapping) and record.get(wanted):
        return ""
    others = [name for name in record if name != wanted and name not in known]
    named = [name for name in others if str(name).strip().lower() in _OTHER_NAMES[wanted]]
    if isinstance(record, Mapping):
        named = [name for name in named if record[name] not in (None, "", [], {})]
        # A list that nobody knows, where one of gold answers is missing.
        if wanted not in record:
            named += [name for name in others if isinstance(record[name], list) and record[name]]
    return str(named[0]) if named else ""


def missing_gold(
    record: Mapping[str, Any], wanted: str, form: str, known: Collection[str] = ()
) -> str:
    """What to say of a record without its gold answers: what is there, what would be read.

    Args:
        wanted, known: as for `gold_elsewhere`.
        form: an example of the field.
    """
    found = gold_elsewhere(record, wanted, known)
    hint = f", is it {found[:40]!r}?" if found else ""
    return f"no field {wanted!r}{hint}; fields there: {fields_of(record)}. Expected {form}"
