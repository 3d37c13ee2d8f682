"""Ask a fine-tuned model for the relation between two stretches of a text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.relation.task import RelationPrediction, RelationTask

if TYPE_CHECKING:
    from spanbert_ext.tasks.predictor import Predictor


class RelationClassifier:
    """Classifies pairs of entities.

    Args:
        model: folder or hub name of a model that `spanbert finetune tacred` has written, or a
            loaded `Predictor`.
        device: auto, cpu, cuda or cuda:N; a loaded `Predictor` stays where it is.

    Raises:
        ConfigError: the model was trained for another task.
        DataError, StorageError: the folder holds no model, or a damaged one.
    """

    def __init__(self, model: str | os.PathLike | Predictor, device: str = "auto"):
        if isinstance(model, (str, os.PathLike)):
            # Only here: it brings torch.
            from spanbert_ext.tasks.predictor import Predictor

            model = Predictor.load(model, device=device, fine_tune="tacred")
        if not isinstance(model.task, RelationTask):
            raise ConfigError(
                f"model: it was trained for {model.task.name}, not to classify relations; "
                "fine-tune one with spanbert finetune tacred"
            )
        self._predictor = model

    @property
    def labels(self) -> list[str]:
        """Every label that can come out."""
        return self._predictor.task.labels()

    def __call__(
        self,
        text: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        subject: tuple[int, int] | None = None,
        object: tuple[int, int] | None = None,
        subject_type: str | None = None,
        object_type: str | None = None,
        top_k: int = 1,
    ) -> dict[str, Any] | list[Any]:
        """The relation of a pair, or of each of several.

        Args:
            text: a sentence, with the other arguments; or a record, or several, that hold text and
                arguments under these names, or tokens as TACRED has them.
            subject, object: characters of the entities, end exclusive.
            subject_type, object_type: as in the training data; needed unless the model was trained
                with `--relation.input marker`. Types it has not seen share one symbol.
            top_k: how many labels, most probable first; fewer where there are fewer.

        Returns:
            `{"label", "score"}`, with top_k > 1 a list of them; of several records a list of that.

        Raises:
            DataError: an argument or field is missing or impossible; says which.
            ConfigError: top_k is out of range, or arguments come with records.
        """
        if top_k < 1:
            raise ConfigError(f"top_k: must be at least 1; got {top_k}")
        own = {
            "subject": subject,
            "object": object,
            "subject_type": subject_type,
            "object_type": object_type,
        }
        given = {name: value for name, value in own.items() if value is not None}
        if isinstance(text, str):
            text = {"text": text, **given}
        elif given:
            raise ConfigError(f"{', '.join(given)}: belongs into the records where these are given")
        single = isinstance(text, Mapping)
        records = [text] if single else list(text)
        task = self._predictor.task
        names = ["the input"] if single else [f"record {n}" for n in range(len(records))]
        examples = [task.parse(r, name) for r, name in zip(records, names, strict=True)]
        answers = [self._answer(p, top_k) for p in self._predictor(examples)]
        return answers[0] if single else answers

    def _answer(self, prediction: RelationPrediction, top_k: int) -> dict[str, Any] | list[Any]:
        if top_k == 1:
            return {"label": prediction.label, "score": prediction.score}
        order = np.argsort(-prediction.scores, kind="stable")[:top_k]
        return [{"label": self.labels[n], "score": float(prediction.scores[n])} for n in order]
