"""Settings of the coreference model. Free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.stored import completed
from spanbert_ext.settings.values import Name


@dataclass(frozen=True)
class CorefModelOptions:
    """What the coreference model computes; stored with its weights.

    Args:
        max_span_width: most pieces of a mention.
        span_ratio: spans that pruning keeps, as a share of the document's pieces.
        max_spans: most spans that pruning keeps, however long the document is.
        max_antecedents: antecedents of a span that are scored in full.
        ffnn_size: hidden units of the three scoring networks.
        feature_size: width of an embedded feature.
        dropout: of features, of hidden units and of the coarse antecedent scores.
        coref_depth: rounds of antecedent scoring; between two rounds, the spans are refined with
            their likely antecedents.
        genres: codes of the document genres that the model tells apart; null does without.
        speakers: whether the model may know who speaks.
        singletons: predict mentions that nothing else refers to, by a mention loss.
        max_training_segments: segments of a training document that are read at once; longer
            distances between segments look alike to the model.

    Source: Joshi et al. 2019 and the coreference runs of SpanBERT, whose values are the defaults.
    """

    max_span_width: int = 30
    span_ratio: float = 0.4
    max_spans: int = 3900
    max_antecedents: int = 50
    ffnn_size: int = 3000
    feature_size: int = 20
    dropout: float = 0.3
    coref_depth: int = 2
    genres: list[Name] | None = None
    speakers: bool = True
    singletons: bool = False
    max_training_segments: int = 3

    def faults(self) -> list[str]:
        """One line for every impossible value, by the name a user types."""
        faults = []
        for name in (
            "max_span_width",
            "max_spans",
            "max_antecedents",
            "ffnn_size",
            "feature_size",
            "coref_depth",
            "max_training_segments",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                faults.append(f"coref.{name}: must be an integer of at least 1; got {value!r}")
        for name in ("speakers", "singletons"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                faults.append(f"coref.{name}: must be true or false; got {value!r}")
        if not _is_number(self.span_ratio) or not self.span_ratio > 0:
            faults.append(f"coref.span_ratio: must be above 0; got {self.span_ratio!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            faults.append(f"coref.dropout: must lie in [0, 1); got {self.dropout!r}")
        return faults + self._faults_of_genres()

    def _faults_of_genres(self) -> list[str]:
        if self.genres is None:
            return []
        if not isinstance(self.genres, (list, tuple)) or not self.genres:
            return [f"coref.genres: must be a list of codes, or null; got {self.genres!r}"]
        if any(not isinstance(code, str) or not code for code in self.genres):
            return [f"coref.genres: every code must be a word; got {self.genres!r}"]
        twice = sorted({code for code in self.genres if list(self.genres).count(code) > 1})
        return [f"coref.genres: {', '.join(twice)} stands there twice"] if twice else []

    def genre_id(self, code: str | None) -> int:
        """The model's number of a genre: 0 if it is unknown, else 1 + its place in `genres`."""
        known = list(self.genres or ())
        return 1 + known.index(code) if code in known else 0

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types, as they stand in a model's configuration."""
        fields = dataclasses.asdict(self)
        return {**fields, "genres": None if self.genres is None else list(self.genres)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CorefModelOptions:
        """The options of a model's configuration, also of an earlier version's.

        Raises:
            ConfigError: a field that does not exist or an impossible value.
        """
        options = cls(**completed(fields, cls, "config.json: coref", section="coref."))
        faults = options.faults()
        if faults:
            raise ConfigError("\n".join(faults))
        return options


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
