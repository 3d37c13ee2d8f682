"""Between hidden states and loss: the parameters of both heads, and the rows they read."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from spanbert_ext.masked_batch import MaskedBatch
from spanbert_ext.reference import IGNORE
from spanbert_ext.sbo import GeluLayerNorm, SBOHead


class MLMTransform(nn.Module):
    """LN(GELU(W h + b)) in front of the tied vocabulary."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        # BERT keeps GELU between the two modules; here it is part of the one that carries
        # LayerNorm's name.
        self.LayerNorm = GeluLayerNorm(hidden_size, eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., H]."""
        return self.LayerNorm(self.dense(hidden))


class MLMHead(nn.Module):
    """The masked language model's own parameters; its decoder is the word embedding."""

    def __init__(self, hidden_size: int, vocab_size: int, eps: float):
        super().__init__()
        self.transform = MLMTransform(hidden_size, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class PreTrainingHeads(nn.Module):
    """Both heads, under the names of Hugging Face's `cls` where BERT has them."""

    def __init__(self, config):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.predictions = MLMHead(size, config.vocab_size, eps)
        self.sbo = SBOHead(size, config.max_span_targets, config.position_size, eps)
        self.sbo_bias = nn.Parameter(torch.zeros(config.vocab_size))


def wanted_rows(batch: MaskedBatch, total: int, longest: int) -> tuple[torch.Tensor, int]:
    """The tokens whose states the heads read: targets, left boundaries, right boundaries.

    Unused slots, whose states pass no gradient, name tokens evenly spread over the stream: all
    naming token 0, they would make the first sequence the longest by far.

    Args:
        batch: targets and spans as `SpanMasker` makes them.
        total: T, tokens of the flattened input.
        longest: upper bound of a sequence's length.

    Returns:
        (rows [K + 2S] int64, upper bound of how many of them lie in one sequence). A token is a
        target, or it is the left boundary of at most one span and the right one of at most one,
        which makes 2 * longest; where targets are boundaries too (internal endpoints), t targets in
        s runs with a gap between any two have t + 2 s <= longest + s + 1, which is no more. And of
        R evenly spread places at most ceil(R * longest / T) lie in `longest` tokens.
    """
    rows = torch.cat([batch.target_positions, batch.span_left, batch.span_right])
    no_span = batch.span_right <= 0
    unused = torch.cat([batch.target_ids == IGNORE, no_span, no_span])
    count = rows.shape[0]
    spread = torch.arange(count, device=rows.device) * total // max(count, 1)
    most = 2 * longest - (-count * longest // max(total, 1))
    return torch.where(unused, spread, rows), min(count, most)


def over_compact_rows(batch: MaskedBatch) -> MaskedBatch:
    """The batch for hidden rows [2S, H]: all left boundaries, then all right boundaries."""
    spans = batch.span_left.shape[0]
    slots = torch.arange(spans, device=batch.span_left.device)
    valid = batch.span_right > 0
    left, right = torch.where(valid, slots, 0), torch.where(valid, slots + spans, 0)
    return dataclasses.replace(batch, span_left=left, span_right=right)
