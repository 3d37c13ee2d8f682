"""Tagging as a task: entities of types, or any other labelled spans of words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.files import write_text
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.scores import log_softmax
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.data import read_conll
from spanbert_ext.tasks.tagging.decode import Transitions
from spanbert_ext.tasks.tagging.example import TaggedExample, text_example
from spanbert_ext.tasks.tagging.features import IGNORED, counted_in, features_of, sentence_ranges
from spanbert_ext.tasks.tagging.metrics import entity_scores, word_confusion
from spanbert_ext.tasks.tagging.schemes import (
    Span,
    Tag,
    label_names,
    parse_tag,
    spans_of,
    tag_text,
    tags_of,
)
from spanbert_ext.tasks.tagging.windows import Window
from spanbert_ext.tasks.task import DownstreamTask, Feature
from spanbert_ext.text import marks_blanks, tokenise_words, units

_BLANK = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled span as users see it.

    Args:
        start, end: characters of the text, end exclusive; words where words were given.
        type: as the training data has it.
        text: `text[start:end]`; the words with blanks between them where words were given.
        score: in [0, 1].
    """

    start: int
    end: int
    type: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Tagging:
    """What the model says of an example.

    Args:
        spans: in words, ascending, none crosses a sentence.
        scores: of each span, the mean probability of its words' tags, in [0, 1].
        log_probabilities: [words, labels] float32.
        words: [w] int64, the words that `log_probabilities` has, where several words are one token
            (in scripts without blanks): the others go with the one before. None: every word.
    """

    spans: tuple[Span, ...]
    scores: tuple[float, ...]
    log_probabilities: np.ndarray
    words: np.ndarray | None = None

    def sentence_ranges(self, example: TaggedExample) -> list[tuple[int, int]]:
        """Those of the example, in the words of `log_probabilities`."""
        return sentence_ranges(example, self.words)

    def in_words(self, example: TaggedExample, spans: Sequence[Span]) -> list[Span]:
        """Spans in the words of `log_probabilities` as spans in words of the example."""
        if self.words is None or not spans:
            return list(spans)
        bounds = np.append(self.words, len(example.words))
        # A token that reaches into the next sentence ends with its own.
        ends = np.append(example.sentences, len(example.words))
        found = []
        for start, end, kind in spans:
            first = int(bounds[start])
            last = min(bounds[end], ends[np.searchsorted(ends, bounds[end - 1], side="right")])
            found.append(Span(first, int(last), kind))
        return found


class TaggingTask(DownstreamTask[TaggedExample, Tagging]):
    """Finds entities by a tag for every word, read from its first piece (BERT section 5.3).

    Facts: `labels` in the order of the head's outputs, and the entity `types`, sorted; `blanks`,
    whether the encoder reads words with the blanks between them, where its tokenizer sees any.
    """

    head = "token-classification"
    confusion_unit = "words"
    takes_text = True
    best_metric = "f1"
    predictions_by_id = False
    gold_hint = "every tag is O: is tagging.tag_column right?"
    options: TaggingOptions

    def has_gold(self, example: TaggedExample) -> bool:
        """Whether there is an entity."""
        return any(tag != "O" for tag in example.tags or ())

    def read(self, path: str | Path, rejects: Rejects) -> list[TaggedExample]:
        """The documents of a CoNLL file (`tagging.reading`)."""
        return read_conll(path, self.options, rejects, self.facts.get("types"))

    def parse(self, record: dict[str, Any], where: str) -> TaggedExample:
        """The example of `{"text": ...}` or `{"words": [...]}`, each with an `id` or without."""
        id = where if record.get("id") is None else str(record["id"])
        text, words = record.get("text"), record.get("words")
        if (text is None) == (words is None):
            there = ", ".join(repr(str(name)[:40]) for name in list(record)[:8]) or "none"
            raise DataError(
                f"{where}: expected one of the fields 'text' and 'words'; fields there: {there}"
            )
        if words is None:
            if not isinstance(text, str):
                raise DataError(f"{where}: 'text' must be text; got {type(text).__name__}")
            return text_example(id, text, units)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{where}: 'words' must be a list of texts")
        return TaggedExample(id, tuple(words))

    def learn_labels(self, examples: Sequence[TaggedExample]) -> None:
        """Find the entity types; the labels are every tag that the scheme has for them."""
        types = {
            tag.type for example in examples for tag in map(parse_tag, example.tags or ()) if tag
        } - {""}
        if not types:
            raise DataError(
                "the training data has no entity, every tag is O; is tagging.tag_column right?"
            )
        self.facts["types"] = sorted(types)
        self.facts["labels"] = label_names(types, self.options.scheme)

    def learn(self, examples: Sequence[TaggedExample], tokenizer: Any) -> None:
        """The labels, and that words are read with their blanks."""
        self.learn_labels(examples)
        if marks_blanks(tokenizer):
            self.facts["blanks"] = True

    def labels(self) -> list[str]:
        """Tags in the order of the head's outputs."""
        return self.facts["labels"]

    def model_tags(self) -> list[Tag]:
        """The labels taken apart.

        Raises:
            ConfigError: one is no tag.
        """
        tags = []
        for label in self.labels():
            tag = parse_tag(label)
            if tag is None:
                raise ConfigError(
                    f"the model's label {label!r} is no tag of BIO or BILOU (O, B-PER, I-PER, ...)"
                )
            tags.append(tag)
        return tags

    def features(self, examples: Sequence[TaggedExample], tokenizer: Any) -> list[Feature]:
        """Windows over every example; a gold tag is in one of them, and ignored in the others."""
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        if cls is None or sep is None:
            raise ConfigError("the tokenizer has no [CLS] and [SEP]; tagging frames windows so")
        tokens = tokenise_words(
            [(x.words, x.text, x.offsets) for x in examples],
            tokenizer,
            # Models of release 0.1.0 have learned words one by one.
            blanks=self.facts.get("blanks", False),
        )
        numbers = {tag: number for number, tag in enumerate(self.model_tags())}
        features: list[Feature] = []
        for place, (example, own) in enumerate(zip(examples, tokens, strict=True)):
            own = own.shortened(self.options.length - 2)
            words = np.flatnonzero(~own.shared) if own.shared.any() else None
            labels = self._label_ids(example, words, numbers)
            features += features_of(place, example, own, words, labels, (cls, sep), self.options)
        return features

    def _label_ids(
        self, example: TaggedExample, words: np.ndarray | None, numbers: dict[Tag, int]
    ) -> np.ndarray | None:
        """The gold tags in the model's labels, [w] int64; those it does not have are ignored.

        Args:
            words: of the example, that get one; None: all.
        """
        if example.tags is None:
            return None
        ids = []
        gold = map(parse_tag, example.tags)
        ranges = zip(example.sentence_ranges(), sentence_ranges(example, words), strict=True)
        for (start, stop), (first, last) in ranges:
            spans = spans_of(itertools.islice(gold, stop - start), first=start)
            spans = [
                Span(max(own.start, first) - first, own.end - first, own.type)
                for own in counted_in(words, spans)
            ]
            tags = tags_of(spans, last - first, self.options.scheme)
            ids += [numbers.get(tag, IGNORED) for tag in tags]
        return np.array(ids, dtype=np.int64)

    def decode(
        self,
        examples: Sequence[TaggedExample],
        features: Sequence[Feature],
        outputs: Sequence[np.ndarray],
    ) -> list[Tagging]:
        """The entities of each example, whatever windows its words were read in."""
        tags = self.model_tags()
        words: list[np.ndarray | None] = [None] * len(examples)
        for feature in features:
            words[feature.example] = feature.place.words
        scores = [
            np.zeros((len(x.words if own is None else own), len(tags)), dtype=np.float32)
            for x, own in zip(examples, words, strict=True)
        ]
        for feature, logits in zip(features, outputs, strict=True):
            window: Window = feature.place
            own = slice(window.first - window.start, window.last - window.start)
            scores[feature.example][window.first : window.last] = log_softmax(logits[own])
        constrained = self.options.constrained
        transitions = Transitions(tags, self.options.scheme) if constrained else None
        return [
            self._tagging(example, Tagging((), (), *own), tags, transitions)
            for example, *own in zip(examples, scores, words, strict=True)
        ]

    def _tagging(
        self,
        example: TaggedExample,
        found: Tagging,
        tags: list[Tag],
        transitions: Transitions | None,
    ) -> Tagging:
        spans: list[Span] = []
        scores = found.log_probabilities
        path = np.zeros(len(scores), dtype=np.int64)
        for start, stop in found.sentence_ranges(example):
            own = scores[start:stop]
            path[start:stop] = transitions.best_path(own) if transitions else own.argmax(axis=1)
            chosen = (tags[label] for label in path[start:stop])
            spans += spans_of(chosen, self.options.repair, start)
        sure = np.exp(np.take_along_axis(scores, path[:, None], axis=1)[:, 0].astype(np.float64))
        means = tuple(float(sure[span.start : span.end].mean()) for span in spans)
        return replace(found, spans=tuple(found.in_words(example, spans)), scores=means)

    def trivial_predictions(self, examples: Sequence[TaggedExample]) -> tuple[str, list[Tagging]]:
        """No entity."""
        nothing = Tagging((), (), np.zeros((0, 0), np.float32))
        return "no entity anywhere", [nothing for _ in examples]

    def score(
        self, examples: Sequence[TaggedExample], predictions: Sequence[Tagging]
    ) -> dict[str, float]:
        """Precision, recall and F1 over entities (`tagging.metrics`)."""
        return entity_scores(
            (gold_spans(example), prediction.spans)
            for example, prediction in zip(examples, predictions, strict=True)
        )

    def confusion(
        self, examples: Sequence[TaggedExample], predictions: Sequence[Tagging]
    ) -> tuple[list[str], np.ndarray]:
        """How often a word of each type was taken for each."""
        return word_confusion(
            [gold_spans(example) for example in examples],
            [prediction.spans for prediction in predictions],
            [len(example.words) for example in examples],
        )

    def entities(self, example: TaggedExample, prediction: Tagging) -> list[Entity]:
        """The predicted spans in the coordinates of what was given."""
        found = zip(prediction.spans, prediction.scores, strict=True)
        return [entity_of(example, span, score) for span, score in found]

    def as_json(self, example: TaggedExample, prediction: Tagging) -> dict[str, Any]:
        """Entities; places are characters for a text, words for words."""
        return {
            "entities": [
                {
                    "start": entity.start,
                    "end": entity.end,
                    "type": entity.type,
                    "text": entity.text,
                    "score": entity.score,
                }
                for entity in self.entities(example, prediction)
            ]
        }

    def marked(self, example: TaggedExample, prediction: Tagging) -> MarkedText:
        """The text, or a line for each sentence, with the entities."""
        text, offsets = example.text, example.offsets
        if text is None or offsets is None:
            text, offsets = _lines_of(example)
        marks = tuple(
            Mark(offsets[start][0], offsets[end - 1][1], kind, note=f"{score:.3f}")
            for (start, end, kind), score in zip(prediction.spans, prediction.scores, strict=True)
        )
        return MarkedText(example.id, text, marks)

    def write_predictions(
        self, path: Path, examples: Sequence[TaggedExample], predictions: Sequence[Tagging]
    ) -> list[Path]:
        """Word, gold tag and predicted tag in BIO, parted by single blanks, a blank line behind
        each sentence, as conlleval reads them; blanks inside a word or a type become `_`."""
        parts = []
        for example, prediction in zip(examples, predictions, strict=True):
            count = len(example.words)
            gold = example.tags or ("O",) * count
            found = map(tag_text, tags_of(prediction.spans, count))
            rows = list(zip(example.words, gold, found, strict=True))
            for start, stop in example.sentence_ranges():
                parts += [" ".join(map(_cell, row)) + "\n" for row in rows[start:stop]]
                parts.append("\n")
        write_text(Path(path), "".join(parts))
        return [Path(path)]


def _cell(text: str) -> str:
    """What conlleval takes for one column; a first column -X- would be the end of a sentence."""
    return "_X_" if text == "-X-" else _BLANK.sub("_", text) or "_"


def gold_spans(example: TaggedExample) -> list[Span]:
    """The gold spans of an example, in words.

    Raises:
        DataError: it has no gold tags.
    """
    if example.tags is None:
        raise DataError(f"{example.id}: it has no gold tags, so it cannot be scored")
    tags = [parse_tag(tag) for tag in example.tags]
    return [
        span
        for start, stop in example.sentence_ranges()
        for span in spans_of(tags[start:stop], first=start)
    ]


def entity_of(example: TaggedExample, span: Span, score: float) -> Entity:
    """A span in the coordinates of what was given."""
    if example.text is None or example.offsets is None:
        text = " ".join(example.words[span.start : span.end])
        return Entity(span.start, span.end, span.type, text, score)
    start, end = example.offsets[span.start][0], example.offsets[span.end - 1][1]
    return Entity(start, end, span.type, example.text[start:end], score)


def _lines_of(example: TaggedExample) -> tuple[str, list[tuple[int, int]]]:
    """The words with blanks between them, a line for each sentence, and where they are."""
    last = {stop - 1 for _, stop in example.sentence_ranges()}
    parts, offsets, place = [], [], 0
    for number, word in enumerate(example.words):
        offsets.append((place, place + len(word)))
        parts += [word, "\n" if number in last else " "]
        place += len(word) + 1
    return "".join(parts[:-1]), offsets
