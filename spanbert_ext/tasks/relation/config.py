"""Settings of relation classification. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanbert_ext.tasks.config import TaskOptions

# Room for all symbols in every kind of input, and a few words.
SHORTEST = 16


@dataclass(frozen=True)
class RelationOptions(TaskOptions):
    """How the two entities of a sentence are shown to the encoder (paper section 4.1).

    Args:
        input: entity-mask puts one symbol of role and type in place of each entity (the paper's),
            entity-mask-repeated one for each of its tokens (TACRED's own baselines),
            entity-mask-and-text adds the words of both entities behind the sentence. marker leaves
            the entities and puts symbols around them, typed-marker opens with the symbol of the
            type, marker-and-types adds both types behind the sentence. All but marker need the
            types of both entities.
        length: most pieces of a sequence, [CLS] and [SEP] included. Of a longer sentence those
            nearest to the entities are kept.
        null_label: the label of pairs without a relation, which precision, recall and F1 leave out;
            null where every pair has one.
    """

    input: Literal[
        "entity-mask",
        "entity-mask-repeated",
        "entity-mask-and-text",
        "marker",
        "typed-marker",
        "marker-and-types",
    ] = "entity-mask"
    length: int = 128
    null_label: str | None = "no_relation"

    @property
    def masks(self) -> bool:
        """Symbols stand in place of the entities."""
        return self.input.startswith("entity-mask")

    @property
    def needs_types(self) -> bool:
        """The types of the entities are part of what the encoder reads."""
        return self.input != "marker"

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        found = []
        if self.length < SHORTEST:
            found.append(f"relation.length: must be at least {SHORTEST}; got {self.length}")
        if self.null_label is not None and not self.null_label.strip():
            found.append("relation.null_label: must be a label's name, or null where there is none")
        return found
