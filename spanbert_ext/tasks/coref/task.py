"""Coreference for the machinery that trains, evaluates and predicts."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref import conll, jsonlines
from spanbert_ext.tasks.coref.data import (
    Clusters,
    Document,
    Shared,
    Span,
    merged,
    without_singletons,
)
from spanbert_ext.tasks.coref.features import SegmentedDocument, segment
from spanbert_ext.tasks.coref.metrics import METRICS, CorefScorer
from spanbert_ext.tasks.coref.options import CorefOptions
from spanbert_ext.tasks.coref.resolve import (
    cluster_mentions,
    cluster_names,
    resolved_document,
    with_text,
)
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.task import DownstreamTask
from spanbert_ext.text import marks_blanks

logger = logging.getLogger("spanbert_ext")

_JSON_LINES = (".jsonl", ".jsonlines", ".json")
_CONTROL = re.compile("[\t\r\n]")
_ALONE = "alone"  # the colour of mentions that nothing refers to


@dataclass(frozen=True)
class LinkedSpans:
    """What the model says about a segmented document; the task's `outputs`.

    Args:
        clusters: of (first piece, last piece), inclusive.
        scores: mention score of each of these spans.
        is_finite: whether all numbers behind them are; without, there are no clusters.
    """

    clusters: list[list[Span]]
    scores: Mapping[Span, float]
    is_finite: bool = True


@dataclass(frozen=True)
class CorefPrediction:
    """Clusters of a document.

    Args:
        clusters: of words, sorted as `documents.sorted_clusters` sorts them.
        scores: mention score of each mention: the higher, the surer that it is one.
    """

    clusters: Clusters
    scores: Mapping[Span, float]


class CorefTask(DownstreamTask[Document, CorefPrediction]):
    """Which mentions of a document speak of the same thing.

    Its features are `SegmentedDocument`s, one for each document, and its outputs `LinkedSpans`.

    Args:
        name: coref.
        options: `CorefOptions`.
        facts: genres, which the training documents name, or null; blanks, whether the encoder reads
            words with the blanks between them, where its tokenizer sees any.
    """

    head = "coreference"
    takes_text = True
    length_option = "max_segment_len"
    gold_hint = "there is no cluster of mentions: is the coreference elsewhere?"
    options: CorefOptions

    def has_gold(self, example: Document) -> bool:
        """Whether there is a cluster."""
        return bool(example.clusters)

    @property
    def best_metric(self) -> str:
        """The CoNLL score; that with singletons where the model predicts them."""
        return "with_singletons.f1" if self.options.singletons else "f1"

    def read(self, path: str | Path, rejects: Rejects) -> list[Document]:
        """Documents of a JSON lines file (`jsonlines`, by its ending), or of CoNLL columns."""
        layout = jsonlines if Path(path).suffix in _JSON_LINES else conll
        return layout.read(path, rejects, self._shared)

    def parse(self, record: dict[str, Any], where: str) -> Document:
        """The document of a record with `text`, `words` or `sentences`; `id`, `genre`, and with
        words `speakers`, may be there too."""
        return jsonlines.document_of(record, where, self._shared)

    @property
    def _shared(self) -> Shared:
        # Clusters are joined for training alone (`features`); gold clusters are scored as they are.
        return "error" if self.options.shared == "error" else "keep"

    def learn(self, examples: Sequence[Document], tokenizer: Any) -> None:
        """Find the genres, and note that words are read with their blanks.

        Raises:
            DataError: the documents hold nothing to learn.
        """
        least = 1 if self.options.singletons else 2
        if not any(len(cluster) >= least for doc in examples for cluster in doc.clusters):
            what = "has a mention" if least == 1 else "has two mentions that corefer"
            raise DataError(f"none of the training documents {what}: nothing can be learned")
        genres = sorted({doc.genre for doc in examples} - {None})
        self.facts["genres"] = genres if len(genres) > 1 else None
        if marks_blanks(tokenizer):
            self.facts["blanks"] = True

    def labels(self) -> list[str]:
        """None."""
        return []

    def model_fields(self) -> dict[str, Any]:
        """The options of the model, as its configuration holds them."""
        return {"coref": self.options.model_options(self.facts.get("genres")).to_dict()}

    def features(self, examples: Sequence[Document], tokenizer: Any) -> list[SegmentedDocument]:
        """The documents in segments, clusters that share a mention joined."""
        return segment(
            [merged(document) for document in examples],
            tokenizer,
            self.options.max_segment_len,
            self.options.singletons,
            # Models of release 0.1.0 have learned words one by one.
            blanks=self.facts.get("blanks", False),
        )

    def decode(
        self,
        examples: Sequence[Document],
        features: Sequence[SegmentedDocument],
        outputs: Sequence[LinkedSpans],
    ) -> list[CorefPrediction]:
        """Clusters of words; of two spans of pieces with the same words the first counts."""
        return [self._decode(*pair) for pair in zip(features, outputs, strict=True)]

    def _decode(self, feature: SegmentedDocument, output: LinkedSpans) -> CorefPrediction:
        clusters = feature.word_clusters(output.clusters)
        if not self.options.singletons:
            clusters = without_singletons(clusters)
        scores: dict[Span, float] = {}
        for span in (span for cluster in output.clusters for span in cluster):
            scores.setdefault(feature.word_span(*span), output.scores[span])
        return CorefPrediction(clusters, scores)

    def trivial_predictions(
        self, examples: Sequence[Document]
    ) -> tuple[str, list[CorefPrediction]]:
        """No cluster."""
        return "no cluster anywhere", [CorefPrediction((), {}) for _ in examples]

    def score(
        self, examples: Sequence[Document], predictions: Sequence[CorefPrediction]
    ) -> dict[str, float]:
        """The CoNLL scores in percent.

        `f1` is the mean F1 of MUC, B-cubed and CEAF-e, and NAME.recall, NAME.precision and NAME.f1
        are those of each of them, of the mentions by themselves and of LEA, all without singletons,
        as OntoNotes is: whatever the data and the model, clusters of one mention are left out on
        both sides. `with_singletons.f1` and `with_singletons.NAME.f1` count every mention: what the
        official scorer says about the files as they are.
        """
        plain, every = CorefScorer(), CorefScorer()
        for document, prediction in zip(examples, predictions, strict=True):
            every.update(document.clusters, prediction.clusters)
            plain.update(*map(without_singletons, (document.clusters, prediction.clusters)))
        parts = ("recall", "precision", "f1")
        everything, result = every.result(), plain.result()
        of_all = ["f1", *(f"{name}.f1" for name in METRICS)]
        return (
            {"f1": result["f1"]}
            | {f"with_singletons.{name}": everything[name] for name in of_all}
            | {f"{name}.{part}": result[f"{name}.{part}"] for name in METRICS for part in parts}
        )

    def as_json(self, example: Document, prediction: CorefPrediction) -> dict[str, Any]:
        """`clusters`, lists of mentions: {text, start, end, score} with places in the record's
        text, the end exclusive; of a record of words {text, first, last, score} with its words,
        both inclusive. `resolved`, the text with mentions replaced, where the options ask for it.
        """
        places = ("first", "last") if example.text is None else ("start", "end")
        clusters = [
            [
                {"text": mention.text}
                | {name: getattr(mention, name) for name in places}
                | {"score": round(mention.score, 4)}
                for mention in cluster
            ]
            for cluster in cluster_mentions(example, prediction.clusters, prediction.scores)
        ]
        line: dict[str, Any] = {"clusters": clusters}
        if self.options.resolved:
            line["resolved"] = resolved_document(example, prediction.clusters)
        return line

    def marked(self, example: Document, prediction: CorefPrediction) -> MarkedText:
        """The text with a colour and a number for each cluster, and what the numbers stand for."""
        text, offsets = with_text(example)
        together = [cluster for cluster in prediction.clusters if len(cluster) > 1]
        numbers = {cluster: str(n) for n, cluster in enumerate(together, 1)}
        marks = []
        for cluster in prediction.clusters:
            label = numbers.get(cluster, "")
            for first, last in cluster:
                start, end = offsets[first][0], offsets[last][1]
                note = f"{prediction.scores[first, last]:.2f}"
                marks.append(Mark(start, end, label, label or _ALONE, note))
        named = zip(together, cluster_names(example, together), strict=True)
        by_size = sorted(named, key=lambda pair: -len(pair[0]))
        names = [(numbers[own], f"{numbers[own]} {name} ({len(own)})") for own, name in by_size]
        alone = len(prediction.clusters) - len(together)
        names += [(_ALONE, f"alone, in no cluster ({alone})")] if alone else []
        facts = (("clusters", str(len(together))), ("mentions", str(len(marks))))
        return MarkedText(example.id, text, tuple(marks), facts, tuple(names))

    def write_predictions(
        self, path: Path, examples: Sequence[Document], predictions: Sequence[CorefPrediction]
    ) -> list[Path]:
        """CoNLL columns under the names of the gold file, for the official scorer.

        A mention that crosses another one of its cluster, which the columns cannot express, is left
        out. Tabs and line ends in a word become `_`.
        """
        dropped = conll.write(path, _predicted(examples, predictions), crossing="drop")
        if dropped:
            logger.warning(
                "%s: %d mentions cross another one of their cluster, which CoNLL files cannot "
                "express; they were left out",
                path,
                dropped,
            )
        return [Path(path)]

    def plot(
        self, path: Path, examples: Sequence[Document], predictions: Sequence[CorefPrediction]
    ) -> None:
        """Mention scores of the mentions that are in the gold standard, and of the others.

        No threshold is drawn: a mention is in a cluster by the score of a link; its own must be
        above 0 only where it stands alone.
        """
        from spanbert_ext.tasks.plots import score_plot

        scores: tuple[list[float], list[float]] = [], []
        for document, prediction in zip(examples, predictions, strict=True):
            gold = {span for cluster in document.clusters for span in cluster}
            for span in (span for cluster in prediction.clusters for span in cluster):
                scores[span not in gold].append(prediction.scores[span])
        title = f"{self.name}: mentions found, right where the gold standard has them too"
        score_plot(*scores, path, quantity="mention score", title=title)


def _predicted(
    examples: Sequence[Document], predictions: Sequence[CorefPrediction]
) -> Iterable[Document]:
    for document, prediction in zip(examples, predictions, strict=True):
        words, speakers = (
            None if texts is None else tuple(text and _CONTROL.sub("_", text) for text in texts)
            for texts in (document.words, document.speakers)
        )
        yield dataclasses.replace(
            document, words=words, speakers=speakers, clusters=prediction.clusters
        )


def task_of_model(config: Any) -> CorefTask:
    """The task of a coreference model that stores none.

    Args:
        config: of the model.

    Raises:
        DataError: it is no coreference model.
    """
    fields = getattr(config, "coref", None)
    if not isinstance(fields, dict):
        raise DataError("the model is none for coreference: its configuration has no field 'coref'")
    length = min(CorefOptions.max_segment_len, config.max_position_embeddings)
    options = CorefOptions(**fields, max_segment_len=length)
    options.validate()
    return CorefTask("coref", options, {"genres": options.genres, "blanks": True})
