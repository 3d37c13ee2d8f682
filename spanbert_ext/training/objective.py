"""What a run trains: the one interface between a kind of training and `run.Run`.

Pre-training and each kind of fine-tuning are an `Objective`. A run calls `read` before it touches a
directory, `prepare` once it knows its checkpoint, `build_model` or `load_model`, `build_batches`,
`build_step`; the loop calls `data`, `counts` and `loss`; the other methods say how to validate and
what to store.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from spanbert_ext.ops import backend
from spanbert_ext.training.config import NumericsOptions
from spanbert_ext.training.models import choose_precision
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.state import RunState
from spanbert_ext.weights.load_report import LoadReport

if TYPE_CHECKING:
    from spanbert_ext.training.loop import Step
    from spanbert_ext.training.run import Run, RunResult


@dataclass(frozen=True)
class LoopSettings:
    """Numbers the loop needs; see PretrainConfig for their meaning."""

    steps: int
    peak_lr: float
    warmup_steps: int
    clip_norm: float
    precision: str
    log_every: int
    numerics: NumericsOptions = NumericsOptions()


class Batches(Protocol):
    """The batches of a run, a pure function of settings and step.

    `shift` is the number of batches that the run has jumped over: step s sees batch s + shift.
    `batches` gives this rank's micro-batches of a step, `num_tokens` the tokens of a step on all
    ranks that are not padding, `describe` what identifies a step's batch, as JSON.
    """

    shift: int

    def batches(self, step: int) -> list[Any]: ...
    def num_tokens(self, step: int) -> int: ...
    def describe(self, step: int) -> dict[str, Any]: ...


class Objective(ABC):
    """What a run trains: data, model, batches, loss and validation of one kind of training.

    Args:
        config: valid settings; names are those of `PretrainConfig` where they mean the same.

    Attributes:
        command: words of the command before its settings, for the processes of `nproc`.
        loss_names: the parts of the loss that are logged.
        steps: updates of the run; known after `prepare`.
        data: known after `build_batches`.
        tokenizer_dir: its files go into every checkpoint; None for none.
        load_report: what `build_model` took over, where it starts from given weights.
        device, ranks, precision: where, who shares the work, and in what; known after `prepare`.
    """

    command: Sequence[str]
    loss_names: Sequence[str] = ("loss",)
    steps: int
    data: Batches
    tokenizer_dir: Path | None = None
    load_report: LoadReport | None = None

    def __init__(self, config: Any):
        self.config = config
        self.device, self.ranks, self.precision = torch.device("cpu"), ALONE, "fp32"

    @abstractmethod
    def is_finished(self, state: RunState, start: Path) -> bool:
        """Whether the state of the checkpoint `start` is that of the last step of a run with these
        settings."""

    @abstractmethod
    def read(self) -> None:
        """Read the data, before the output directory is touched."""

    def choose_precision(self, device: torch.device) -> str:
        """fp32 or bf16."""
        return choose_precision(self.config.precision, device)

    @abstractmethod
    def memory_advice(self, processes: int) -> str:
        """What to do where memory runs out."""

    def prepare(
        self,
        start: Path | None,
        device: torch.device,
        ranks: Ranks,
        held: contextlib.ExitStack,
    ) -> None:
        """Everything that must be known before there is a model: at least `steps`.

        Args:
            start: checkpoint to continue, None to begin.
            held: closed once the model is there.
        """
        self.device, self.ranks = device, ranks
        self.precision = self.choose_precision(device)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Fields of the `RunState` of a run that has not begun: settings, and digests of what the
        run depends on."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model that a new run trains."""

    @abstractmethod
    def load_model(self, path: Path) -> nn.Module:
        """The model of a checkpoint."""

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return build_optimizer(model, self.config.optimizer)

    @abstractmethod
    def build_batches(self, model: nn.Module) -> Batches:
        """The batches of the training data, as this model reads them."""

    @abstractmethod
    def loop_settings(self) -> LoopSettings:
        """Numbers of the loop."""

    @abstractmethod
    def build_step(self, run: Run) -> Step:
        """How an update is done."""

    @abstractmethod
    def counts(self, micro_batch: Any) -> torch.Tensor:
        """[C] int64, what a micro-batch adds to the divisors of its step; C is one per loss part,
        or whatever `loss` divides by."""

    @abstractmethod
    def loss(
        self, model: nn.Module, micro_batch: Any, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to differentiate and its detached parts [len(loss_names)], both divided by the
        divisors of the whole step, so that sums over micro-batches are the values of the big batch.
        Device scalars, never read here."""

    @abstractmethod
    def introduction(self, model: nn.Module) -> list[str]:
        """Lines for the person watching, before the first step."""

    def where_it_runs(self) -> str:
        """Processes, device, precision, back end and threads, for `introduction`."""
        world = self.ranks.world
        processes = f"{world} processes ({self.config.parallel.strategy}), " if world > 1 else ""
        return (
            f"{processes}{self.device}, {self.precision}, {backend.name(self.device)}, "
            f"{torch.get_num_threads()} threads"
        )

    @abstractmethod
    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Numbers on held-out data after `step` updates; empty without such data."""

    def evaluated(self, run: Run, numbers: dict[str, float], seconds: float) -> None:
        """What follows an evaluation: nothing, or keeping the best model."""
        return

    @abstractmethod
    def validates_after(self, step: int) -> bool:
        """Whether to validate after `step` updates, not counting the last one."""

    @abstractmethod
    def samples(self, step: int) -> int:
        """Rows or examples seen after `step` updates."""

    def write_files(self, run: Path) -> None:
        """Files of a run's directory beside those that every run has; none by default."""
        return

    def write_model(self, directory: Path) -> None:
        """Files of a checkpoint beside the weights and the tokenizer's; none by default."""
        return

    def resumed(self, run: Run) -> None:
        """What else a run's state takes from its directory when it continues a checkpoint."""
        return

    def finished(self, run: Run, result: RunResult) -> None:
        """What the end of a run leaves."""
        return
