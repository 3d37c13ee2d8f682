"""Candidate spans of a document: which there are, how good a mention each is, and what represents
the ones that stay.

A span from s to e is represented by g = [h_s; h_e; width; sum_t a_t h_t], where a is the softmax of
a token score over the span (its head, softly). The first layer of the mention score is linear in g:

    W g = W_s h_s + W_e h_e + W_w width + sum_t a_t W_h h_t

so its products run once for a token, not for each of the 30 candidates that start there. Candidates
are the windows of at most 30 tokens behind every token: a chunk of starts is one batch of small
products over overlapping windows, which are views. Neither g nor the hidden units of all candidates
ever exist at once, and no attention is wider than a window.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Candidates:
    """All spans of a document that may be mentions, ascending by (start, end).

    Args:
        starts: [C] int64, first pieces.
        widths: [C] int64, last piece minus first.
        window: pieces of the widest.
    """

    starts: torch.Tensor
    widths: torch.Tensor
    window: int

    @property
    def ends(self) -> torch.Tensor:
        """[C] int64, last pieces."""
        return self.starts + self.widths


def candidate_spans(sentence_map: torch.Tensor, max_width: int) -> Candidates:
    """All spans of at most max_width pieces inside one sentence.

    Args:
        sentence_map: [T] integer, the sentence of every piece, -1 at special tokens, which are part
            of no span. A sentence that is interrupted by special tokens counts as two.
    """
    ids, run, sizes = torch.unique_consecutive(
        sentence_map, return_inverse=True, return_counts=True
    )
    behind = sizes.cumsum(0)[run] - torch.arange(run.shape[0], device=run.device)
    room = torch.where(ids[run] >= 0, behind, 0).clamp(max=max_width)
    window = int(room.max()) if room.numel() else 0
    fits = torch.arange(window, device=room.device) < room.unsqueeze(1)
    starts, widths = fits.nonzero(as_tuple=True)
    return Candidates(starts, widths, window)


class MentionScorer(nn.Module):
    """Representation and mention score of spans.

    Args:
        hidden_size: H.
        options: of the model.
    """

    def __init__(self, hidden_size: int, options: CorefModelOptions):
        super().__init__()
        features, units, dropout = options.feature_size, options.ffnn_size, options.dropout
        self.sizes = (hidden_size, hidden_size, features, hidden_size)
        self.head_attention = nn.Linear(hidden_size, 1)
        self.width_embedding = nn.Embedding(options.max_span_width, features)
        self.network = ScoreNetwork(sum(self.sizes), units, dropout)
        self.width_prior_embedding = nn.Embedding(options.max_span_width, features)
        self.width_prior = ScoreNetwork(features, units, dropout)
        self.dropout = nn.Dropout(dropout)

    def width_features(self, tokens: int, window: int) -> torch.Tensor:
        """[T, window, features], every candidate's embedded width with its own dropout; [1, window,
        features] where there is none."""
        table = self.width_embedding.weight[:window].unsqueeze(0)
        if self.dropout.training and self.dropout.p > 0:
            table = self.dropout(table.expand(tokens, -1, -1))
        return table

    def token_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head attention's score of every token: [T, H] to [T], fp32."""
        return wide_linear(hidden, self.head_attention.weight, self.head_attention.bias).squeeze(-1)

    def forward(
        self, hidden: torch.Tensor, token_scores: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """Mention scores of all windows, fp32.

        Args:
            hidden: [T, H], T at least 1.
            token_scores: [T].
            features: as `width_features` gives them.

        Returns:
            [T, window]; void where the window leaves the sentence.
        """
        window, count = features.shape[1], hidden.shape[0]
        start, end, width, head = self.network.inner.weight.split(self.sizes, dim=1)
        chunks, size = _equal_chunks(count, window, self.network.inner.out_features)
        padded = F.pad(hidden, (0, 0, 0, chunks * size - count + window - 1))
        token_scores = F.pad(token_scores, (0, padded.shape[0] - count))
        starts = F.linear(padded[: chunks * size], start, self.network.inner.bias).split(size)
        ends, heads, token_scores = (
            _with_halos(x, size, window)
            for x in (F.linear(padded, end), F.linear(padded, head), token_scores)
        )
        if features.shape[0] > 1:
            features = F.pad(features, (0, 0, 0, 0, 0, chunks * size - count)).split(size)
        else:
            features = [features] * chunks
        draws = self.dropout.training and self.dropout.p > 0
        scores = []
        for chunk in zip(starts, ends, heads, token_scores, features, strict=True):
            scores.append(recomputed(self._chunk, *chunk, width, dropout=draws))
            tell("mentions that begin at token", min(len(scores) * size, count), count)
        prior = self.width_prior(self.width_prior_embedding.weight[:window])
        return torch.cat(scores)[:count] + prior

    def _chunk(self, starts, ends, heads, token_scores, features, width) -> torch.Tensor:
        """[S, window] scores from W_s h + b [S, F], W_e h, W_h h [S + window - 1, F], token scores
        [S + window - 1] and width features [S or 1, window, features]."""
        window = features.shape[1]
        attention = head_attention(token_scores.unfold(0, window, 1)).to(heads.dtype)
        sums = torch.baddbmm(_windows(ends, window), attention, _windows(heads, window))
        sums += starts.unsqueeze(1)
        sums += F.linear(features, width)
        return self.network.score(sums)

    def represent(
        self,
        hidden: torch.Tensor,
        token_scores: torch.Tensor,
        features: torch.Tensor,
        starts: torch.Tensor,
        widths: torch.Tensor,
    ) -> torch.Tensor:
        """g of chosen spans: [K, 3H + features].

        Args:
            starts: [K] int64, first pieces; widths: [K] int64, last piece minus first.
        """
        window = features.shape[1]
        offsets = torch.arange(window, device=starts.device)
        places = (starts.unsqueeze(1) + offsets).clamp(max=hidden.shape[0] - 1)
        scores = token_scores.index_select(0, places.view(-1)).view_as(places)
        scores = scores.masked_fill(offsets > widths.unsqueeze(1), -torch.inf)
        # The bag adds rows of `hidden` where they lie; gathered, they would be window * K of them.
        weights = scores.softmax(1).to(hidden.dtype)
        heads = F.embedding_bag(places, hidden, mode="sum", per_sample_weights=weights)
        first = starts if features.shape[0] > 1 else torch.zeros_like(starts)
        width = features.flatten(0, 1).index_select(0, first * window + widths)
        ends = hidden.index_select(0, starts + widths)
        return torch.cat([hidden.index_select(0, starts), ends, width, heads], dim=1)


def head_attention(scores: torch.Tensor) -> torch.Tensor:
    """Attention of the spans that start at a token: [S, window] token scores of its window to [S,
    window, window], whose row w is the softmax over the first w + 1 and zero behind them."""
    window = scores.shape[1]
    behind = torch.ones(window, window, dtype=torch.bool, device=scores.device).triu(1)
    return scores.unsqueeze(1).masked_fill(behind, -torch.inf).softmax(2)


def _equal_chunks(count: int, window: int, units: int) -> tuple[int, int]:
    """(chunks, starts of each), as equal as they can be; two or more are longer than a window."""
    most = max(CHUNK_NUMBERS // (window * units), 2 * window)
    chunks = -(-count // most)
    return chunks, -(-count // chunks)


def _with_halos(x: torch.Tensor, size: int, window: int) -> list[torch.Tensor]:
    """Cut [chunks * size + window - 1, ...] into chunks [size + window - 1, ...] that overlap.

    Through `split`, whose gradient is one concatenation: the gradient of a slice is as long as the
    document, for every chunk.
    """
    pieces = x.split(size)
    halo = window - 1
    if halo == 0:
        return list(pieces)
    if x.shape[0] == size + halo:
        return [x]
    return [
        torch.cat([piece, following[:halo]])
        for piece, following in zip(pieces[:-1], pieces[1:], strict=True)
    ]


def _windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """[S + window - 1, F] to the view [S, window, F]: row s holds rows s to s + window - 1."""
    return x.unfold(0, window, 1).transpose(1, 2)
