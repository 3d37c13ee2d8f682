"""Which kind of step a run takes: compiled or not, captured, on the device, or by the host."""

from __future__ import annotations

import torch
from torch import nn

from spanbert_ext.errors import ConfigError
from spanbert_ext.training.config import RuntimeOptions
from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.graphed_step import GraphedStep
from spanbert_ext.training.loop import HostStep, Step
from spanbert_ext.training.objective import LoopSettings, Objective
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.replica import Replica


def choose_compile(wanted: str) -> bool:
    """Whether the model goes through torch.compile; `auto` does not.

    On a CPU the shapes of a step follow the data. On a GPU it is unmeasured: predicted are 1360
    rows/s in place of 1100 (BERT-base, H200) from fused element-wise work, most of which the
    encoder's own operations fuse too. `benchmarks.gpu` measures both.
    """
    return wanted == "on"


def build_replica(
    model: nn.Module, compiled: bool, ranks: Ranks = ALONE, strategy: str = "ddp"
) -> Replica:
    """What a step calls in place of the model; parameters and names stay the model's."""
    forward = torch.compile(model) if compiled else model
    # Of ours every parameter gets a gradient; another encoder may carry a pooler that nobody reads.
    return Replica(
        forward, ranks, strategy, idle_parameters=model.config.encoder_config is not None
    )


def build_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    settings: LoopSettings,
    options: RuntimeOptions,
    ranks: Ranks = ALONE,
    strategy: str = "ddp",
) -> Step:
    """The step of a run.

    Args:
        objective: its `data` are `PretrainBatches`.
        strategy: how ranks share the model, as in `Replica`.

    Raises:
        ConfigError: graphs are required where there are no resident rows or no GPU, or several
            processes.
    """
    device = next(model.parameters()).device
    if options.graph == "on" and not (objective.data.resident and device.type == "cuda"):
        what = "a CUDA device" if device.type != "cuda" else "rows that fit on it (batch.resident)"
        raise ConfigError(f"runtime.graph: graphs need {what}; choose auto or off")
    if options.graph == "on" and ranks.world > 1:
        raise ConfigError("runtime.graph: the exchange between processes is not captured")
    replica = build_replica(model, choose_compile(options.compile), ranks, strategy)
    if not objective.data.resident:
        return HostStep(model, optimizer, objective, settings, replica)
    step = DeviceStep(model, optimizer, objective, settings, replica)
    if options.graph == "off" or device.type != "cuda" or ranks.world > 1:
        return step
    return GraphedStep(step, required=options.graph == "on")


def describe_step(step: Step, compiled: bool) -> str:
    """The kind of a step, for logs and benchmark rows."""
    kinds = {
        HostStep: "batches from the host",
        DeviceStep: "rows on the device",
        GraphedStep: "rows on the device, CUDA graphs",
    }
    return kinds[type(step)] + (", compiled" if compiled else "")
