"""What the two scorers share: the scoring network, and work in chunks that are computed twice
instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from spanbert_ext.ops.registration import working_dtype

# Hidden units of a chunk: 16 MB in fp32. Blocks above 32 MB glibc takes from the system each time,
# zeroed page by page: with 64 MB a training step took a sixth longer (one core, 1100 pieces, 1000
# units) and 0.3 GB more; 4 MB gained nothing further.
CHUNK_NUMBERS = 1 << 22


class ScoreNetwork(nn.Module):
    """w2 . dropout(ReLU(W1 x + b1)) + b2: one hidden layer and one score.

    Whoever knows W1 x + b1 by a shorter way calls `score`.
    """

    def __init__(self, inputs: int, units: int, dropout: float):
        super().__init__()
        self.inner = nn.Linear(inputs, units)
        self.out = nn.Linear(units, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] to [...]."""
        return self.score(self.inner(x))

    def score(self, sums: torch.Tensor) -> torch.Tensor:
        """W1 x + b1 [..., units], which is overwritten, to [...] in fp32 (double for double)."""
        units = self.dropout(torch.relu_(sums))
        return wide_linear(units, self.out.weight, self.out.bias).squeeze(-1)


def wide_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b in fp32 (double for double) also under autocast: bf16 has too few digits to rank
    thousands of spans by."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = working_dtype(x.dtype)
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def recomputed(function: Callable, *arguments, dropout: bool):
    """function(*arguments), whose inner values are computed again for its gradient, not kept.

    Args:
        dropout: whether it draws random numbers, which must be the same both times.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=dropout)
