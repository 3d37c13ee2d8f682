"""Documents through a coreference model: what it is given, and what becomes of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from spanbert_ext.tasks.coref.features import SegmentedDocument
from spanbert_ext.tasks.coref.model.coreference import CorefOutput, SpanBertForCoreference
from spanbert_ext.tasks.coref.task import LinkedSpans
from spanbert_ext.tasks.predictor import Predictor
from spanbert_ext.training import models
from spanbert_ext.training.loop import autocast


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` as for other tasks, but fp32 on a CPU: its library of bf16 products keeps megabytes
    for every shape that it has seen, and every document has shapes of its own (measured: 60 MB more
    after each document, for a fifth less time)."""
    if name == "auto" and device.type == "cpu":
        return "fp32"
    return models.choose_precision(name, device)


def model_inputs(
    document: SegmentedDocument, genre: int, device: torch.device, with_gold: bool
) -> dict[str, Any]:
    """Arguments of `SpanBertForCoreference.forward`.

    Args:
        genre: number of the document's genre.
        with_gold: give the gold mentions too, so that there is a loss.
    """
    arrays = {
        "input_ids": document.tokens,
        "cu_seqlens": document.cu_seqlens,
        "sentence_map": document.sentence_map,
        "speakers": document.speakers,
    }
    if with_gold:
        arrays |= {
            "gold_starts": document.gold_starts,
            "gold_ends": document.gold_ends,
            "gold_clusters": document.gold_clusters,
        }
    return {name: _tensor(values, device) for name, values in arrays.items()} | {"genre": genre}


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


@torch.no_grad()
def linked_spans(
    model: SpanBertForCoreference,
    documents: Sequence[SegmentedDocument],
    device: torch.device,
    precision: str,
) -> list[LinkedSpans]:
    """The clusters of each document, one document after the other; dropout off.

    Of a document nothing else stays: its scores would be many times as large.
    """
    was_training = model.training
    model.eval()
    found = []
    for document in documents:
        genre = model.options.genre_id(document.genre)
        with autocast(device, precision):
            output = model(**model_inputs(document, genre, device, with_gold=False))
        if not _is_finite(output):
            found.append(LinkedSpans([], {}, is_finite=False))
            continue
        spans = zip(output.starts.tolist(), output.ends.tolist(), strict=True)
        scores = dict(zip(spans, output.mention_scores.tolist(), strict=True))
        clusters = model.clusters(output)
        chosen = {span: scores[span] for cluster in clusters for span in cluster}
        found.append(LinkedSpans(clusters, chosen))
    model.train(was_training)
    return found


def _is_finite(output: CorefOutput) -> bool:
    # Where a span has fewer antecedents, their scores are minus infinity.
    pairs = output.antecedent_scores.masked_fill(output.antecedent_scores == -torch.inf, 0.0)
    return bool(torch.isfinite(output.mention_scores).all() and torch.isfinite(pairs).all())


class CorefPredictor(Predictor):
    """A coreference model, its tokenizer and its task; arguments as in `Predictor`.

    `batch_tokens` are the tokens that the encoder reads at a time.
    """

    # Documents may be as long as books.
    chunk = 8
    choose_precision = staticmethod(choose_precision)

    def _compute(self, features: Sequence[SegmentedDocument]) -> list[LinkedSpans]:
        """The clusters of every document."""
        self.model.pieces_per_pass = self.batch_tokens
        return linked_spans(self.model, features, self.device, self.precision)
