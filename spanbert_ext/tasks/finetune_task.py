"""Fine-tuning as the loop sees it: batches of packed features, and the loss of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spanbert_ext.tasks.batching import (
    MULTIPLE,
    PackedBatch,
    TrainingOrder,
    by_tokens,
    pack,
)
from spanbert_ext.tasks.losses import label_loss, span_loss
from spanbert_ext.tasks.models import head_outputs
from spanbert_ext.tasks.task import Feature, Head
from spanbert_ext.training.ranks import ALONE, Ranks


class FinetuneTask:
    """A `loop.Task` over features.

    Args:
        features: of the training examples, with labels.
        head: which numbers the model gives.
        order: features of every step.
        micro_tokens: tokens of a micro-batch.
        pad_id: of the tokenizer.
        device: of the batches.
        ranks: who shares them.
        ids: of the examples, to name a batch.
        multiple: of a stream's tokens, as in `pack`.

    `shift` is the number of batches that the run has jumped over.
    """

    loss_names: Sequence[str] = ("loss",)

    def __init__(
        self,
        features: Sequence[Feature],
        head: Head,
        order: TrainingOrder,
        micro_tokens: int,
        pad_id: int,
        device: torch.device,
        ids: Sequence[str],
        ranks: Ranks = ALONE,
        multiple: int = MULTIPLE,
    ):
        self._features, self._head, self._order = features, head, order
        self._micro_tokens, self._pad_id, self._device = micro_tokens, pad_id, device
        self._ids, self._ranks, self._multiple = ids, ranks, multiple
        self._lengths = np.array([len(feature.input_ids) for feature in features], np.int64)
        self.shift = 0

    def batches(self, step: int) -> list[PackedBatch]:
        """This rank's micro-batches of a step: a pure function of settings, shift and step."""
        _, numbers = self._order.of_step(step + self.shift)
        numbers = numbers[np.argsort(self._lengths[numbers], kind="stable")]
        # Every world-th one, so that all ranks have the same work.
        world = self._ranks.world
        parts = [
            list(by_tokens(numbers[rank::world], self._lengths, self._micro_tokens))
            for rank in range(world)
        ]
        own = parts[self._ranks.rank]
        # Ranks that hold shares of the weights meet at every micro-batch, so all need as many.
        missing = max(map(len, parts)) - len(own)
        idle = [self._pack(numbers[:1], ignored=True)] * missing if missing else []
        return [self._pack(part, ignored=False) for part in own] + idle

    def num_tokens(self, step: int) -> int:
        """Tokens of a step on all ranks that are not padding."""
        _, numbers = self._order.of_step(step + self.shift)
        return int(self._lengths[numbers].sum())

    def describe(self, step: int) -> dict[str, Any]:
        """What identifies a step's batch: epoch and example ids."""
        epoch, numbers = self._order.of_step(step + self.shift)
        return {"epoch": epoch, "ids": [self._ids[self._features[i].example] for i in numbers]}

    def counts(self, micro_batch: PackedBatch) -> torch.Tensor:
        """[1] int64, labels that count."""
        labels = micro_batch.labels
        counted = labels == labels if labels.is_floating_point() else labels != -100
        if self._head == "question-answering":
            counted = counted.all(-1)
        return counted.sum().reshape(1)

    def loss(
        self, model: nn.Module, micro_batch: PackedBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of the big batch's loss: to differentiate, and detached [1]."""
        outputs = head_outputs(model, micro_batch, self._head)
        if self._head == "question-answering":
            starts, lengths = micro_batch.cu_seqlens[:-1], micro_batch.cu_seqlens.diff()
            width = micro_batch.max_seqlen
            loss = span_loss(outputs, starts, lengths, width, micro_batch.labels, totals[0])
        else:
            loss = label_loss(outputs, micro_batch.labels, totals[0])
        return loss, loss.detach().reshape(1)

    def _pack(self, numbers: Sequence[int], ignored: bool) -> PackedBatch:
        features = [self._features[i] for i in numbers]
        return pack(features, self._head, self._pad_id, self._device, ignored, self._multiple)
