"""The head that lies beside an encoder to fine-tune: whether it is one of this task, and which of
its rows is which label.

Rows are taken by the labels' names, in any case of letters. With other names the head is new.
`LABEL_0`, `LABEL_1` ... are no names: such rows are taken in their order, if there are as many.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from spanbert_ext.tasks.task import Head
from spanbert_ext.weights.sources import StartingPoint

_CLASSES = {
    "question-answering": "ForQuestionAnswering",
    "token-classification": "ForTokenClassification",
    "sequence-classification": "ForSequenceClassification",
    "coreference": "ForCoreference",
}
_GENRES = "genre.weight"  # of a coreference head: a row for each genre


def is_head(fields: Mapping[str, Any], head: Head) -> bool:
    """Whether a configuration may be that of a model with this head: parameters of different heads
    have the same names. One that names no class with a head says nothing."""
    named = [name for name in fields.get("architectures") or () if "For" in name]
    return not named or names_head(fields, head)


def names_head(fields: Mapping[str, Any], head: Head) -> bool:
    """Whether a configuration names a class with this head."""
    classes = fields.get("architectures") or ()
    return any(name.endswith((_CLASSES[head], f"{_CLASSES[head]}Simple")) for name in classes)


def label_rows(
    fields: Mapping[str, Any], labels: Sequence[str]
) -> tuple[list[int] | None, str | None]:
    """Which row of a stored head each label has.

    Args:
        fields: of the stored configuration.
        labels: in the order of the head that is made.

    Returns:
        (rows, None where the labels are others; a remark for the report, if there is one)
    """
    stored = fields.get("id2label") or {}
    names = [str(stored.get(str(n), stored.get(n, f"LABEL_{n}"))) for n in range(len(stored))]
    if names == [f"LABEL_{n}" for n in range(len(names))]:
        if names and len(names) != len(labels):
            return None, None
        note = "the labels of its head have no names (LABEL_0 ...): they are taken in their order"
        return list(range(len(labels))), note
    for form in (str, str.casefold):
        own, theirs = [form(label) for label in labels], [form(name) for name in names]
        if len(own) == len(theirs) == len(set(own)) and set(own) == set(theirs):
            rows = [theirs.index(label) for label in own]
            moved = rows != list(range(len(rows)))
            return rows, "rows of its head are taken by the names of labels" if moved else None
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return None, f"its head has other labels ({shown}), so that of this run is new"


def stored_head(
    start: StartingPoint, model: nn.Module, head: Head, labels: Sequence[str]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Weights of a head of ours that lies beside the encoder, its rows in the order of the labels;
    nothing where it is another one. With remarks for the report."""
    own = {n: p.shape for n, p in model.named_parameters() if not n.startswith("bert.")}
    found = {}
    for file in sorted(start.folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in own.keys() & set(tensors.keys()):
                found[name] = tensors.get_tensor(name).float()
    if found.keys() != own.keys() or not is_head(start.fields, head):
        return {}, ()
    if head == "coreference":
        rows, note = _genre_rows(start.fields, model.config.coref)
        moved = [name for name in found if name.endswith(_GENRES)]
    else:
        rows, note = label_rows(start.fields, labels) if labels else (None, None)
        moved = list(found) if labels else []
    notes = () if note is None else (note,)
    if (rows is None and moved) or any(found[n].shape != own[n] for n in own):
        return {}, notes
    for name in moved:
        found[name] = found[name][rows]
    return found, notes


def _genre_rows(
    fields: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[list[int] | None, str | None]:
    """`label_rows` of the table of genres, whose first row is that of unknown ones."""
    stored, wanted = (fields.get("coref") or {}).get("genres") or [], own.get("genres") or []
    if sorted(stored) != sorted(wanted):
        return (
            None,
            f"its head knows other genres ({', '.join(stored)}), so that of this run is new",
        )
    return [0, *(1 + stored.index(genre) for genre in wanted)], None


def sort_rows(
    model: nn.Module, start: StartingPoint, head: Head, labels: Sequence[str], loaded: set[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Put the rows of another encoder's loaded head in the order of the labels, or make them new.

    Args:
        model: of transformers, with a configuration that names the labels.
        loaded: parameters that the file has filled.

    Returns:
        (names of the parameters that are new, remarks for the report)
    """
    named = dict(model.named_parameters())
    moved = [name for name in _label_parameters(model) if name in loaded] if labels else []
    if not moved:
        return [], ()
    rows, note = label_rows(start.fields, labels)
    if not is_head(start.fields, head):
        rows, note = None, None
    with torch.no_grad():
        for name in moved:
            if rows is not None:
                named[name].copy_(named[name][rows].clone())
            elif named[name].dim() > 1:
                named[name].normal_(std=getattr(model.config, "initializer_range", 0.02))
            else:
                named[name].zero_()
    return [] if rows is not None else moved, () if note is None else (note,)


def _label_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters with a row for each label: one label more would lengthen them."""
    config = copy.deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        longer = dict(type(model)(config).named_parameters())
    return [name for name, p in model.named_parameters() if p.shape != longer[name].shape]
