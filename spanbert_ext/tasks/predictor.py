"""A fine-tuned model with its task: from examples to predictions, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from spanbert_ext.errors import ConfigError, NumericsError, StorageError
from spanbert_ext.model.encoder import for_predictions
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.batching import PackedBatch, by_tokens, pack
from spanbert_ext.tasks.config import BATCH_TOKENS
from spanbert_ext.tasks.finite import broken_examples, fault_of, owners
from spanbert_ext.tasks.models import (
    check_head,
    head_outputs,
    load_head,
    longest_input,
    open_model,
    read_tokenizer,
    stream_multiple,
)
from spanbert_ext.tasks.task import DownstreamTask, Feature
from spanbert_ext.tasks.task_file import TASK_FILE, read_task_file, stored_options, stored_task
from spanbert_ext.threads import alone_with
from spanbert_ext.training.loop import autocast
from spanbert_ext.training.models import choose_device, choose_precision
from spanbert_ext.training.progress import tell


@torch.no_grad()
def outputs_of(
    model: nn.Module,
    features: Sequence[Feature],
    task: DownstreamTask,
    pad_id: int,
    device: torch.device,
    precision: str,
    batch_tokens: int = BATCH_TOKENS,
) -> list[np.ndarray]:
    """The head's numbers of every feature, as `DownstreamTask.decode` takes them; dropout off.

    Features of like length are computed together, so that attention has few different shapes.
    """
    was_training = model.training
    model.eval()
    lengths = np.array([len(feature.input_ids) for feature in features], np.int64)
    outputs: list[Any] = [None] * len(features)
    # One autocast for all batches: what it has converted of the weights stays.
    with autocast(device, precision), for_predictions(model, int(lengths.sum())):
        done = 0
        for numbers in by_tokens(np.argsort(-lengths, kind="stable"), lengths, batch_tokens):
            chosen = [features[i] for i in numbers]
            batch = pack(chosen, task.head, pad_id, device, multiple=stream_multiple(model))
            values = head_outputs(model, batch, task.head).float().cpu().numpy()
            for i, part in zip(numbers, _split(values, batch, task.head), strict=True):
                outputs[i] = part
            done += int(lengths[numbers].sum())
            tell("tokens", done, int(lengths.sum()))
    model.train(was_training)
    return outputs


def _split(values: np.ndarray, batch: PackedBatch, head: str) -> list[np.ndarray]:
    """One array for each feature of a batch; what belongs to padding falls away."""
    if head == "sequence-classification":
        return list(values[: len(batch.lengths)])
    sizes = batch.lengths if head == "question-answering" else batch.counts
    ends = np.cumsum(sizes)
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _fit_length(task: DownstreamTask, model: nn.Module, trained: Any) -> None:
    """See to it that no sequence is longer than the model reads.

    Args:
        trained: options that the model's task was trained with: their length may be larger, where
            the training data was short; None where nothing is stored.
    """
    name = task.length_option
    most, wanted = longest_input(model), getattr(task.options, name)
    if most is None or wanted <= most:
        return
    if wanted != getattr(trained, name, None):
        section = registry.entry_of(task.name).section
        raise ConfigError(
            f"{section}.{name}: must be at most {most}, for which the model has positions; got "
            f"{wanted}"
        )
    task.options = dataclasses.replace(task.options, **{name: most})


class Predictor:
    """A model, its tokenizer and its task.

    Threads may share one: their calls take turns (`threads.alone_with`), chunk by chunk.

    Args:
        model: of `tasks.models`; put into evaluation mode on `device`.
        tokenizer: the one it was trained with.
        task: with its facts.
        device: where to compute.
        precision: bf16 or fp32.

    Raises:
        StorageError: the task's labels are not the model's.
    """

    # Examples whose features and outputs are in memory together.
    chunk = 512
    choose_precision = staticmethod(choose_precision)

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        task: DownstreamTask,
        device: torch.device,
        precision: str,
    ):
        _check_labels(task, model)
        self.model, self.tokenizer, self.task = model.eval().to(device), tokenizer, task
        self.device, self.precision = device, precision
        self.batch_tokens = BATCH_TOKENS

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str = "auto",
        precision: str = "auto",
        default: Callable[[Any], DownstreamTask] | None = None,
        options: Any = None,
        task_name: str | None = None,
        fine_tune: str | None = None,
    ) -> Predictor:
        """Of a fine-tuned model's folder, a fine-tuning run (its best model), or a hub name.

        Args:
            device: auto, cpu, cuda or cuda:N.
            precision: auto, bf16 or fp32.
            default: makes the task of a model that stores none, from its configuration.
            options: replace those that are stored.
            task_name: the task that is wanted, as in `task_file.stored_task`.
            fine_tune: what a model without a head has to be fine-tuned for, for the message.

        Raises:
            ConfigError: there is no such model, or it stores no task and there is no default, or
                options ask for longer sequences than it reads.
            DataError, StorageError: it is damaged or no model of its task.
        """
        with open_model(str(name)) as start:
            stored = read_task_file(start.folder)
            wanted = fine_tune or task_name or "TASK"
            if stored is None and default is None:
                raise ConfigError(
                    f"{name}: no spanbert_task.json there: it was not made by `spanbert finetune`; "
                    f"fine-tune it first, as with `spanbert finetune {wanted} --model {name}`"
                )
            if stored is None and fine_tune is not None:
                head = registry.entry_of(fine_tune).task_class().head
                check_head(dataclasses.replace(start, name=str(name)), head, fine_tune)
            tokenizer = read_tokenizer(start.folder)
            if stored is not None:
                task = stored_task(stored, task_name, options)
            else:
                from transformers import AutoConfig

                task = default(AutoConfig.from_pretrained(start.folder, trust_remote_code=False))
            model = load_head(start.folder, task.head, task.model_fields(), str(name), wanted)
        _fit_length(task, model, None if stored is None else stored_options(stored))
        where = choose_device(device)
        kind = registry.entry_of(task.name).predictor_class()
        return kind(model, tokenizer, task, where, kind.choose_precision(precision, where))

    @classmethod
    def of_settings(cls, config: Any) -> Predictor:
        """What the settings of `evaluate` or `predict` name; raises as `load`.

        Settings without a section of the task take the options that are stored with the model.
        """
        given = config.task_options
        predictor = cls.load(
            config.model,
            config.device,
            config.precision,
            options=None if given is registry.options_not_given(type(given)) else given,
            task_name=config.task_name,
        )
        predictor.batch_tokens = config.batch_tokens
        return predictor

    def outputs(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """The head's numbers of every feature."""
        with alone_with(self.model, self.tokenizer):
            return self._compute(features)

    def _compute(self, features: Sequence[Feature]) -> list[np.ndarray]:
        return outputs_of(
            self.model,
            features,
            self.task,
            self.tokenizer.pad_token_id or 0,
            self.device,
            self.precision,
            self.batch_tokens,
        )

    def attempts(self, examples: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """(example, prediction) in order, `chunk` examples at a time; in place of the prediction a
        NumericsError where the model's outputs are not finite."""
        while part := list(islice(examples, self.chunk)):
            with alone_with(self.model, self.tokenizer):
                found = self._attempt(part)
            yield from zip(part, found, strict=True)

    def _attempt(self, part: list[Any]) -> list[Any]:
        features = self.task.features(part, self.tokenizer)
        outputs = self.outputs(features)
        broken = broken_examples(features, outputs)
        found: dict[int, Any] = {n: fault_of(part[n].id, self.precision) for n in broken}
        whole = [n for n in range(len(part)) if n not in broken]
        if broken:
            kept = zip(owners(features), outputs, strict=True)
            outputs = [output for owner, output in kept if owner not in broken]
            part = [part[n] for n in whole]
            features = self.task.features(part, self.tokenizer)
        found |= zip(whole, self.task.decode(part, features, outputs), strict=True)
        return [found[n] for n in range(len(found))]

    def stream(self, examples: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """(example, prediction) in order, `chunk` examples at a time.

        Raises:
            NumericsError: the model's outputs for an example are not finite.
        """
        for example, prediction in self.attempts(examples):
            if isinstance(prediction, NumericsError):
                raise prediction
            yield example, prediction

    def __call__(self, examples: Sequence[Any]) -> list[Any]:
        """One prediction for each example."""
        return [prediction for _, prediction in self.stream(iter(examples))]


def _check_labels(task: DownstreamTask, model: nn.Module) -> None:
    """Refuse facts that are not those of the model."""
    where = Path(model.config.name_or_path) / TASK_FILE
    try:
        labels = list(task.labels())
    except (KeyError, TypeError) as error:
        raise StorageError(f"{where}: its facts are not those of {task.name}: {error!r}") from error
    if labels and len(labels) != model.config.num_labels:
        raise StorageError(
            f"{where}: it names {len(labels)} labels, the model has {model.config.num_labels}"
        )
