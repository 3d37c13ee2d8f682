"""Annotators: what finds the candidate spans of a text.

An annotator is called with a text and gives (start, end, kind) for each span: character offsets and
`entity` or `phrase`. The entities are those of the paper's masking scheme, of non-numerical types;
its noun phrases are spaCy's noun chunks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.errors import ConfigError

KINDS = ("entity", "phrase")
Annotator = Callable[[str], Iterable[tuple[int, int, str]]]

_NUMERIC = frozenset(("DATE", "TIME", "PERCENT", "MONEY", "QUANTITY", "CARDINAL", "ORDINAL"))


def load_annotator(config: PrepareConfig) -> Annotator:
    """The annotator that the settings name.

    Raises:
        ConfigError: there is no such function, or spaCy or its model is missing or does not give
            what is asked.
    """
    if config.annotator is None:
        return _load_spacy(config.annotator_model, config.annotation_kinds)
    module, _, name = config.annotator.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"annotator: {config.annotator} cannot be loaded: {error}") from None
    if not callable(found):
        raise ConfigError(f"annotator: {config.annotator} is not a function")
    return found


def _load_spacy(model: str, kinds: tuple[str, ...]) -> Annotator:
    try:
        import spacy
    except ImportError:
        raise ConfigError(
            "annotate: spaCy is not installed; `pip install 'spanbert-ext[annotate]'`, or name "
            "your own annotator=module:function"
        ) from None
    try:
        nlp = spacy.load(model)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"annotator_model: spaCy cannot load {model!r} ({str(error).splitlines()[0]}); "
            f"`python -m spacy download {model}`, or name the directory of a model"
        ) from None
    if "phrase" in kinds and "parser" not in nlp.pipe_names:
        raise ConfigError(
            f"annotator_model: {model!r} has no parser, so it finds no noun phrases; take a model "
            "with one, or annotate=entity"
        )

    def annotate(text: str) -> Iterable[tuple[int, int, str]]:
        document = nlp(text)
        if "entity" in kinds:
            for span in document.ents:
                if span.label_ not in _NUMERIC:
                    yield span.start_char, span.end_char, "entity"
        if "phrase" in kinds:
            for span in document.noun_chunks:
                yield span.start_char, span.end_char, "phrase"

    return annotate
