"""The GLUE tasks: sentences to inputs, outputs to labels or scores, scores and submissions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.files import write_text
from spanbert_ext.tasks.classification.data import GlueExample, parse_record, read_file
from spanbert_ext.tasks.classification.layouts import HIGHEST, LAYOUTS, LOWEST
from spanbert_ext.tasks.classification.metrics import measures
from spanbert_ext.tasks.layout import PairLayout, around_text
from spanbert_ext.tasks.marked_text import MarkedText
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.scores import confusion, softmax
from spanbert_ext.tasks.task import DownstreamTask, Feature
from spanbert_ext.text import token_ids


@dataclass(frozen=True, slots=True)
class LabelPrediction:
    """Of a classification.

    Args:
        label: the most probable.
        scores: probability of every label, in the order of the head's outputs.
    """

    label: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class ValuePrediction:
    """Of a regression.

    Args:
        value: as the head gives it; it may lie outside of the scale.
    """

    value: float


GluePrediction = LabelPrediction | ValuePrediction


class GlueTask(DownstreamTask[GlueExample, GluePrediction]):
    """One of the nine (`LAYOUTS` has their names). It learns no facts.

    Args:
        name: as in `spanbert finetune NAME`.
        options: `GlueOptions`.
    """

    head = "sequence-classification"
    takes_test_sets = True

    def __init__(self, name: str, options: Any, facts: dict[str, Any] | None = None):
        super().__init__(name, options, facts)
        self.layout = LAYOUTS[name]
        self.best_metric = self.layout.measure
        self.gold_hint = (
            f"there is no gold label (column {' or '.join(self.layout.label)}): is it a test set?"
        )
        self.takes_text = len(self.layout.texts[0]) == 1

    def has_gold(self, example: GlueExample) -> bool:
        return example.gold is not None

    def read(self, path: str | Path, rejects: Rejects) -> list[GlueExample]:
        """The examples of a file of the benchmark; a test set's have no gold label."""
        return read_file(path, self.layout, rejects)

    def parse(self, record: dict[str, Any], where: str) -> GlueExample:
        """The example of a record with `sentence`, or with `sentence1` and `sentence2` or another
        pair of names that the benchmark's files have."""
        return parse_record(record, self.layout, where)

    def learn(self, examples: Sequence[GlueExample], tokenizer: Any) -> None:
        """Only sees to it that there are gold labels."""
        unlabelled = next((example for example in examples if example.gold is None), None)
        if unlabelled is not None:
            named = " or ".join(self.layout.label)
            raise DataError(
                f"{self.name}: example {unlabelled.id} of the training file has no gold label "
                f"(column {named}); is it a test set?"
            )

    def labels(self) -> list[str]:
        return list(self.layout.labels) or ["score"]

    def features(self, examples: Sequence[GlueExample], tokenizer: Any) -> list[Feature]:
        """[CLS] a [SEP], or [CLS] a [SEP] b [SEP] with token types 0 and 1, or what the tokenizer
        puts in their place (`layout`)."""
        length = self.options.length
        texts = (text for example in examples for text in example.texts)
        pieces = token_ids(texts, tokenizer, length)
        before, behind = around_text(tokenizer)
        pair = PairLayout.of(tokenizer, as_bert=True)
        features = []
        for place, example in enumerate(examples):
            if len(example.texts) == 1:
                room = length - len(before) - len(behind)
                ids = np.concatenate([before, pieces[example.texts[0]][:room], behind])
                types = None
            else:
                a, b = cut_pair(*(pieces[text] for text in example.texts), length - pair.specials)
                ids = np.concatenate([pair.before, a, pair.between, b, pair.behind])
                types = pair.token_types(len(a), len(b))
            features.append(Feature(place, ids, types, labels=self._target(example)))
        return features

    def _target(self, example: GlueExample) -> np.ndarray | None:
        if example.gold is None:
            return None
        if not self.layout.labels:
            return np.array(example.gold, np.float32)
        return np.array(self.layout.labels.index(example.gold), np.int64)

    def decode(
        self,
        examples: Sequence[GlueExample],
        features: Sequence[Feature],
        outputs: Sequence[np.ndarray],
    ) -> list[GluePrediction]:
        if not self.layout.labels:
            return [ValuePrediction(float(output[0])) for output in outputs]
        predictions: list[GluePrediction] = []
        for output in outputs:
            scores = dict(zip(self.layout.labels, softmax(output).tolist(), strict=True))
            predictions.append(LabelPrediction(self.layout.labels[int(output.argmax())], scores))
        return predictions

    def trivial_predictions(
        self, examples: Sequence[GlueExample]
    ) -> tuple[str, list[GluePrediction]] | None:
        """The label that most of them have; None for a regression."""
        gold = Counter(example.gold for example in examples if example.gold is not None)
        if not self.layout.labels or not gold:
            return None
        ((label, _),) = gold.most_common(1)
        return f"{label!r} everywhere", [LabelPrediction(label, {label: 1.0}) for _ in examples]

    def score(
        self, examples: Sequence[GlueExample], predictions: Sequence[GluePrediction]
    ) -> dict[str, float]:
        """What GLUE reports of the task; nothing where no example has a gold label."""
        gold, predicted = self._compared(examples, predictions)
        if not gold:
            return {}
        return measures(self.layout.measure, gold, predicted, len(self.layout.labels))

    def confusion(
        self, examples: Sequence[GlueExample], predictions: Sequence[GluePrediction]
    ) -> tuple[list[str], np.ndarray]:
        """How often each label was taken for each.

        Raises:
            ConfigError: a regression has no labels.
        """
        labels = self.layout.labels
        if not labels:
            return super().confusion(examples, predictions)
        return list(labels), confusion(*self._compared(examples, predictions), len(labels))

    def _compared(
        self, examples: Sequence[GlueExample], predictions: Sequence[GluePrediction]
    ) -> tuple[list[Any], list[Any]]:
        """Gold and predicted label numbers, or values, of the examples that have a gold one."""
        pairs = [
            (example.gold, prediction)
            for example, prediction in zip(examples, predictions, strict=True)
            if example.gold is not None
        ]
        labels = self.layout.labels
        if labels:
            predicted = [labels.index(prediction.label) for _, prediction in pairs]
            return [labels.index(gold) for gold, _ in pairs], predicted
        return [gold for gold, _ in pairs], [prediction.value for _, prediction in pairs]

    def as_json(self, example: GlueExample, prediction: GluePrediction) -> dict[str, Any]:
        """`label`, its probability `score` and those of all labels, `scores`; for sts-b `value`."""
        if isinstance(prediction, ValuePrediction):
            return {"value": prediction.value}
        score = prediction.scores[prediction.label]
        return {"label": prediction.label, "score": score, "scores": dict(prediction.scores)}

    def marked(self, example: GlueExample, prediction: GluePrediction) -> MarkedText:
        """The sentence, or both with a blank line between them; nothing in them is marked."""
        if isinstance(prediction, ValuePrediction):
            facts = [("score", f"{prediction.value:.3f}")]
        else:
            share = prediction.scores[prediction.label]
            facts = [("label", prediction.label), ("probability", f"{share:.3f}")]
        if example.gold is not None:
            facts.append(("gold", str(example.gold)))
        return MarkedText(example.id, "\n\n".join(example.texts), facts=tuple(facts))

    def write_predictions(
        self,
        path: Path,
        examples: Sequence[GlueExample],
        predictions: Sequence[GluePrediction],
    ) -> list[Path]:
        """The file the benchmark's site takes: index, tab, label or score with three decimals
        within the scale.

        Raises:
            StorageError: it cannot be written.
        """
        lines = ["index\tprediction"]
        for example, prediction in zip(examples, predictions, strict=True):
            if isinstance(prediction, ValuePrediction):
                shown = f"{min(max(prediction.value, LOWEST), HIGHEST):.3f}"
            else:
                shown = prediction.label
            lines.append(f"{example.id}\t{shown}")
        write_text(Path(path), "\n".join(lines) + "\n")
        return [Path(path)]


def cut_pair(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Two texts' pieces within `room`, popped from the longer, from b where they are equal.

    That ends with b whole or at half of the room, a likewise (run_glue's truncation).
    """
    first = min(len(a), max(room - len(b), (room + 1) // 2))
    return a[:first], b[: room - first]
