"""Coreference from Python: clusters of texts of any length, and texts with their references
resolved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.coref.data import Document, Span, cut_sentences, from_text, from_words
from spanbert_ext.tasks.coref.resolve import Mention, cluster_mentions, resolved_document
from spanbert_ext.tasks.coref.task import CorefTask, task_of_model

if TYPE_CHECKING:
    from spanbert_ext.tasks.predictor import Predictor


@dataclass(frozen=True)
class CorefResult:
    """The clusters of one document.

    Args:
        document: its words, as `words`, their sentences, and the text where there is one.
        clusters: mentions in the order of the document, clusters in that of their first mentions.
            For a text, `text[m.start:m.end] == m.text`; `words[m.first : m.last + 1]` always.
    """

    document: Document
    clusters: list[list[Mention]]

    @property
    def text(self) -> str | None:
        """As it came; None where words came."""
        return self.document.text

    @property
    def words(self) -> tuple[str, ...]:
        """As they came, or as the text was split."""
        return self.document.words

    def get_clusters(self, as_strings: bool = True) -> list[list[str]] | list[list[Span]]:
        """The clusters as the mentions' strings, or as places: [start, end) in characters of a
        text; [first, last] words, both inclusive, where words came."""
        if as_strings:
            return [[mention.text for mention in cluster] for cluster in self.clusters]
        if self.text is None:
            return self.word_spans()
        return [[(m.start, m.end) for m in cluster] for cluster in self.clusters]

    def word_spans(self) -> list[list[Span]]:
        """The clusters as [first, last] words, both inclusive."""
        return [[(m.first, m.last) for m in cluster] for cluster in self.clusters]

    def resolve(self) -> str:
        """The text, or the words joined by blanks, with each mention replaced by the most telling
        one of its cluster, by the rules of `resolve.resolved_text`."""
        return resolved_document(self.document, self.word_spans())


class CorefResolver:
    """Finds the mentions of a document that speak of the same thing.

    >>> resolver = CorefResolver("runs/coref")
    >>> result = resolver("Ada met Charles. She liked him.")
    >>> result.get_clusters()
    [['Ada', 'She'], ['Charles', 'him']]
    >>> result.resolve()
    'Ada met Charles. Ada liked Charles.'

    Documents may be as long as books: the memory that one takes grows with its length, and several
    are computed one after the other.

    Args:
        model: folder or hub name of a fine-tuned model, a fine-tuning run, or a `Predictor`.
        device: auto, cpu, cuda or cuda:N.
        split: from a text to the ranges of characters of its words; default by rule.
        sentences: from a text and its words to the number of each word's sentence, from 0; default
            by rule.

    Raises:
        ConfigError: there is no such model, or it is one of another task.
        DataError, StorageError: it is damaged.
    """

    def __init__(
        self,
        model: str | Path | Predictor,
        device: str = "auto",
        split: Callable[[str], Sequence[Span]] | None = None,
        sentences: Callable[[str, Sequence[Span]], Sequence[int]] | None = None,
    ):
        if isinstance(model, (str, os.PathLike)):
            from spanbert_ext.tasks.predictor import Predictor

            model = Predictor.load(model, device=device, default=task_of_model, fine_tune="coref")
        if not isinstance(model.task, CorefTask):
            raise ConfigError(
                f"the model was fine-tuned for {model.task.name}, not for coref; fine-tune one "
                "with spanbert finetune coref"
            )
        self.predictor = model
        self._split, self._sentences = split, sentences

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        *,
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        sentences: Sequence[Sequence[str]] | None = None,
        speakers: Sequence[str | None] | None = None,
        genre: str | None = None,
    ) -> CorefResult | list[CorefResult]:
        """The clusters of a document, or of each of several.

        Args:
            text: one or several; or, in its place:
            tokens: the words of one document, or a list of such lists; sentences are found by rule.
            sentences: one document as lists of words.
            speakers: who says each word of the one document that `tokens` or `sentences` give.
            genre: of the documents, if the model tells genres apart.

        Raises:
            ConfigError: none of the three is given, or several.
            DataError: a document without words, or as many speakers as words are not there.
        """
        given = [value is not None for value in (text, tokens, sentences)]
        if sum(given) != 1:
            raise ConfigError("give either a text, or tokens, or sentences")
        if text is not None:
            documents, single = self._of_texts(text, speakers, genre)
        elif sentences is not None:
            documents, single = [_of_words("sentences", sentences, speakers, genre)], True
        else:
            documents, single = _of_tokens(tokens, speakers, genre)
        predictions = self.predictor(documents)
        found = [
            CorefResult(document, cluster_mentions(document, own.clusters, own.scores))
            for document, own in zip(documents, predictions, strict=True)
        ]
        return found[0] if single else found

    def resolve(self, text: str | Sequence[str]) -> str | list[str]:
        """A text, or each of several, with its mentions replaced, as `CorefResult.resolve`."""
        found = self(text)
        return found.resolve() if isinstance(found, CorefResult) else [r.resolve() for r in found]

    def _of_texts(
        self, text: str | Sequence[str], speakers: Any, genre: str | None
    ) -> tuple[list[Document], bool]:
        if speakers is not None:
            raise ConfigError("speakers: they need tokens or sentences, not a text")
        single = isinstance(text, str)
        documents = []
        for number, own in enumerate([text] if single else text):
            if not isinstance(own, str):
                raise DataError(f"text {number}: expected a text, got {type(own).__name__}")
            name = f"text {number}"
            documents.append(from_text(name, own, self._split, self._sentences, genre))
        return documents, single


def _of_tokens(tokens: Any, speakers: Any, genre: str | None) -> tuple[list[Document], bool]:
    single = not tokens or isinstance(tokens[0], str)
    if speakers is not None and not single:
        raise ConfigError("speakers: they belong to one document; call once for each")
    documents = []
    for number, words in enumerate([tokens] if single else tokens):
        name = f"tokens {number}"
        _check_words(name, words)
        documents.append(_of_words(name, cut_sentences(words), speakers, genre))
    return documents, single


def _of_words(name: str, sentences: Any, speakers: Any, genre: str | None) -> Document:
    for words in sentences:
        _check_words(name, words)
    return from_words(name, sentences, speakers=speakers, genre=genre)


def _check_words(name: str, words: Any) -> None:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{name}: expected a list of words, got {words!r:.80}")
