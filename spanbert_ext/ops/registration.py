"""What all operations share: argument checks, registration, and where a native call runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spanbert_ext.ops import backend
from spanbert_ext.ops.reference.dropout import DRAWS
from spanbert_ext.ops.torch_private import assert_later

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_library = torch.library.Library("spanbert_ext", "DEF")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for rows of at most 32 bits, double for double rows."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(tensor: Tensor):
    """Device and stream of a native call; torch's current stream on a GPU."""
    if not backend.cuda_path(tensor.device):
        return backend.native_module.Place(-1, 0)
    if tensor.device.type == "cpu":  # the emulated GPU
        return backend.native_module.Place(0, 0)
    stream = torch.cuda.current_stream(tensor.device)
    return backend.native_module.Place(tensor.device.index, stream.cuda_stream)


def check(name: str, tensor: Tensor, shape: tuple, dtype: torch.dtype, like: Tensor) -> None:
    """ValueError or TypeError unless shape (None: any size), dtype, device and layout are right."""
    sizes = tuple(tensor.shape)
    # Most shapes fit as they are; spelling out the rest costs more than the comparison.
    if sizes != shape and not _fits(sizes, shape):
        raise ValueError(f"{name} must have shape {shape}; got {sizes}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}; got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}; got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous; got strides {tensor.stride()}")


def _fits(sizes: tuple, shape: tuple) -> bool:
    if len(sizes) != len(shape):
        return False
    return all(want is None or want == got for want, got in zip(shape, sizes, strict=True))


def check_float(name: str, values: Tensor, rank: int) -> None:
    """TypeError or ValueError unless `values` has one of the four dtypes of rows and `rank`."""
    if values.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64; got {values.dtype}")
    if values.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimension(s); got shape {tuple(values.shape)}")


def check_rows(name: str, rows: Tensor) -> None:
    """A contiguous [R, H] of one of the four dtypes of rows."""
    check_float(name, rows, 2)
    check(name, rows, (None, None), rows.dtype, rows)


def check_draws(like: Tensor, seed: Tensor | None, site: int, threshold: int) -> None:
    """ValueError or TypeError unless dropout's draws have what they need."""
    if not 0 <= site < 1 << 32:
        raise ValueError(f"site must lie in [0, 2^32); got {site}")
    if not 0 <= threshold <= DRAWS:
        raise ValueError(f"threshold must lie in [0, {DRAWS}]; got {threshold}")
    if threshold and seed is None:
        raise ValueError("seed is needed when something is dropped")
    if seed is not None:
        check("seed", seed, (1,), torch.int64, like)


def readable(values: Tensor) -> bool:
    """Whether looking at the numbers costs nothing: neither a sync nor a broken graph."""
    on_host = values.device.type == "cpu" and not backend.cuda_path(values.device)
    return on_host and not torch.compiler.is_compiling()


def check_range(
    name: str,
    index: Tensor,
    size: int,
    used: Callable[[], Tensor] | None = None,
    kernel_asserts: bool = False,
) -> None:
    """IndexError unless integers lie in [0, size) wherever `used()`; where their numbers cannot be
    read without a sync, a device assertion.

    Args:
        kernel_asserts: the native operation that reads them makes the assertion itself, which
            saves the launches of another one.
    """
    if not readable(index):
        if not (kernel_asserts and backend.use_native(index.device)):
            fine = (index >= 0) & (index < size)
            if used is not None:
                fine |= ~used()
            assert_later(fine.all(), f"{name} must lie in [0, {size})")
        return
    if index.numel() == 0:
        return
    low, high = (int(value) for value in index.aminmax())
    if low >= 0 and high < size:
        return
    bad = (index < 0) | (index >= size)
    if used is not None:
        bad &= used()
    if bool(bad.any()):
        bad, flat = bad.reshape(-1), index.reshape(-1)
        first = int(bad.nonzero()[0])
        got = f"{int(flat[first])} at flat index {first}"
        raise IndexError(f"{name} must lie in [0, {size}); got {got}")


def define(schema: str, implementation, fake, setup_context=None, backward=None) -> None:
    """Register an operation with its CPU and CUDA implementation, fake and autograd rule."""
    name = _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"spanbert_ext::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"spanbert_ext::{name}", backward, setup_context=setup_context, lib=_library
        )


def refuse(ctx, *_):
    """The autograd rule of a backward operation: without one, torch would answer with zeros."""
    raise RuntimeError("spanbert_ext operations are differentiable once, not twice")
