"""AdamW with parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import torch
from torch import nn

from spanbert_ext.training.config import OptimizerOptions


def learning_rate(step: int, steps: int, warmup_steps: int, peak_lr: float) -> float:
    """Learning rate of update `step` (0-based): linear warm-up, then linear decay that would reach
    0 at `steps`.

    The first update already moves (peak / warmup_steps) and the rate is continuous at the end of
    the warm-up.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    return peak_lr * (steps - step) / (steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and embeddings with weight decay; biases and LayerNorm parameters
    without.

    A bias is a parameter whose name ends in `bias`; a LayerNorm parameter is any that belongs to a
    module whose class name contains LayerNorm (ours, torch's, RMSNorm variants of other encoders
    included by `Norm`).
    """
    plain: set[int] = set()
    for module in model.modules():
        if "Norm" in type(module).__name__:
            plain.update(id(parameter) for parameter in module.parameters(recurse=False))
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = id(parameter) in plain or name.endswith("bias")
            (undecayed if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; fused, because only the fused step can skip an update without
    a host sync. The learning rate is a tensor, so that a captured step reads what was written last.
    """
    return torch.optim.AdamW(
        parameter_groups(model, options.weight_decay),
        lr=rate_tensor(options.peak_lr, next(model.parameters()).device),
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def rate_tensor(value: float, device: torch.device) -> torch.Tensor:
    """A learning rate as the fused update of a device reads it: the GPU's kernel fp32; the CPU's
    takes a double, as it does of a Python number."""
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return torch.tensor(value, dtype=dtype, device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float | torch.Tensor) -> None:
    """Use one learning rate, a number or a one-element tensor, in every group."""
    for group in optimizer.param_groups:
        if isinstance(value, torch.Tensor):
            group["lr"].copy_(value.reshape(()))
        else:
            group["lr"].fill_(value)


class DeviceSchedule:
    """`learning_rate` of a step counter on the device, bit for bit.

    Args:
        steps, warmup_steps, peak_lr: as in `learning_rate`.
        device: of the counter.
    """

    def __init__(self, steps: int, warmup_steps: int, peak_lr: float, device: torch.device):
        self._steps, self._warmup_steps, self._peak_lr = steps, warmup_steps, peak_lr
        # Tensors, because a GPU multiplies by the inverse of a number instead of dividing by it;
        # a phase that lasts no step is never chosen.
        self._rising, self._falling = (
            torch.full((1,), max(1, length), dtype=torch.float64, device=device)
            for length in (warmup_steps, steps - warmup_steps)
        )

    def __call__(self, step: torch.Tensor) -> torch.Tensor:
        """[1] int64 to [1] fp64."""
        rising = (step + 1).double() * self._peak_lr / self._rising
        falling = (self._steps - step).double() * self._peak_lr / self._falling
        return torch.where(step < self._warmup_steps, rising, falling)
