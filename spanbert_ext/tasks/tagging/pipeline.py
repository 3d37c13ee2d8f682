"""Entities and spans of texts with a fine-tuned model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample, WordSplitter, text_example
from spanbert_ext.tasks.tagging.schemes import Span, Tag
from spanbert_ext.tasks.tagging.spans import bilou_scores, bio_scores, choose
from spanbert_ext.tasks.tagging.task import Entity, Tagging, TaggingTask, entity_of
from spanbert_ext.text import units

if TYPE_CHECKING:
    from spanbert_ext.tasks.predictor import Predictor


class SpanTagger:
    """Finds entities in texts.

    Args:
        model: a fine-tuned model's folder or name, a plain Hugging Face token classifier with tags
            of BIO, IOB1 or BIOES, or a `Predictor`.
        device: auto, cpu, cuda or cuda:N.
        split: takes a text apart into words, as [start, end) in characters; by default by rule
            (`spanbert_ext.text.units`).

    Raises:
        ConfigError: the model tags something else.
        DataError, StorageError: there is no such model, or a damaged one.
    """

    def __init__(
        self,
        model: str | Path | Predictor,
        device: str = "auto",
        split: WordSplitter = units,
    ):
        if isinstance(model, (str, os.PathLike)):
            from spanbert_ext.tasks.predictor import Predictor

            model = Predictor.load(model, device=device, default=task_of_model, fine_tune="ner")
        if not isinstance(model.task, TaggingTask):
            raise ConfigError(
                f"the model was fine-tuned for {model.task.name}, not for tagging; fine-tune one "
                "with spanbert finetune ner"
            )
        self._predictor, self._split = model, split
        self._task: TaggingTask = model.task

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        words: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> list[Entity] | list[list[Entity]]:
        """The entities of a text, or of each of several, in order of their places.

        Args:
            text: one or several; `text[entity.start:entity.end] == entity.text`.
            words: in its place, the words of one sentence or of several; places are words then.

        Raises:
            ConfigError: neither is given, or both.
        """
        examples, single = self._examples(text, words)
        taggings = self._predictor(examples)
        found = [self._task.entities(x, y) for x, y in zip(examples, taggings, strict=True)]
        return found[0] if single else found

    def spans(
        self,
        text: str | Sequence[str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        max_words: int = 10,
        overlapping: bool = False,
        words: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> list[Entity] | list[list[Entity]]:
        """The most probable spans of a text, or of each of several, best first.

        The score is the probability that exactly these words are an entity of this type, the tags
        of different words taken as independent (`tagging.spans` has the formula). It answers "is
        this a span?" with a model of a single type. A model that learned IOB1 marks beginnings
        only between neighbours, so that most of its spans get almost nothing.

        Args:
            threshold: least score; 0.5 where `top_k` is not given either.
            top_k: most spans of a text.
            max_words: longest span.
            overlapping: whether spans may share words.

        Raises:
            ConfigError: an argument out of range, or a model whose tags do not say where an entity
                begins.
        """
        for name, value in (("top_k", top_k), ("max_words", max_words)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1; got {value}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: must be in 0..1; got {threshold}")
        if threshold is None and top_k is None:
            threshold = 0.5
        types, labels = self._letters()
        examples, single = self._examples(text, words)
        found = []
        for example, tagging in zip(examples, self._predictor(examples), strict=True):
            scores = self._span_scores(example, tagging, labels, max_words)
            chosen = choose(scores, threshold, top_k, overlapping)
            spans = [Span(start, stop, types[kind]) for kind, start, stop, _ in chosen]
            found.append(
                [
                    entity_of(example, span, score)
                    for span, (*_, score) in zip(
                        tagging.in_words(example, spans), chosen, strict=True
                    )
                ]
            )
        return found[0] if single else found

    def _examples(self, text, words) -> tuple[list[TaggedExample], bool]:
        if (text is None) == (words is None):
            raise ConfigError("give either a text or words")
        if words is None:
            single = isinstance(text, str)
            texts = [text] if single else list(text)
            named = enumerate(texts)
            return [text_example(f"text {n}", own, self._split) for n, own in named], single
        if isinstance(words, str) or any(
            isinstance(own, str) != isinstance(words[0], str) for own in words
        ):
            raise ConfigError("words: expected a list of words, or a list of such lists")
        single = not words or isinstance(words[0], str)
        lists = [words] if single else words
        return [TaggedExample(f"words {n}", tuple(own)) for n, own in enumerate(lists)], single

    def _letters(self) -> tuple[list[str], list[dict[str, int]]]:
        """The entity types, and for each the outputs of the head by letter."""
        tags = self._task.model_tags()
        types = sorted({tag.type for tag in tags} - {""})
        needed = "BILU" if self._task.options.scheme == "bilou" else "BI"
        labels = [
            {
                letter: tags.index(Tag(letter, kind))
                for letter in needed
                if Tag(letter, kind) in tags
            }
            for kind in types
        ]
        for kind, own in zip(types, labels, strict=True):
            if "B" not in own:
                raise ConfigError(
                    f"the model has no label B-{kind}: its tags do not say where an entity begins, "
                    "so spans have no probability; call the tagger itself"
                )
        return types, labels

    def _span_scores(
        self,
        example: TaggedExample,
        tagging: Tagging,
        labels: list[dict[str, int]],
        max_words: int,
    ) -> np.ndarray:
        """[types, words, max_words] float64."""
        probabilities = np.exp(tagging.log_probabilities.astype(np.float64))
        sentences = tagging.sentence_ranges(example)
        never = np.zeros(len(probabilities))
        scores = np.zeros((len(labels), len(probabilities), max_words))
        for kind, own in enumerate(labels):
            by = {x: probabilities[:, own[x]] if x in own else never for x in "BILU"}
            if self._task.options.scheme == "bilou":
                scores[kind] = bilou_scores(by, sentences, max_words)
            else:
                scores[kind] = bio_scores(by["B"], by["I"], sentences, max_words)
        return scores


def task_of_model(config: Any) -> TaggingTask:
    """The task of a plain Hugging Face token classifier, from its `id2label`.

    Labels say BIO or BILOU but not whether the model learned IOB1, which has the same letters; so
    each word takes its best tag and the rules of `tagging.schemes`, which read both, do the rest.

    Args:
        config: of the model.

    Raises:
        ConfigError: a label is no tag.
    """
    labels = [config.id2label[number] for number in range(len(config.id2label))]
    task = TaggingTask("ner", TaggingOptions(), {"labels": labels})
    tags = task.model_tags()
    options = TaggingOptions(
        scheme="bilou" if any(tag.letter in "LU" for tag in tags) else "bio",
        length=min(TaggingOptions.length, config.max_position_embeddings),
        constrained=False,
    )
    types = sorted({tag.type for tag in tags} - {""})
    facts = {"labels": labels, "types": types, "blanks": True}
    return TaggingTask("ner", options, facts)
