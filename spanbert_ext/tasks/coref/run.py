"""One process's part of a fine-tuning for coreference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref.features import SegmentedDocument
from spanbert_ext.tasks.coref.options import CorefFinetuneConfig
from spanbert_ext.tasks.coref.predictor import choose_precision, linked_spans
from spanbert_ext.tasks.coref.task import LinkedSpans
from spanbert_ext.tasks.coref.training import CorefTrainingTask, TwoRateStep, build_two_rates
from spanbert_ext.tasks.finetune import FinetuneRun
from spanbert_ext.training.loop import Step
from spanbert_ext.training.replica import Replica


class CorefRun(FinetuneRun):
    """Fine-tuning of a `SpanBertForCoreference`; arguments as in `Run`."""

    choose_precision = staticmethod(choose_precision)

    @staticmethod
    def memory_advice(config: CorefFinetuneConfig, processes: int) -> str:
        """To compute layers twice, else to read less of a document."""
        if not config.batch.checkpointing:
            return (
                "`--batch.checkpointing true` takes less, with the same update, also in a run that "
                "has begun"
            )
        return (
            f"{config.task_options.max_training_segments} segments of "
            f"{config.task_options.max_segment_len} pieces are read of a document: only another "
            "run, with fewer or shorter ones (coref.max_training_segments, coref.max_segment_len), "
            "takes less"
        )

    @staticmethod
    def tokens_of(feature: SegmentedDocument) -> int:
        """Pieces of the document, special ones included."""
        return len(feature.tokens)

    def _check_lengths(self) -> None:
        longest = max(feature.longest for feature in (*self.features, *self.dev_features))
        most = self.model.bert.max_positions
        if longest > most:
            raise DataError(
                f"a segment of {longest} pieces; {self.config.model} has positions for {most}: "
                "lower --coref.max_segment_len"
            )

    def _outputs(self, features: Sequence[SegmentedDocument]) -> list[LinkedSpans]:
        return linked_spans(self.model, features, self.device, self.precision)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return build_two_rates(self.model, self.config.optimizer, self.device)

    def _build_task(self) -> CorefTrainingTask:
        self.ranks.main_first(self._check_lengths)
        self.model.bert.encoder.gradient_checkpointing = self.config.batch.checkpointing
        return CorefTrainingTask(
            self.features,
            self.model.options,
            self.order,
            self.config.seed,
            self.device,
            self.ranks,
        )

    def _build_step(self) -> Step:
        replica = Replica(self.model, self.ranks, self.config.parallel.strategy)
        return TwoRateStep(
            self.model,
            self.optimizer,
            self.task,
            self._loop_settings(),
            self.config.optimizer,
            replica,
        )
