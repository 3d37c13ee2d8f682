"""Between hidden states and loss: the parameters of the heads, and the rows they read."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.model.sbo import SBOHead
from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.ops.registration import check_range, working_dtype


class MLMTransform(nn.Module):
    """LN(GELU(W h + b)) in front of the tied vocabulary."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., H], in the dtype of the product, also under autocast."""
        rows = F.gelu(self.dense(hidden))
        return self.LayerNorm(rows).to(rows.dtype)


class MLMHead(nn.Module):
    """The masked language model's own parameters; its decoder is the word embedding."""

    def __init__(self, hidden_size: int, vocab_size: int, eps: float):
        super().__init__()
        self.transform = MLMTransform(hidden_size, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class PreTrainingHeads(nn.Module):
    """The heads, under the names of Hugging Face's `cls` where BERT has them. A head whose loss the
    configuration leaves out is not there: its weights would be saved, decayed and waited for."""

    def __init__(self, config):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.predictions = MLMHead(size, config.vocab_size, eps)
        self.sbo = self.sbo_bias = None
        if config.sbo_weight > 0:
            self.sbo = SBOHead(size, config.max_span_targets, config.position_size, eps)
            self.sbo_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.nsp:
            self.seq_relationship = nn.Linear(size, 2)

    def output_biases(self) -> torch.Tensor:
        """[heads, V]: of the MLM head, and of the SBO head if there is one."""
        biases = [self.predictions.bias]
        if self.sbo_bias is not None:
            biases.append(self.sbo_bias)
        return torch.stack(biases)


@dataclasses.dataclass(frozen=True)
class HeadStates:
    """What the heads read of the encoder.

    Args:
        mlm: [K, H], states of the targets.
        sbo: states that `spans` indexes, None without SBO.
        spans: the batch for the SBO head.
        firsts: [N, H], states of first tokens, None without NSP.
        embedding: [V, H], the output layer.
        last: all states of the last layer, None where only what is read was computed.
    """

    mlm: torch.Tensor
    sbo: torch.Tensor | None
    spans: MaskedBatch
    firsts: torch.Tensor | None
    embedding: torch.Tensor
    last: torch.Tensor | None


def first_tokens(
    labels: torch.Tensor, input_ids: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> torch.Tensor:
    """[N] int64, flat index of the first token of every sequence; -1 where its label is ignored.

    Args:
        labels: [N] int64, 0, 1 or -100.
        input_ids: [T] with cu_seqlens [N + 1], or [B, L].

    Raises:
        TypeError, ValueError, IndexError: labels of another dtype, shape or range.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"nsp_labels must be int64; got {labels.dtype}")
    if input_ids.dim() == 2:
        count, width = input_ids.shape
        starts = torch.arange(count, device=input_ids.device) * width
    else:
        starts = cu_seqlens[:-1].to(torch.int64)
        count = starts.shape[0]
    if tuple(labels.shape) != (count,):
        raise ValueError(f"nsp_labels must have shape ({count},); got {tuple(labels.shape)}")
    check_range("nsp_labels", labels, 2, lambda: labels != IGNORE, kernel_asserts=True)
    return torch.where(labels == IGNORE, -1, starts)


def mean_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | int | None
) -> torch.Tensor:
    """Sum of the cross entropies of [N, C] logits over `count`, by default the labels that are not
    ignored; fp32 (double for double)."""
    if count is None:
        count = (labels != IGNORE).sum()
    logits = logits.to(working_dtype(logits.dtype))
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def wanted_rows(
    batch: MaskedBatch,
    total: int,
    longest: int,
    spans: bool = True,
    firsts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """The tokens whose states the heads read: targets, left boundaries, right boundaries, first
    tokens.

    Unused slots, whose states pass no gradient, name tokens evenly spread over the stream: all
    naming token 0, they would make the first sequence the longest by far.

    Args:
        batch: targets and spans as `SpanMasker` makes them.
        total: T, tokens of the flattened input.
        longest: upper bound of a sequence's length.
        spans: whether the boundaries are read.
        firsts: [N] int64, the first tokens that are read, -1 in unused slots.

    Returns:
        (rows [K + 2S + N] int64, upper bound of how many of them lie in one sequence). A token is a
        target, or it is the left boundary of at most one span and the right one of at most one,
        which makes 2 * longest; where targets are boundaries too (internal endpoints), t targets in
        s runs with a gap between any two have t + 2 s <= longest + s + 1, which is no more. A
        sequence has one first token. And of R evenly spread places at most ceil(R * longest / T)
        lie in `longest` tokens.
    """
    rows, unused = [batch.target_positions], [batch.target_ids == IGNORE]
    most = 2 * longest
    if spans:
        no_span = batch.span_right <= 0
        rows += [batch.span_left, batch.span_right]
        unused += [no_span, no_span]
    if firsts is not None:
        rows.append(firsts)
        unused.append(firsts < 0)
        most += 1
    rows, unused = torch.cat(rows), torch.cat(unused)
    count = rows.shape[0]
    spread = torch.arange(count, device=rows.device) * total // max(count, 1)
    most -= -count * longest // max(total, 1)
    return torch.where(unused, spread, rows), min(count, most)


def over_compact_rows(batch: MaskedBatch) -> MaskedBatch:
    """The batch for hidden rows [2S, H]: all left boundaries, then all right boundaries."""
    spans = batch.span_left.shape[0]
    slots = torch.arange(spans, device=batch.span_left.device)
    valid = batch.span_right > 0
    left, right = torch.where(valid, slots, 0), torch.where(valid, slots + spans, 0)
    return dataclasses.replace(batch, span_left=left, span_right=right)
