"""The model as one of several ranks holds it: whole (DDP) or in shares (FSDP2), and its tensors put
together again for a checkpoint, which looks the same either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from spanbert_ext.training.ranks import ALONE, Ranks


class Replica:
    """What a step calls in place of the model; gradients come out summed over the ranks.

    Args:
        forward: the model, or what stands for it (compiled); its parameters are the model's.
        ranks: who trains together.
        strategy: "ddp" exchanges gradients here; "fsdp" is for a model that `shard` has divided,
            which does so itself. Without other ranks it means nothing.
        idle_parameters: some parameters get no gradient, so nobody may wait for theirs.
    """

    def __init__(
        self,
        forward: nn.Module | Callable,
        ranks: Ranks = ALONE,
        strategy: str = "ddp",
        idle_parameters: bool = False,
    ):
        self.ranks = ranks
        self._forward = forward
        self._exchanges = ranks.world > 1 and strategy == "ddp"
        if self._exchanges:
            self._forward = nn.parallel.DistributedDataParallel(
                forward, gradient_as_bucket_view=True, find_unused_parameters=idle_parameters
            )

    def __call__(self, *arguments, **named):
        """The model's output."""
        return self._forward(*arguments, **named)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss that is divided by the targets of all ranks."""
        if self.ranks.world > 1:
            loss = loss * self.ranks.world  # both strategies average over the ranks
        loss.backward()

    def adding(self, last: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward of a micro-batch: ranks exchange gradients at the last one.

        Shares are exchanged every time, or every rank would hold whole gradients.
        """
        if self._exchanges and not last:
            return self._forward.no_sync()
        return contextlib.nullcontext()


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Divide every parameter among the ranks (FSDP2), layer by layer; before the optimizer is made.

    A layer's parameters are whole only while it computes.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (ranks.world,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in max(lists, key=len):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor or the shares of one, detached, as a plain tensor; all ranks must call it alike."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's share of a tensor, or all of one that is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divided_like(value: torch.Tensor, model_tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor, equal on every rank, placed and divided as `model_tensor` is."""
    value = value.to(model_tensor.device)
    if not isinstance(model_tensor, DTensor) or value.dim() == 0:
        return value
    return distribute_tensor(value, model_tensor.device_mesh, model_tensor.placements)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Write the parameters of a whole model over those of another one, in place: captured graphs
    and optimizer states go on with the same memory.
    """
    own = dict(target.named_parameters())
    for name, value in source.named_parameters():
        own[name].copy_(divided_like(value, own[name]))
