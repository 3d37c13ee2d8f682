"""What a downstream task is to the machinery that trains, evaluates and predicts.

A task turns records into examples, examples into features (what the encoder reads), and the head's
numbers back into predictions; it scores predictions against examples. It knows nothing of models,
devices or files of a run. Everything here is numpy and plain Python: no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np

from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.forms import FORMS
from spanbert_ext.tasks.marked_text import MarkedText
from spanbert_ext.tasks.rejects import Rejects

# The Hugging Face head a task trains: what a saved model loads as. Coreference has none there: its
# models load as our own class, and its features and outputs are its own (`tasks.coref.task`).
Head = Literal[
    "question-answering", "token-classification", "sequence-classification", "coreference"
]


class HasId(Protocol):
    """An example: any dataclass of the task's with an identifier."""

    id: str


Example = TypeVar("Example", bound=HasId)
Prediction = TypeVar("Prediction")


@dataclass(frozen=True, slots=True)
class Feature:
    """One sequence that the encoder reads.

    Args:
        example: place of its example in the list that `DownstreamTask.features` was given.
        input_ids: [n] int64, special tokens included, at most the model's positions.
        token_type_ids: [n] int64; None: all 0.
        rows: [r] int64, ascending, places of the tokens whose outputs are read, for
            token-classification; None for the other heads (question-answering reads all,
            sequence-classification the first).
        labels: what training wants; None where there is no gold answer.
            question-answering: [2] int64, first and last piece of the answer in this feature,
            (0, 0) where it has none. token-classification: [r] int64, -100 to ignore.
            sequence-classification: [] int64, or [] float32 for a regression.
        place: what the task needs to decode this feature; nobody else looks at it.
    """

    example: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None = None
    rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    place: Any = None


class DownstreamTask(ABC, Generic[Example, Prediction]):
    """A task with its options and the facts it has learned.

    Args:
        options: the task's settings, a frozen dataclass (`spanbert_ext.tasks.config`).
        facts: what `learn` and `tune` found before (JSON types only): label names, symbols,
            thresholds. They are stored in the model's folder and given back on loading.
    """

    # What `spanbert finetune NAME` calls it; one class may serve several names.
    name: str
    head: ClassVar[Head]
    # The option that bounds a sequence of the encoder.
    length_option: ClassVar[str] = "length"
    # What `confusion` counts.
    confusion_unit: ClassVar[str] = "examples"
    # Whether {"text": ...} is a whole record of `predict`.
    takes_text: bool = False
    # The number of `score` that picks the best model; larger is better.
    best_metric: str
    # Test sets without gold answers become files of predictions for somebody else to score.
    takes_test_sets: ClassVar[bool] = False
    # The file of predictions has one line for each id, so that none may occur twice.
    predictions_by_id: ClassVar[bool] = True
    # What to look at where there is no gold answer.
    gold_hint: str = "is it a test set?"

    def __init__(self, name: str, options: Any, facts: dict[str, Any] | None = None):
        self.name = name
        self.options = options
        self.facts: dict[str, Any] = dict(facts or {})

    @property
    def example_record(self) -> str:
        """A record of `predict` as its line of JSON."""
        return FORMS[self.name].example

    def has_gold(self, example: Example) -> bool:
        """Whether a gold answer is known of an example."""
        return True

    @abstractmethod
    def read(self, path: str | Path, rejects: Rejects) -> list[Example]:
        """Examples with gold answers of a file in the task's format, in its order.

        A record that cannot be used goes to `rejects.add`, which raises or notes it; at the end
        `rejects.check` is asked. Once labels are learned, a record with another one cannot be used.

        Raises:
            DataError: the file is not in the format at all, or `rejects` says so.
        """

    @abstractmethod
    def parse(self, record: dict[str, Any], where: str) -> Example:
        """The example of one record of `predict`'s JSONL; gold answers may be missing.

        Args:
            where: for messages, as in "in.jsonl:17"; also the id if the record has none.

        Raises:
            DataError: a field is missing or impossible.
        """

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """The part of `learn` that further files are read with: names of labels, into `facts`.

        Raises:
            DataError: the examples cannot train this task.
        """
        return

    @abstractmethod
    def learn(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Fill `facts` from the training examples, before the first `features` of a fine-tuning.

        May add tokens to the tokenizer; the word embedding is grown to fit, and the tokenizer is
        stored with the model.

        Raises:
            DataError: the examples cannot train this task.
        """

    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the head's outputs, in order; empty for question-answering, one name for a
        regression."""

    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration that the task decides, beside those of labels."""
        return {}

    @abstractmethod
    def features(self, examples: Sequence[Example], tokenizer: Any) -> list[Feature]:
        """The sequences of the examples, in their order, one or more for each.

        Labels are set wherever the example has a gold answer.
        """

    @abstractmethod
    def decode(
        self,
        examples: Sequence[Example],
        features: Sequence[Feature],
        outputs: Sequence[np.ndarray],
    ) -> list[Prediction]:
        """One prediction for each example.

        Args:
            features: of these examples, as `features` gave them.
            outputs: of each feature, float32: [n, 2] for question-answering, [r, labels] for
                token-classification, [labels] for sequence-classification.
        """

    @abstractmethod
    def score(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> dict[str, float]:
        """Metrics in percent (0..100) unless the name says otherwise, `best_metric` among them."""

    def tune(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
        """Choose what is chosen on held-out examples (a threshold) and put it into `facts`.

        Called with every development evaluation before `score`, never on a test set.
        """
        return

    def trivial_predictions(
        self, examples: Sequence[Example]
    ) -> tuple[str, list[Prediction]] | None:
        """What needs no model: in words, as "no entity everywhere", and one for each example.

        A model that scores no better has not learned the task. None: there is no such thing.
        """
        return None

    @abstractmethod
    def as_json(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """The line `predict` writes, JSON types only, without the id."""

    @abstractmethod
    def marked(self, example: Example, prediction: Prediction) -> MarkedText:
        """The example's text with its predicted spans, for the HTML page."""

    def write_predictions(
        self, path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> list[Path]:
        """Predictions of `evaluate` in the layout the task's official scorer reads.

        Returns:
            The files: `path`, and what stands beside it.

        Raises:
            StorageError: a file cannot be written; each is whole or absent.
        """
        raise ConfigError(f"{self.name} has no official prediction file")

    def plot(
        self, path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> None:
        """A picture of an evaluation: how often each label was taken for each.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        from spanbert_ext.tasks import plots

        labels, counts = self.confusion(examples, predictions)
        unit = self.confusion_unit
        plots.confusion_plot(labels, counts, path, f"{self.name}: {counts.sum():,} {unit}", unit)

    def confusion(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> tuple[list[str], np.ndarray]:
        """(names, [names, names] int64 counts with gold labels in rows) for the plot."""
        raise ConfigError(f"{self.name} has no labels to confuse")
