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
    module whose class name contains LayerNorm (ours, torch's, RMSNorm variants of foreign encoders
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
    a host sync.
    """
    return torch.optim.AdamW(
        parameter_groups(model, options.weight_decay),
        lr=options.peak_lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use one learning rate in every group."""
    for group in optimizer.param_groups:
        group["lr"] = value
