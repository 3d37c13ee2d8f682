"""Fine-tuning of coreference: documents as batches, and updates with a learning rate for the
encoder and another for the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.batching import TrainingOrder
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.features import SegmentedDocument, window
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.coref.options import CorefOptimizer
from spanbert_ext.tasks.coref.predictor import choose_precision, linked_spans, model_inputs
from spanbert_ext.tasks.coref.task import LinkedSpans
from spanbert_ext.tasks.finetune import FinetuneObjective
from spanbert_ext.training.loop import HostStep, Step, apply_gradients
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.optimizer import learning_rate, parameter_groups, rate_tensor
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.replica import Replica, whole
from spanbert_ext.training.run import Run


@dataclass(frozen=True)
class DocumentBatch:
    """One document, or a window of it.

    Args:
        inputs: of the model, with the gold mentions.
        ignored: it only takes part: another rank has one and this has none.
    """

    inputs: dict[str, Any]
    ignored: bool


class DocumentBatches:
    """An `objective.Batches` of documents, of which long ones are seen through a window of a few
    segments that is drawn anew in every epoch: a function of (seed, epoch, document).

    Args:
        documents: of the training data.
        options: of the model.
        order: documents of every step.
        seed: of the windows.
        device: of the batches.
        ranks: who shares them.
    """

    def __init__(
        self,
        documents: Sequence[SegmentedDocument],
        options: CorefModelOptions,
        order: TrainingOrder,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ):
        self._documents, self._options, self._order = documents, options, order
        self._seed, self._device, self._ranks = seed, device, ranks
        self.shift = 0

    def window(self, number: int, epoch: int) -> SegmentedDocument:
        """What an epoch shows of a document."""
        # The order of the epoch draws with the same key from counter 0.
        draw = np.random.Philox(counter=[0, 0, 0, 1 + number], key=[self._seed, epoch])
        most = self._options.max_training_segments
        return window(self._documents[number], np.random.Generator(draw), most)

    def batches(self, step: int) -> list[DocumentBatch]:
        """This rank's documents of a step: a pure function of settings, shift and step."""
        epoch, indices = self._order.of_step(step + self.shift)
        own = indices[self._ranks.rank :: self._ranks.world]
        ignored = len(own) == 0  # the last batch of an epoch may be smaller than the world
        batches = []
        for index in indices[:1] if ignored else own:
            document = self.window(int(index), epoch)
            genre = self._options.genre_id(document.genre)
            inputs = model_inputs(document, genre, self._device, with_gold=True)
            batches.append(DocumentBatch(inputs, ignored))
        return batches

    def num_tokens(self, step: int) -> int:
        """Tokens of a step on all ranks."""
        epoch, indices = self._order.of_step(step + self.shift)
        return sum(len(self.window(int(index), epoch).tokens) for index in indices)

    def describe(self, step: int) -> dict[str, Any]:
        """What identifies a step's batch: epoch and documents."""
        epoch, indices = self._order.of_step(step + self.shift)
        return {"epoch": epoch, "ids": [self._documents[i].id for i in indices]}


def build_two_rates(
    model: SpanBertForCoreference, options: CorefOptimizer, device: torch.device
) -> torch.optim.AdamW:
    """AdamW whose last group is the head, without weight decay; the others are the encoder, as in
    `optimizer.parameter_groups`. Every group has a learning rate of its own.

    Source: the coreference runs of SpanBERT.
    """
    groups = parameter_groups(model.bert, options.weight_decay)
    groups = [{**group, "lr": rate_tensor(options.peak_lr, device)} for group in groups]
    head = [parameter for _, parameter in model.task_parameters()]
    rate = rate_tensor(options.task_lr, device)
    groups.append({"params": head, "weight_decay": 0.0, "lr": rate, "eps": options.task_eps})
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        groups, lr=options.peak_lr, betas=betas, eps=options.eps, weight_decay=0.0, fused=True
    )


class TwoRateStep(HostStep):
    """An update in which encoder and head have schedules of their own and are clipped each by its
    own norm; the guard judges the norm of both.

    Args:
        optimizer: of `build_two_rates`.
        options: the head's rate, warm-up and norm; the encoder's are those of `settings`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        settings: LoopSettings,
        options: CorefOptimizer,
        replica: Replica | None = None,
    ):
        super().__init__(model, optimizer, objective, settings, replica)
        *encoder, head = optimizer.param_groups
        warmup = int(options.task_warmup * settings.steps)
        self._parts = (
            (encoder, settings.peak_lr, settings.warmup_steps, settings.clip_norm),
            ([head], options.task_lr, warmup, options.task_clip_norm),
        )

    def _update(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        norms = []
        for groups, peak, warmup, clip_norm in self._parts:
            rate = learning_rate(step, self._settings.steps, warmup, peak)
            parameters = []
            for group in groups:
                group["lr"].fill_(rate)
                parameters += [p for p in group["params"] if p.grad is not None]
            norm = whole(nn.utils.get_total_norm([p.grad for p in parameters]))
            if clip_norm > 0:
                nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
            norms.append(norm)
        norm = torch.stack(norms).norm()
        return norm, apply_gradients(self._optimizer, norm, self.guard)


class CorefObjective(FinetuneObjective):
    """Fine-tuning of a `SpanBertForCoreference`; arguments as in `Objective`."""

    def choose_precision(self, device: torch.device) -> str:
        """As a prediction does."""
        return choose_precision(self.config.precision, device)

    def memory_advice(self, processes: int) -> str:
        """To compute layers twice, else to read less of a document."""
        if not self.config.batch.checkpointing:
            return (
                "`--batch.checkpointing true` takes less, with the same update, also in a run that "
                "has begun"
            )
        options = self.config.task_options
        return (
            f"{options.max_training_segments} segments of {options.max_segment_len} pieces are "
            "read of a document: only another run, with fewer or shorter ones "
            "(coref.max_training_segments, coref.max_segment_len), takes less"
        )

    @staticmethod
    def tokens_of(feature: SegmentedDocument) -> int:
        """Pieces of the document, special ones included."""
        return len(feature.tokens)

    def outputs(
        self, model: SpanBertForCoreference, features: Sequence[SegmentedDocument]
    ) -> list[LinkedSpans]:
        """As `predictor.linked_spans`."""
        return linked_spans(model, features, self.device, self.precision)

    def build_optimizer(self, model: SpanBertForCoreference) -> torch.optim.Optimizer:
        """As `build_two_rates`."""
        return build_two_rates(model, self.config.optimizer, self.device)

    def build_batches(self, model: SpanBertForCoreference) -> DocumentBatches:
        """Documents.

        Raises:
            DataError: a segment is longer than the model can read.
        """
        self.ranks.main_first(lambda: self._check_lengths(model.bert.max_positions))
        model.bert.encoder.gradient_checkpointing = self.config.batch.checkpointing
        return DocumentBatches(
            self.features, model.options, self.order, self.config.seed, self.device, self.ranks
        )

    def _check_lengths(self, most: int) -> None:
        longest = max(feature.longest for feature in (*self.features, *self.dev_features))
        if longest > most:
            raise DataError(
                f"a segment of {longest} pieces; {self.config.model} has positions for {most}: "
                "lower --coref.max_segment_len"
            )

    def build_step(self, run: Run) -> Step:
        """Batches from the host, two learning rates."""
        replica = Replica(run.model, self.ranks, self.config.parallel.strategy)
        return TwoRateStep(
            run.model,
            run.optimizer,
            self,
            self.loop_settings(),
            self.config.optimizer,
            replica,
        )

    def counts(self, micro_batch: DocumentBatch) -> torch.Tensor:
        """[1] int64, documents that count."""
        return torch.tensor([0 if micro_batch.ignored else 1], device=self.device)

    def loss(
        self, model: nn.Module, micro_batch: DocumentBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A document's share of the mean loss of the batch's documents: to differentiate, and
        detached [1]."""
        share = 0.0 if micro_batch.ignored else 1.0
        loss = model(**micro_batch.inputs).loss * share / totals[0]
        return loss, loss.detach().reshape(1)
