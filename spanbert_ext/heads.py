"""Between hidden states and loss: the parameters of both heads, and the rows they read."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from spanbert_ext.masked_batch import MaskedBatch
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


def over_compact_rows(batch: MaskedBatch) -> MaskedBatch:
    """The batch for hidden rows [2S, H]: all left boundaries, then all right boundaries."""
    spans = batch.span_left.shape[0]
    slots = torch.arange(spans, device=batch.span_left.device)
    valid = batch.span_right > batch.span_left
    left, right = torch.where(valid, slots, 0), torch.where(valid, slots + spans, 0)
    return dataclasses.replace(batch, span_left=left, span_right=right)
