"""Fine-tuning of the tasks whose head reads packed sequences: all but coreference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.finetune import FinetuneRun
from spanbert_ext.tasks.finetune_task import FinetuneTask
from spanbert_ext.tasks.models import longest_input, stream_multiple
from spanbert_ext.tasks.predictor import outputs_of
from spanbert_ext.tasks.task import Feature
from spanbert_ext.training.loop import HostStep, Step
from spanbert_ext.training.replica import Replica


class HeadRun(FinetuneRun):
    """Fine-tuning of a head of `tasks.heads`, or of another encoder's; arguments as in `Run`."""

    @staticmethod
    def memory_advice(config: FinetuneConfig, processes: int) -> str:
        """To compute fewer tokens at a time."""
        most = config.batch.micro_tokens
        return (
            f"{most} tokens are computed at a time: `--batch.micro_tokens {most // 2}` takes less, "
            "with the same update, also in a run that has begun. Weights, gradients and moments "
            "alone take 16 bytes a parameter"
        )

    @staticmethod
    def tokens_of(feature: Feature) -> int:
        """Special tokens included."""
        return len(feature.input_ids)

    def _check_gold(self, config: FinetuneConfig) -> None:
        if any(feature.labels is None for feature in self.features):
            raise DataError(
                f"{', '.join(config.train)}: examples without a gold answer cannot train"
            )
        if any(feature.labels is None for feature in self.dev_features):
            raise DataError(
                f"{', '.join(config.dev)}: examples without a gold answer cannot choose the best "
                "model; leave --dev out, then the last one counts"
            )

    def _check_lengths(self) -> None:
        longest = max(len(f.input_ids) for f in (*self.features, *self.dev_features))
        most = longest_input(self.model)
        if most is not None and longest > most:
            raise DataError(
                f"a sequence of {longest} tokens; {self.config.model} has positions for {most}: "
                f"lower --{registry.entry_of(self.downstream.name).section}.length"
            )

    def _outputs(self, features: Sequence[Feature]) -> list[np.ndarray]:
        return outputs_of(
            self.model,
            features,
            self.downstream,
            self.tokenizer.pad_token_id or 0,
            self.device,
            self.precision,
        )

    def _build_task(self) -> FinetuneTask:
        self.ranks.main_first(self._check_lengths)
        return FinetuneTask(
            self.features,
            self.downstream.head,
            self.order,
            self.config.batch.micro_tokens,
            self.tokenizer.pad_token_id or 0,
            self.device,
            [example.id for example in self.data.train],
            self.ranks,
            stream_multiple(self.model),
        )

    def _build_step(self) -> Step:
        # Of a pooler, or of what another encoder carries along, nobody may wait for a gradient.
        replica = Replica(
            self.model,
            self.ranks,
            self.config.parallel.strategy,
            idle_parameters=hasattr(self.model, "model"),
        )
        return HostStep(self.model, self.optimizer, self.task, self._loop_settings(), replica)
