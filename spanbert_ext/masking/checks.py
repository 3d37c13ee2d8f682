"""Checks of what a masker is called with."""

from __future__ import annotations

import torch


def check_ids(name: str, ids: torch.Tensor, rank: int) -> None:
    """TypeError or ValueError unless `ids` is a contiguous int32 or int64 tensor of that rank."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64; got {ids.dtype}")
    if ids.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimension(s); got shape {tuple(ids.shape)}")
    if not ids.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous; got strides {ids.stride()}, call .contiguous()"
        )


def check_vector(name: str, values: torch.Tensor, size: int, device: torch.device) -> None:
    """TypeError or ValueError unless `values` is a contiguous [size] int32 or int64 there."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(values).__name__}")
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64; got {values.dtype}")
    if tuple(values.shape) != (size,):
        raise ValueError(f"{name} must have shape ({size},); got {tuple(values.shape)}")
    if values.device != device:
        raise ValueError(f"{name} must be on {device}; got {values.device}")
    if not values.is_contiguous():
        raise ValueError(f"{name} must be contiguous; got strides {values.stride()}")


def check_like(name: str, values: torch.Tensor, ids: torch.Tensor) -> None:
    """TypeError or ValueError unless `values` is a tensor of the shape of `ids` on its device."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(values).__name__}")
    if values.shape != ids.shape:
        raise ValueError(f"{name} must have shape {tuple(ids.shape)}; got {tuple(values.shape)}")
    if values.device != ids.device:
        raise ValueError(f"{name} must be on {ids.device}; got {values.device}")
