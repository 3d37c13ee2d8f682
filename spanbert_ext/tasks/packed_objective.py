"""Fine-tuning of the tasks whose head reads packed sequences: all but coreference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from spanbert_ext.errors import DataError
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.batching import FeatureBatches, PackedBatch
from spanbert_ext.tasks.finetune import FinetuneObjective
from spanbert_ext.tasks.losses import label_loss, span_loss
from spanbert_ext.tasks.models import head_outputs, longest_input, stream_multiple
from spanbert_ext.tasks.predictor import outputs_of
from spanbert_ext.tasks.task import Feature, Head
from spanbert_ext.training.loop import HostStep, Step
from spanbert_ext.training.replica import Replica
from spanbert_ext.training.run import Run


def count_labels(micro_batch: PackedBatch, head: Head) -> torch.Tensor:
    """[1] int64, labels that count."""
    labels = micro_batch.labels
    counted = labels == labels if labels.is_floating_point() else labels != -100
    if head == "question-answering":
        counted = counted.all(-1)
    return counted.sum().reshape(1)


def head_loss(
    model: nn.Module, micro_batch: PackedBatch, head: Head, total: torch.Tensor
) -> torch.Tensor:
    """Scalar, a micro-batch's share of the big batch's mean loss.

    Args:
        total: scalar, `count_labels` of the big batch.
    """
    outputs = head_outputs(model, micro_batch, head)
    if head == "question-answering":
        starts, lengths = micro_batch.cu_seqlens[:-1], micro_batch.cu_seqlens.diff()
        return span_loss(
            outputs, starts, lengths, micro_batch.max_seqlen, micro_batch.labels, total
        )
    return label_loss(outputs, micro_batch.labels, total)


class PackedObjective(FinetuneObjective):
    """Fine-tuning of a head of `tasks.heads`, or of another encoder's; arguments as in
    `Objective`."""

    def memory_advice(self, processes: int) -> str:
        """To compute fewer tokens at a time."""
        most = self.config.batch.micro_tokens
        return (
            f"{most} tokens are computed at a time: `--batch.micro_tokens {most // 2}` takes less, "
            "with the same update, also in a run that has begun. Weights, gradients and moments "
            "alone take 16 bytes a parameter"
        )

    @staticmethod
    def tokens_of(feature: Feature) -> int:
        """Special tokens included."""
        return len(feature.input_ids)

    def check_gold(self) -> None:
        """All of them need one."""
        if any(feature.labels is None for feature in self.features):
            raise DataError(
                f"{', '.join(self.config.train)}: examples without a gold answer cannot train"
            )
        if any(feature.labels is None for feature in self.dev_features):
            raise DataError(
                f"{', '.join(self.config.dev)}: examples without a gold answer cannot choose the "
                "best model; leave --dev out, then the last one counts"
            )

    def outputs(self, model: nn.Module, features: Sequence[Feature]) -> list[np.ndarray]:
        """As `predictor.outputs_of`."""
        return outputs_of(
            model,
            features,
            self.task,
            self.tokenizer.pad_token_id or 0,
            self.device,
            self.precision,
        )

    def build_batches(self, model: nn.Module) -> FeatureBatches:
        """Packed features.

        Raises:
            DataError: a sequence is longer than the model can read.
        """
        self.ranks.main_first(lambda: self._check_lengths(longest_input(model)))
        return FeatureBatches(
            self.features,
            self.task.head,
            self.order,
            self.config.batch.micro_tokens,
            self.tokenizer.pad_token_id or 0,
            self.device,
            [example.id for example in self.examples.train],
            self.ranks,
            stream_multiple(model),
        )

    def _check_lengths(self, most: int | None) -> None:
        longest = max(len(f.input_ids) for f in (*self.features, *self.dev_features))
        if most is not None and longest > most:
            raise DataError(
                f"a sequence of {longest} tokens; {self.config.model} has positions for {most}: "
                f"lower --{registry.entry_of(self.task.name).section}.length"
            )

    def build_step(self, run: Run) -> Step:
        """Batches from the host."""
        # Of a pooler, or of what another encoder carries along, nobody may wait for a gradient.
        replica = Replica(
            run.model,
            self.ranks,
            self.config.parallel.strategy,
            idle_parameters=hasattr(run.model, "model"),
        )
        return HostStep(run.model, run.optimizer, self, self.loop_settings(), replica)

    def counts(self, micro_batch: PackedBatch) -> torch.Tensor:
        """As `count_labels`."""
        return count_labels(micro_batch, self.task.head)

    def loss(
        self, model: nn.Module, micro_batch: PackedBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `head_loss`, and detached [1]."""
        loss = head_loss(model, micro_batch, self.task.head, totals[0])
        return loss, loss.detach().reshape(1)
