"""Settings of the GLUE tasks."""

from __future__ import annotations

from dataclasses import dataclass

from spanbert_ext.tasks.config import TaskOptions

# [CLS] a [SEP] b [SEP], a piece of each.
_SHORTEST = 5


@dataclass(frozen=True)
class GlueOptions(TaskOptions):
    """What the encoder reads of a sentence or a pair (paper appendix B).

    Args:
        length: most pieces of an input, special tokens included; of a pair the longer sentence is
            cut first.
    """

    length: int = 128

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        if self.length < _SHORTEST:
            return [f"glue.length: must be at least {_SHORTEST}; got {self.length}"]
        return []
