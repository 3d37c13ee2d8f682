"""Settings of tagging. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanbert_ext.tasks.config import TaskOptions

_SHORTEST = 8  # pieces of a window


@dataclass(frozen=True)
class TaggingOptions(TaskOptions):
    """How tagged files are read and how words are tagged.

    Args:
        scheme: what the model predicts; bio marks the first word of an entity, bilou its last and
            single ones too. Files may be in either, in IOB1 or in BIOES: that is recognised.
        token_column: column of the word in a CoNLL file, counted from 0, or from the end with -1.
        tag_column: column of the tag.
        length: most tokens of a window, [CLS] and [SEP] included; at most what the model reads.
        overlap: words of context that two windows of one sentence share, where it is longer than a
            window; a word's tag comes from the window where it has most context.
        join: fill a window with consecutive sentences of a document; false gives every sentence
            its own.
        constrained: choose the most probable sequence of tags that the scheme allows; false takes
            the best tag of each word and repairs.
        repair: what becomes of an I- with no entity to continue, without constrained: begin starts
            an entity with it, drop leaves it out.
    """

    scheme: Literal["bio", "bilou"] = "bio"
    token_column: int = 0
    tag_column: int = -1
    length: int = 256
    overlap: int = 32
    join: bool = True
    constrained: bool = True
    repair: Literal["begin", "drop"] = "begin"

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        faults = []
        if self.length < _SHORTEST:
            faults.append(f"tagging.length: must be at least {_SHORTEST}; got {self.length}")
        if not 0 <= self.overlap <= max(0, self.length // 2):
            faults.append(
                "tagging.overlap: must be at least 0 and at most half of tagging.length = "
                f"{self.length}; got {self.overlap}"
            )
        if self.token_column == self.tag_column:
            faults.append(
                "tagging.tag_column: the tag cannot stand in the word's column; got "
                f"{self.tag_column} for both"
            )
        return faults
