"""What the package uses of torch that torch does not promise, each with the public way that it
falls back to."""

from __future__ import annotations

import torch
from torch import Tensor

_LINEAR = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


def assert_later(condition: Tensor, message: str) -> None:
    """RuntimeError with `message` unless a bool scalar on any device is true: on a GPU at its next
    synchronisation, as a device assertion. Without that, the scalar is read, which waits for it."""
    if hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise RuntimeError(message)


def has_blocked_linear(dtype: torch.dtype) -> bool:
    """Whether `blocked_linear` is there for weights of a dtype: what torch's compiler emits for
    linear layers on an x86 CPU. Otherwise F.linear does the same."""
    mkldnn = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(hasattr(mkldnn, x) for x in _LINEAR):
        return False
    narrow = dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported()
    return narrow or dtype == torch.float32


def block_weight(weight: Tensor) -> Tensor:
    """A weight [out, in] in the blocks that oneDNN's loops read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def blocked_linear(x: Tensor, blocked: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """F.linear, then F.gelu if asked for, with a weight of `block_weight`: [R, in] to [R, out]."""
    name = "gelu" if gelu else "none"
    return torch.ops.mkldnn._linear_pointwise(x, blocked, bias, name, [], "none")
