"""The products of an encoder's layer, prepared for predictions; a replaced or hooked module
(adapters, quantisation) is always called.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_ext.model.plain_modules import is_plain
from spanbert_ext.ops import backend
from spanbert_ext.ops.torch_private import block_weight, blocked_linear, has_blocked_linear


def can_be_prepared(dense: nn.Module) -> bool:
    """Whether a projection is its two parameters: nobody replaced it or hung a hook on it."""
    return is_plain(dense, nn.Linear) and dense.bias is not None


class Prepared:
    """Plain projections of the same rows as one product without gradient, their parameters joined,
    converted and laid out once.

    On an x86 CPU torch's oneDNN product takes a weight in the blocks its loops read, and computes
    GELU on the way out. Without, blocks are made at every call, and the bias is written first and
    read again: a seventh more time, in bf16 and fp32.
    """

    def __init__(self, projections: Sequence[nn.Linear], dtype: torch.dtype):
        # Converted first: narrow numbers are quicker to join.
        self._weight, self._bias = (
            torch.cat([getattr(p, name).detach().to(dtype) for p in projections])
            for name in ("weight", "bias")
        )
        self._blocked = _has_blocks(self._weight)
        if self._blocked:
            self._weight = block_weight(self._weight)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """[R, in] to [R, out], the outputs of the projections side by side."""
        if not self._blocked:
            product = F.linear(x, self._weight, self._bias)
            return F.gelu(product) if gelu else product
        return blocked_linear(x, self._weight, self._bias, gelu)


def _has_blocks(weight: Tensor) -> bool:
    """Whether torch lays weights like this one out in blocks and gains by it: measured on x86."""
    on_host = weight.device.type == "cpu" and not backend.cuda_path(weight.device)
    x86 = backend.cpu_features().get("architecture") == "x86_64"
    return on_host and x86 and has_blocked_linear(weight.dtype)
