"""The coreference model's scores, plain and dense: every span and every pair has its whole
representation, every attention its whole row. `spans` and `scoring` must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.model.reference import prune_spans


@dataclass(frozen=True)
class DocumentScores:
    """All numbers of a document, as `score_document` computes them.

    Args:
        spans: (start, end) of all candidates, ascending.
        mention_scores: [C] of all candidates.
        kept: places of the kept ones, ascending.
        vectors: [K, D], what represents the kept ones at first.
        antecedents: for every kept one its antecedents, best first.
        coarse: [K, K] coarse scores, minus infinity where the second is not before the first.
        scores: for every kept one the scores of no antecedent and of its antecedents.
    """

    spans: list[tuple[int, int]]
    mention_scores: torch.Tensor
    kept: list[int]
    vectors: torch.Tensor
    antecedents: list[list[int]]
    coarse: torch.Tensor
    scores: list[torch.Tensor]


def score_document(
    head: nn.Module,
    options: CorefModelOptions,
    hidden: torch.Tensor,
    sentence_map: Sequence[int],
    speakers: Sequence[int],
    segments: Sequence[int],
    genre: int,
) -> DocumentScores:
    """Mentions, antecedents and their scores without dropout.

    Args:
        head: a `CorefHead`, whose parameters are used.
        hidden: [T, H]; the other sequences have T numbers, as in `SpanBertForCoreference.forward`.
    """
    length = hidden.shape[0]
    spans = [
        (start, end)
        for start in range(length)
        for end in range(start, min(length, start + options.max_span_width))
        if sentence_map[start] >= 0 and len(set(sentence_map[start : end + 1])) == 1
    ]
    vectors = torch.stack([_vector(head.mentions, hidden, *span) for span in spans])
    mentions = head.mentions.network(vectors) + _width_prior(head.mentions, spans)
    keep = min(options.max_spans, max(1, int(options.span_ratio * length)))
    starts, ends = zip(*spans, strict=True)
    kept = prune_spans(starts, ends, mentions.tolist(), keep)
    vectors, scores = vectors[kept], mentions[kept]
    coarse = _coarse_scores(head.antecedents, vectors, scores)
    most = min(options.max_antecedents, len(kept))
    order = coarse.tolist()
    antecedents = [
        sorted(range(i), key=lambda j, i=i: -order[i][j])[:most] for i in range(len(kept))
    ]
    facts = [(speakers[starts[c]], segments[starts[c]]) for c in kept]
    first, rounds = vectors, options.coref_depth
    for depth in range(rounds):
        scores = [
            torch.stack(
                [hidden.new_zeros(())]
                + [
                    coarse[i, j] + _full_score(head, options, vectors, facts, genre, i, j)
                    for j in own
                ]
            )
            for i, own in enumerate(antecedents)
        ]
        if depth + 1 < rounds:
            vectors = _refined(head.antecedents, vectors, antecedents, scores)
    return DocumentScores(spans, mentions, kept, first, antecedents, coarse, scores)


def _vector(mentions: nn.Module, hidden: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """[h_start; h_end; width; sum_t a_t h_t], the softmax over the whole document."""
    outside = torch.ones(hidden.shape[0], dtype=torch.bool)
    outside[start : end + 1] = False
    scores = mentions.head_attention(hidden).squeeze(1).masked_fill(outside, -math.inf)
    width = mentions.width_embedding.weight[end - start]
    return torch.cat([hidden[start], hidden[end], width, scores.softmax(0) @ hidden])


def _width_prior(mentions: nn.Module, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    widths = torch.tensor([end - start for start, end in spans])
    return mentions.width_prior(mentions.width_prior_embedding(widths))


def _coarse_scores(antecedents: nn.Module, vectors: torch.Tensor, scores: torch.Tensor):
    prior = antecedents.distance_prior(antecedents.distance_prior_embedding.weight).squeeze(1)
    rows = []
    for i, source in enumerate(antecedents.coarse(vectors)):
        pairs = [
            scores[i] + scores[j] + source @ vectors[j] + prior[_bucket(i - j)] for j in range(i)
        ]
        absent = vectors.new_full((len(vectors) - i,), -math.inf)
        rows.append(torch.cat([torch.stack(pairs), absent]) if pairs else absent)
    return torch.stack(rows)


def _bucket(distance: int) -> int:
    return distance if distance <= 4 else min(9, distance.bit_length() + 2)


def _full_score(head, options, vectors, facts, genre: int, i: int, j: int) -> torch.Tensor:
    """FFNN([g_i; g_j; g_i * g_j; phi])."""
    tables = head.antecedents.features
    (speaker, segment), (other_speaker, other_segment) = facts[i], facts[j]
    farthest = options.max_training_segments - 1
    phi = [
        tables["distance"].weight[_bucket(i - j)],
        tables["segment"].weight[min(abs(segment - other_segment), farthest)],
    ]
    if options.speakers:
        unknown = 0 in (speaker, other_speaker)
        phi.append(tables["speaker"].weight[2 if unknown else int(speaker == other_speaker)])
    if options.genres is not None:
        phi.append(tables["genre"].weight[genre])
    pair = torch.cat([vectors[i], vectors[j], vectors[i] * vectors[j], *phi])
    return head.antecedents.network(pair)


def _refined(head: nn.Module, vectors, antecedents, scores) -> torch.Tensor:
    """f * attended + (1 - f) * g, f the sigmoid of a layer over both."""
    rows = []
    for vector, others, own in zip(vectors, antecedents, scores, strict=True):
        attended = own.softmax(0) @ torch.cat([vector.unsqueeze(0), vectors[others]])
        gate = torch.sigmoid(head.gate(torch.cat([vector, attended])))
        rows.append(gate * attended + (1 - gate) * vector)
    return torch.stack(rows)


def document_loss(
    document: DocumentScores, gold: Mapping[tuple[int, int], int], singletons: bool
) -> torch.Tensor:
    """The loss of a document whose gold mentions are {(start, end): cluster}."""
    loss = document.mention_scores.new_zeros(())
    clusters = [gold.get(document.spans[c]) for c in document.kept]
    for own, others, scores in zip(clusters, document.antecedents, document.scores, strict=True):
        right = [n for n, j in enumerate(others, 1) if own is not None and clusters[j] == own]
        loss = loss - scores.softmax(0)[right or [0]].sum().log()
    if singletons:
        for place, (span, score) in enumerate(
            zip(document.spans, document.mention_scores, strict=True)
        ):
            if span in gold:
                loss = loss - torch.sigmoid(score).log()
            elif place in document.kept:
                loss = loss - torch.sigmoid(-score).log()
    return loss
