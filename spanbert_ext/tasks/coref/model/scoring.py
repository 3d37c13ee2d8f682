"""Antecedents of the kept spans: a coarse choice among all earlier spans, then full scores.

The first layer of the full score is split, as in `spans`:

    W [g_i; g_j; g_i * g_j; phi] = A g_i + B g_j + C (g_i * g_j) + D phi

so A and B run once for a span, and only C and D for a pair. Pairs are scored in chunks that are
computed again for their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.model.networks import (
    CHUNK_NUMBERS,
    ScoreNetwork,
    recomputed,
    wide_linear,
)
from spanbert_ext.training.progress import tell

# Coarse scores that exist at once: 16 MB in fp32.
_COARSE_NUMBERS = 1 << 22
# First distance of every bucket but that of 0: 0, 1, 2, 3, 4, 5-7, 8-15, 16-31, 32-63, 64 and more.
_BUCKETS = (1, 2, 3, 4, 5, 8, 16, 32, 64)
DIFFERENT_SPEAKERS, SAME_SPEAKER, UNKNOWN_SPEAKER = range(3)


def distance_bucket(distance: torch.Tensor) -> torch.Tensor:
    """Bucket 0 to 9 of a distance of at least 0, counted in kept spans."""
    return torch.bucketize(distance, torch.tensor(_BUCKETS, device=distance.device), right=True)


def speaker_relation(speaker: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether two speaker ids are the same; nothing is claimed about an unknown one, 0."""
    unknown = (speaker == 0) | (other == 0)
    return torch.where(unknown, UNKNOWN_SPEAKER, (speaker == other).to(torch.int64))


@dataclass(frozen=True)
class SpanFacts:
    """What is known about the kept spans beside their text.

    Args:
        speakers: [K] int64, 0 where unknown.
        segments: [K] int64, the segment each starts in.
        genre: [] int64, 0 if unknown.
    """

    speakers: torch.Tensor
    segments: torch.Tensor
    genre: torch.Tensor


@dataclass(frozen=True)
class _Rows:
    """The chunk of spans whose antecedents are scored: every field is a part of its first
    dimension."""

    vectors: torch.Tensor
    sums: torch.Tensor  # A g + b
    places: torch.Tensor
    antecedents: torch.Tensor
    coarse: torch.Tensor


class AntecedentScorer(nn.Module):
    """Scores of the antecedents of spans, and their refinement between two rounds of scoring.

    Args:
        span_size: D, numbers that represent a span.
        options: of the model.
    """

    def __init__(self, span_size: int, options: CorefModelOptions):
        super().__init__()
        self.options = options
        width, units, dropout = options.feature_size, options.ffnn_size, options.dropout
        self.coarse = nn.Linear(span_size, span_size)
        self.distance_prior_embedding = nn.Embedding(len(_BUCKETS) + 1, width)
        self.distance_prior = nn.Linear(width, 1)
        tables = {
            "distance": len(_BUCKETS) + 1,
            "segment": options.max_training_segments,
        }
        if options.speakers:
            tables["speaker"] = 3
        if options.genres is not None:
            tables["genre"] = 1 + len(options.genres)
        self.features = nn.ModuleDict({n: nn.Embedding(size, width) for n, size in tables.items()})
        self.sizes = (span_size, span_size, span_size, len(tables) * width)
        self.network = ScoreNetwork(sum(self.sizes), units, dropout)
        if options.coref_depth > 1:
            self.gate = nn.Linear(2 * span_size, span_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, vectors: torch.Tensor, mention_scores: torch.Tensor, facts: SpanFacts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Antecedents of K spans in their order, K at least 1.

        Args:
            vectors: [K, D]; mention_scores: [K] fp32.

        Returns:
            [K, c] int64, the best earlier spans by the coarse score, best first, -1 where there are
            fewer; [K, c] scores in fp32, minus infinity there.
        """
        antecedents, coarse = self.choose(vectors, mention_scores)
        for depth in range(self.options.coref_depth):
            last = depth + 1 == self.options.coref_depth
            scores, attended = self._score_round(
                vectors, antecedents, coarse, facts, refine=not last
            )
            if not last:
                gate = torch.sigmoid(self.gate(torch.cat([vectors, attended], 1)))
                vectors = gate * attended + (1 - gate) * vectors
        return antecedents, scores

    def choose(
        self, vectors: torch.Tensor, mention_scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The antecedents [K, c] and their coarse scores [K, c], as `forward` returns them.

        The score of a pair is s_i + s_j + (W g_i + b) . g_j and a number for their distance.
        """
        count = vectors.shape[0]
        most = min(self.options.max_antecedents, count)
        sources, targets = self.dropout(self.coarse(vectors)), self.dropout(vectors)
        embedded = self.dropout(self.distance_prior_embedding.weight)
        prior = wide_linear(embedded, self.distance_prior.weight, self.distance_prior.bias)
        places = torch.arange(count, device=vectors.device)
        size = max(1, _COARSE_NUMBERS // count)
        chosen, products = [], []
        for rows, row_places in zip(sources.split(size), places.split(size), strict=True):
            dense = wide_linear(rows, targets)
            distances = row_places.unsqueeze(1) - places
            with torch.no_grad():
                order = dense + mention_scores + prior[:, 0][distance_bucket(distances.clamp(0))]
                order = order.masked_fill(distances <= 0, -torch.inf)
                best = order.topk(most, dim=1).indices
            chosen.append(best)
            products.append(dense.gather(1, best))
        best, products = torch.cat(chosen), torch.cat(products)
        distances = places.unsqueeze(1) - best
        scores = products + mention_scores.unsqueeze(1)
        scores = scores + mention_scores.index_select(0, best.view(-1)).view_as(best)
        scores = scores + F.embedding(distance_bucket(distances.clamp(0)), prior).squeeze(2)
        absent = distances <= 0
        return best.masked_fill(absent, -1), scores.masked_fill(absent, -torch.inf)

    def _score_round(
        self,
        vectors: torch.Tensor,
        antecedents: torch.Tensor,
        coarse: torch.Tensor,
        facts: SpanFacts,
        refine: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[K, c] coarse and full scores added; to refine also the mean [K, D] of a span and its
        antecedents, weighted by their probabilities."""
        own, other, product, features = self.network.inner.weight.split(self.sizes, dim=1)
        sums = F.linear(vectors, own, self.network.inner.bias)
        other_sums = F.linear(vectors, other)
        size = max(1, CHUNK_NUMBERS // (antecedents.shape[1] * sums.shape[1]))
        draws = self.dropout.training and self.dropout.p > 0
        scores, attended = [], []
        for rows in _row_chunks(vectors, sums, antecedents, coarse, size):
            part = recomputed(
                self._chunk, rows, vectors, other_sums, product, features, facts, refine,
                dropout=draws,
            )  # fmt: skip
            scores.append(part[0])
            attended.append(part[1])
            done = min(len(scores) * size, len(vectors))
            tell("antecedents of mention", done, len(vectors))
        return torch.cat(scores), torch.cat(attended) if refine else None

    def _chunk(
        self, rows: _Rows, vectors, other_sums, product, features, facts: SpanFacts, refine: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`_score_round` of some rows; other_sums [K, F] is B g, product [F, D] is C, features is D
        of the split."""
        # Where there is no antecedent, any will do: its score is minus infinity.
        others = rows.antecedents.clamp(min=0)
        other = vectors.index_select(0, others.view(-1)).unflatten(0, others.shape)
        pair = F.linear(rows.vectors.unsqueeze(1) * other, product)
        pair += other_sums.index_select(0, others.view(-1)).view_as(pair)
        pair += rows.sums.unsqueeze(1)
        pair += F.linear(self._pair_features(rows.places, others, facts), features)
        scores = rows.coarse + self.network.score(pair)
        if not refine:
            return scores, None
        weights = F.pad(scores, (1, 0)).softmax(1).to(vectors.dtype)
        attended = torch.bmm(weights[:, 1:].unsqueeze(1), other).squeeze(1)
        return scores, attended + weights[:, :1] * rows.vectors

    def _pair_features(
        self, places: torch.Tensor, others: torch.Tensor, facts: SpanFacts
    ) -> torch.Tensor:
        """phi of pairs: [S] spans and their [S, c] antecedents to [S, c, features]."""
        own, other = places.unsqueeze(1), others
        segment = (facts.segments[own] - facts.segments[other]).abs()
        indices = {
            "distance": distance_bucket((own - other).clamp(0)),
            "segment": segment.clamp(max=self.options.max_training_segments - 1),
            "speaker": speaker_relation(facts.speakers[own], facts.speakers[other]),
            "genre": facts.genre.expand_as(other),
        }
        embedded = [table(indices[name]) for name, table in self.features.items()]
        return self.dropout(torch.cat(embedded, dim=-1))


def _row_chunks(vectors, sums, antecedents, coarse, size: int) -> Iterator[_Rows]:
    places = torch.arange(vectors.shape[0], device=vectors.device)
    parts = (x.split(size) for x in (vectors, sums, places, antecedents, coarse))
    return (_Rows(*part) for part in zip(*parts, strict=True))


def clusters_of(
    starts: torch.Tensor,
    ends: torch.Tensor,
    gold_starts: torch.Tensor,
    gold_ends: torch.Tensor,
    gold_clusters: torch.Tensor,
    length: int,
) -> torch.Tensor:
    """The gold cluster of spans: [N] int64, -1 for those that are no gold mention.

    Args:
        starts, ends: [N] int64, in [0, length).
        gold_starts, gold_ends, gold_clusters: [G] int64; mentions outside the document match no
            span. Of a mention that stands there twice the first counts.
    """
    inside = (gold_starts >= 0) & (gold_ends < length) & (gold_starts <= gold_ends)
    keys, order = (gold_starts * length + gold_ends)[inside].sort(stable=True)
    if not keys.numel():
        return torch.full_like(starts, -1)
    wanted = starts * length + ends
    place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
    return torch.where(keys[place] == wanted, gold_clusters[inside][order[place]], -1)


def marginal_loss(
    scores: torch.Tensor, antecedents: torch.Tensor, clusters: torch.Tensor
) -> torch.Tensor:
    """Minus the log probability of all right antecedents, summed over the spans.

    Args:
        scores: [K, 1 + c] fp32, that of no antecedent first.
        antecedents: [K, c] int64, -1 where there is none.
        clusters: [K] int64, -1 for no gold mention. Without a right antecedent none is right.

    Source: Lee et al. 2017, equation 8.
    """
    other = clusters[antecedents.clamp(min=0)]
    right = (antecedents >= 0) & (other >= 0) & (other == clusters.unsqueeze(1))
    right = torch.cat([~right.any(1, keepdim=True), right], dim=1)
    return (scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)).sum()


def mention_loss(scores: torch.Tensor, is_gold: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of mention scores, summed over the kept spans and the gold mentions that
    were not kept.

    Of the other candidates there are many times as many; their sum would drown the rest.

    Args:
        scores: [C] fp32 of all candidates; is_gold: [C] bool.
        kept: [K] int64, places of the kept ones.
    """
    counts = is_gold.index_fill(0, kept, True)
    return F.binary_cross_entropy_with_logits(
        scores[counts], is_gold[counts].to(scores.dtype), reduction="sum"
    )
