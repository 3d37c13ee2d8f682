"""Losses of the three heads, in fp32, for packed and padded batches alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def span_loss(
    logits: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    width: int,
    positions: torch.Tensor,
    divisor: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean of the cross entropies of first and last token, each a softmax over a whole sequence.

    Args:
        logits: [T, 2] scores of being first and last.
        starts, lengths: [N] int64, where each sequence lies among the T.
        width: upper bound of the lengths.
        positions: [N, 2] int64, places of the answer's first and last token in their sequence; a
            sequence whose pair is not inside it is ignored.
        divisor: sequences to divide by; default those of this batch that count, at least 1.

    Returns:
        scalar, fp32; 0 where nothing counts.
    """
    columns = torch.arange(width, device=logits.device)
    inside = columns < lengths.unsqueeze(1)
    index = torch.where(inside, starts.unsqueeze(1) + columns, 0)
    spread = logits.float()[index].masked_fill(~inside.unsqueeze(-1), float("-inf"))  # [N, L, 2]
    counts = ((positions >= 0) & (positions < lengths.unsqueeze(1))).all(1)
    targets = torch.where(counts.unsqueeze(1), positions, -100)
    # A sequence of no token has no softmax; it never counts.
    spread = torch.where((lengths > 0).view(-1, 1, 1), spread, torch.zeros_like(spread))
    both = F.cross_entropy(spread, targets, reduction="sum")
    return both / (2 * _at_least_one(counts.sum() if divisor is None else divisor))


def label_loss(
    logits: torch.Tensor, labels: torch.Tensor, divisor: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy over labels, or squared error for a regression.

    Args:
        logits: [R, C]; [R, 1] with floating-point labels is a regression.
        labels: [R] int64, -100 to ignore, or fp32, NaN to ignore.
        divisor: labels to divide by; default those of this batch that count, at least 1.

    Returns:
        scalar, fp32; 0 where nothing counts.
    """
    if labels.is_floating_point():
        counts = labels == labels
        error = torch.where(counts, logits.float().squeeze(-1) - labels, 0.0)
        total = error.square().sum()
    else:
        counts = labels != -100
        total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return total / _at_least_one(counts.sum() if divisor is None else divisor)


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count)
