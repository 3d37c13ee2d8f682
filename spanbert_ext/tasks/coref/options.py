"""Settings of `spanbert finetune | evaluate | predict coref`. Free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from spanbert_ext.tasks.config import (
    FinetuneConfig,
    FinetuneOptimizer,
    TaskOptions,
    below,
    share,
)
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.features import SHORTEST_SEGMENT


@dataclass(frozen=True)
class CorefOptions(CorefModelOptions, TaskOptions):
    """How documents are read, and what the model computes.

    Args:
        genres: codes of the document genres that the model tells apart; null takes those that the
            training documents name, if there are several.
        max_segment_len: most pieces of a segment, which the encoder reads alone, special tokens
            included; at most the model's positions.
        shared: what becomes of a mention that stands in two clusters of a file: merge joins the
            clusters for training, and an evaluation scores them as they are, like the reference
            scorer; error rejects the document.
        resolved: let predict write the text too with its mentions replaced by the most telling one
            of their cluster.
    """

    max_segment_len: int = 384
    shared: Literal["merge", "error"] = "merge"
    resolved: bool = False

    def faults(self) -> list[str]:
        """One line for every impossible value, by the name a user types."""
        return super().faults() + below(
            "coref.max_segment_len", self.max_segment_len, SHORTEST_SEGMENT
        )

    def model_options(self, genres: list[str] | None) -> CorefModelOptions:
        """Those of the model.

        Args:
            genres: of the training documents, where none are set.
        """
        names = [f.name for f in dataclasses.fields(CorefModelOptions)]
        values = {name: getattr(self, name) for name in names}
        return CorefModelOptions(**values | {"genres": self.genres or genres})


@dataclass(frozen=True)
class CorefOptimizer(FinetuneOptimizer):
    """AdamW with a learning rate for the encoder and one for the head, each with linear warm-up and
    linear decay to zero and with its own clipping.

    Args:
        peak_lr: learning rate of the encoder at the end of its warm-up (published: 1e-5 to 2e-5).
        warmup: share of the steps that warm up the encoder's.
        clip_norm: largest norm of the encoder's gradient in an update; 0 switches clipping off.
        weight_decay: decoupled weight decay of the encoder; biases, LayerNorm and the head have
            none.
        eps: term that keeps the division finite, for the encoder.
        task_lr: learning rate of the head at the end of its warm-up (published: 1e-4 to 3e-4).
        task_warmup: share of the steps that warm up the head's; the original implementation does
            without (0).
        task_clip_norm: largest norm of the head's gradient in an update; 0 switches it off.
        task_eps: term that keeps the division finite, for the head.
    """

    peak_lr: float = 1e-5
    task_lr: float = 2e-4
    task_warmup: float = 0.1
    task_clip_norm: float = 1.0
    task_eps: float = 1e-8

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        return [
            *super().faults(),
            *below("optimizer.task_lr", self.task_lr, 0, strict=True),
            *below("optimizer.task_eps", self.task_eps, 0, strict=True),
            *below("optimizer.task_clip_norm", self.task_clip_norm, 0),
            *share("optimizer.task_warmup", self.task_warmup),
        ]


@dataclass(frozen=True)
class CorefBatch:
    """What one update sees.

    Args:
        examples: documents of a batch; they are computed one after the other, and their losses
            averaged.
        checkpointing: compute the encoder's layers again for their gradient instead of keeping what
            they computed: a third more time, much less memory, the same update.
    """

    examples: int = 1
    checkpointing: bool = False

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        return below("batch.examples", self.examples, 1)


@dataclass(frozen=True)
class CorefFinetuneConfig(FinetuneConfig):
    """`FinetuneConfig` of coreference."""

    optimizer: CorefOptimizer = field(default_factory=CorefOptimizer)
    batch: CorefBatch = field(default_factory=CorefBatch)
