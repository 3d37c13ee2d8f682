"""Relation classification as the machinery of fine-tuning sees it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.files import write_text
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.relation import data, metrics, symbols
from spanbert_ext.tasks.relation.data import RelationExample
from spanbert_ext.tasks.relation.features import InputBuilder
from spanbert_ext.tasks.scores import confusion, softmax
from spanbert_ext.tasks.task import DownstreamTask, Feature, Head
from spanbert_ext.text import marks_blanks

logger = logging.getLogger("spanbert_ext")

_MOST_NAMES = 20  # of types, in a warning


@dataclass(frozen=True, slots=True)
class RelationPrediction:
    """What the model says of a pair.

    Args:
        label: the most probable one.
        score: its probability.
        scores: [labels] float32, probabilities of all labels in the task's order.
    """

    label: str
    score: float
    scores: np.ndarray


class RelationTask(DownstreamTask[RelationExample, RelationPrediction]):
    """TACRED and data like it: one label for a pair of entities (paper section 4.1).

    Facts: `labels`, the null label first, then by their frequency in training; `symbols`, the token
    of each symbol for an entity's place or type; `blanks`, whether the encoder reads words with the
    blanks between them, where its tokenizer sees any.
    """

    head: ClassVar[Head] = "sequence-classification"
    best_metric = "f1"
    predictions_by_id = False

    def __init__(self, name: str, options: Any, facts: dict[str, Any] | None = None):
        super().__init__(name, options, facts)
        # Said once each, however many parts a file is predicted in.
        self._said_types: set[str] = set()
        self._said_shortened = False

    def read(self, path: str | Path, rejects: Rejects) -> list[RelationExample]:
        """Examples of a TACRED file, or of a JSON list of records with text and offsets.

        Once labels are learned, a record with another one cannot be used.

        Raises:
            DataError: the file is no JSON list, or `rejects` says so.
        """
        examples: list[RelationExample] = []
        seen: dict[str, int] = {}
        known = set(self.facts.get("labels", ()))
        for number, record in enumerate(data.load_records(path)):
            id, reason = data.identifier(record, str(number)), ""
            try:
                example = data.example_of(record, id, self.options.needs_types, True)
            except DataError as error:
                reason = str(error)
            else:
                if id in seen:
                    reason = f"its id is also that of [{seen[id]}]"
                elif known and example.relation not in known:
                    reason = f"relation: {example.relation!r} was not seen in training"
            if reason:
                rejects.add(id, f"{path}: [{number}]", reason, data.excerpt_of(record))
                continue
            seen[id] = number
            examples.append(example)
        rejects.check(path, len(examples))
        return examples

    def parse(self, record: dict[str, Any], where: str) -> RelationExample:
        """The example of a record with tokens (TACRED) or with text and offsets (`reading`).

        A gold label that the model cannot predict is left out.

        Raises:
            DataError: a field is missing or impossible, types that the model is shown among them.
        """
        id = data.identifier(record, where)
        try:
            example = data.example_of(record, id, needs_types=False, needs_relation=False)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        tokens = example.raw is None
        for role, type, field in (
            ("SUBJ", example.subject_type, "subj_type" if tokens else "subject_type"),
            ("OBJ", example.object_type, "obj_type" if tokens else "object_type"),
        ):
            if type is None and self.options.needs_types:
                known = ", ".join(symbols.known_types(self.facts.get("symbols", {}), role))
                raise DataError(
                    f"{where}: the field {field} is missing; this model is shown the types of both "
                    f"entities and knows {known or 'none yet'}"
                )
        unknown = example.relation not in (None, *self.facts.get("labels", ()))
        return replace(example, relation=None) if unknown else example

    def learn_labels(self, examples: Sequence[RelationExample]) -> None:
        """Fix the order of labels.

        Raises:
            DataError: fewer than two labels.
        """
        null = self.options.null_label
        counts = Counter(example.relation for example in examples if example.relation is not None)
        if len(counts) < 2:
            raise DataError(
                f"there is nothing to learn: the training pairs have the labels {sorted(counts)}; "
                "at least two are needed"
            )
        if null is not None and null not in counts:
            logger.warning(
                "no pair has the label %r (--relation.null_label); precision, recall and F1 count "
                "every label",
                null,
            )
        relations = [label for label in counts if label != null]
        first = [] if null is None else [null]
        self.facts["labels"] = first + sorted(relations, key=lambda label: (-counts[label], label))

    def learn(self, examples: Sequence[RelationExample], tokenizer: Any) -> None:
        """Fix the order of labels and the token of every symbol; words are read with their blanks.

        Raises:
            DataError: as `learn_labels`.
        """
        self.learn_labels(examples)
        types: list[set[str]] = [set(), set()]
        if self.options.needs_types:
            types[0].update(e.subject_type for e in examples if e.subject_type is not None)
            types[1].update(e.object_type for e in examples if e.object_type is not None)
        self.facts["symbols"] = symbols.choose(tokenizer, *types)
        if marks_blanks(tokenizer):
            self.facts["blanks"] = True

    def labels(self) -> list[str]:
        """The null label, if there is one, then relations from frequent to rare."""
        return list(self.facts["labels"])

    def features(self, examples: Sequence[RelationExample], tokenizer: Any) -> list[Feature]:
        """One sequence for each example; all segment ids are 0.

        Raises:
            DataError: a gold label that training has not seen, a missing type, another tokenizer.
        """
        blanks = self.facts.get("blanks", False)  # models of release 0.1.0 learned single words
        build = InputBuilder(self.options, self.facts["symbols"], tokenizer, blanks)
        place = {label: np.int64(n) for n, label in enumerate(self.facts["labels"])}
        self._warn_of_types(examples)
        features, shortened = [], 0
        for number, (ids, dropped) in enumerate(build(examples)):
            shortened += dropped > 0
            gold = examples[number].relation
            if gold is not None and gold not in place:
                raise DataError(
                    f"record {examples[number].id}: relation: {gold!r} was not seen in training"
                )
            labels = None if gold is None else np.asarray(place[gold])
            features.append(Feature(example=number, input_ids=ids, labels=labels))
        if shortened and not self._said_shortened:
            self._said_shortened = True
            logger.info(
                "%d of %d sentences are longer than %d pieces and were shortened around their "
                "entities",
                shortened,
                len(examples),
                build.length,
            )
        return features

    def _warn_of_types(self, examples: Sequence[RelationExample]) -> None:
        if not self.options.needs_types:
            return
        subjects, objects = (
            set(symbols.known_types(self.facts["symbols"], role)) for role in symbols.ROLES
        )
        unseen = {e.subject_type for e in examples} - subjects
        unseen |= {e.object_type for e in examples} - objects
        if names := sorted(unseen - self._said_types - {None}):
            self._said_types.update(names)
            logger.warning(
                "training has not seen these types in their role, and the model reads them all as "
                "one: %s%s",
                ", ".join(n if n.isprintable() else repr(n) for n in names[:_MOST_NAMES]),
                f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "",
            )

    def decode(
        self,
        examples: Sequence[RelationExample],
        features: Sequence[Feature],
        outputs: Sequence[np.ndarray],
    ) -> list[RelationPrediction]:
        """The most probable label of each example; of equal ones the first."""
        if not examples:
            return []
        logits = np.empty((len(examples), len(self.facts["labels"])), np.float64)
        for feature, output in zip(features, outputs, strict=True):
            logits[feature.example] = output
        scores = softmax(logits).astype(np.float32)
        best = logits.argmax(axis=1)
        return [
            RelationPrediction(self.facts["labels"][n], float(row[n]), row)
            for n, row in zip(best, scores, strict=True)
        ]

    def trivial_predictions(
        self, examples: Sequence[RelationExample]
    ) -> tuple[str, list[RelationPrediction]]:
        """The label that most of them have."""
        ((label, _),) = Counter(example.relation for example in examples).most_common(1)
        scores = np.zeros(0, np.float32)
        return f"{label!r} everywhere", [RelationPrediction(label, 1.0, scores) for _ in examples]

    def score(
        self, examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]
    ) -> dict[str, float]:
        """Micro precision, recall and F1 without the null label (TACRED scorer), and accuracy."""
        gold, guessed = _labels(examples, predictions)
        total = metrics.micro(metrics.per_relation(gold, guessed, self.options.null_label).values())
        right = sum(a == b for a, b in zip(gold, guessed, strict=True))
        return {
            "f1": total.f1,
            "precision": total.precision,
            "recall": total.recall,
            "accuracy": 100.0 * right / len(gold) if gold else 0.0,
        }

    def per_relation(
        self, examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]
    ) -> dict[str, metrics.RelationScore]:
        """Counts, precision, recall and F1 of every relation that occurs."""
        return metrics.per_relation(*_labels(examples, predictions), self.options.null_label)

    def confusion(
        self, examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]
    ) -> tuple[list[str], np.ndarray]:
        """How often each label was taken for each.

        Returns:
            Names, and [names, names] int64 counts with gold labels in rows.
        """
        gold, guessed = _labels(examples, predictions)
        names = [*self.labels(), *sorted({*gold, *guessed} - set(self.labels()))]
        ids = {name: id for id, name in enumerate(names)}
        pairs = ([ids[label] for label in side] for side in (gold, guessed))
        return names, confusion(*pairs, len(names))

    def as_json(self, example: RelationExample, prediction: RelationPrediction) -> dict[str, Any]:
        """The label and its probability."""
        return {"label": prediction.label, "score": prediction.score}

    def marked(self, example: RelationExample, prediction: RelationPrediction) -> MarkedText:
        """The sentence with its subject and object, under the predicted label."""
        marks = [
            Mark(*example.characters(span), label=f"{role} {type}" if type else role, group=role)
            for role, span, type in (
                ("subject", example.subject, example.subject_type),
                ("object", example.object, example.object_type),
            )
        ]
        facts = [("relation", prediction.label), ("probability", f"{prediction.score:.3f}")]
        if example.relation is not None:
            facts.append(("gold", example.relation))
        title = f"{example.id}: {prediction.label}"
        return MarkedText(title, example.text, tuple(marks), tuple(facts))

    def write_predictions(
        self,
        path: Path,
        examples: Sequence[RelationExample],
        predictions: Sequence[RelationPrediction],
    ) -> list[Path]:
        """A label a line, as TACRED's scorer reads them; the ids of the examples likewise in
        NAME_ids.SUFFIX."""
        path = Path(path)
        ids = path.with_name(f"{path.stem}_ids{path.suffix}")
        write_text(path, "".join(f"{prediction.label}\n" for prediction in predictions))
        write_text(ids, "".join(f"{example.id}\n" for example in examples))
        return [path, ids]


def _labels(
    examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]
) -> tuple[list[str], list[str]]:
    return [example.relation for example in examples], [p.label for p in predictions]
