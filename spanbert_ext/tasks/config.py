"""Settings of `spanbert finetune | evaluate | predict`, for every task alike. Torch-free.

`registry.settings_class` adds the section of a task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.file_checks import no_files, outputs
from spanbert_ext.tasks.rejects import REJECT_LIMIT
from spanbert_ext.training import trackers
from spanbert_ext.training.config import CheckpointOptions, NumericsOptions, ParallelOptions
from spanbert_ext.training.config_checks import device_faults

# Tokens of a prediction that are computed at a time: enough to keep the products busy. Twice as
# many were a seventh slower on a CPU: memory of that size goes back to the system after every use.
BATCH_TOKENS = 4096


class TaskOptions:
    """What the section of every task can do."""

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        return []

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        _refuse(self.faults())


@dataclass(frozen=True)
class FinetuneOptimizer:
    """AdamW with linear warm-up and linear decay to zero.

    Args:
        peak_lr: learning rate at the end of the warm-up (the paper tries 5e-6 to 5e-5).
        warmup: share of the steps that warm up.
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
        eps: term that keeps the division finite.
        weight_decay: decoupled weight decay; biases and LayerNorm have none.
        clip_norm: largest global gradient norm of an update; 0 switches clipping off.
    """

    peak_lr: float = 2e-5
    warmup: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        return [
            *below("optimizer.peak_lr", self.peak_lr, 0, strict=True),
            *below("optimizer.eps", self.eps, 0, strict=True),
            *below("optimizer.weight_decay", self.weight_decay, 0),
            *below("optimizer.clip_norm", self.clip_norm, 0),
            *share("optimizer.warmup", self.warmup),
            *share("optimizer.beta1", self.beta1),
            *share("optimizer.beta2", self.beta2),
        ]


@dataclass(frozen=True)
class FinetuneBatch:
    """What one update sees.

    Args:
        examples: sequences of a batch; a text that is longer than the window is several.
        micro_tokens: tokens computed at a time (gradient accumulation); the update does not depend
            on it.
    """

    examples: int = 32
    micro_tokens: int = 16384

    def faults(self) -> list[str]:
        """One line for every impossible value."""
        return [
            *below("batch.examples", self.examples, 1),
            *below("batch.micro_tokens", self.micro_tokens, 1),
        ]


@dataclass(frozen=True)
class FinetuneRuntime:
    """How the step is run; the numbers do not depend on it but for their rounding.

    Args:
        deterministic: take torch's deterministic algorithms, so that a GPU repeats every bit, as a
            CPU does anyway; slower, and a step for which torch has none stops.
    """

    deterministic: bool = False


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a model for a task.

    Args:
        model: what to start from: a directory or hub name of a BERT, a SpanBERT or another encoder,
            a run of `spanbert pretrain`, an archive of the original SpanBERT, or a fine-tuned
            model.
        train: files of training data, in the task's format.
        dev: files that choose the best model; without any the last one counts.
        output: directory of the run: checkpoints, best/, config.yaml, metrics.jsonl, metrics.json.
        epochs: passes over the training data; null takes the paper's (4, or 10 for relations,
            tagging and most of GLUE).
        max_steps: end after this many updates, whatever the epochs.
        train_limit: use only so many training examples, drawn with the seed.
        evals_per_epoch: evaluations on dev in an epoch; the best one's model stays in best/; null
            takes 2, and in a run of less than an epoch two in all.
        dropout: of embeddings, attention and sublayers; null keeps the model's.
        on_error: what becomes of records that cannot be used: error stops at the first, skip lists
            them in rejects.jsonl.
        reject_limit: share of a file's records, from 0 to 1, that skip may leave out; above it the
            file is refused. One record may always be left out, but with 0.
        precision: bf16 or fp32 for the matrix products; auto takes bf16 where the hardware computes
            in it.
        seed: of new weights, dropout, order and the sample of train_limit.
        device: auto, cpu, cuda or cuda:N.
        nproc: processes on this machine that share every batch.
        resume: auto continues the newest whole checkpoint of the output directory, never refuses if
            there is one, anything else is the checkpoint to continue.
        strict_resume: stop where the newest checkpoint is damaged instead of continuing an older
            one.
        weights_only: accept a checkpoint whose optimizer or generator file is missing or damaged,
            and start these anew.
        log_every: steps between log lines; null takes 20, and in a run of less than 200 steps a
            tenth of it.
        report_to: where numbers go besides metrics.jsonl: tensorboard, wandb or both.
    """

    model: str
    train: list[str]
    dev: list[str] = field(default_factory=list)
    output: str = "spanbert-finetuned"
    epochs: float | None = None
    max_steps: int | None = None
    train_limit: int | None = None
    evals_per_epoch: int | None = None
    dropout: float | None = None
    on_error: Literal["error", "skip"] = "error"
    reject_limit: float = REJECT_LIMIT
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 42
    device: str = "auto"
    nproc: int = 1
    resume: str = "auto"
    strict_resume: bool = False
    weights_only: bool = False
    log_every: int | None = None
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    optimizer: FinetuneOptimizer = field(default_factory=FinetuneOptimizer)
    batch: FinetuneBatch = field(default_factory=FinetuneBatch)
    runtime: FinetuneRuntime = field(default_factory=FinetuneRuntime)
    checkpoint: CheckpointOptions = field(
        default_factory=lambda: CheckpointOptions(every=500, keep=1)
    )
    numerics: NumericsOptions = field(default_factory=NumericsOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        b, c = self.batch, self.checkpoint
        faults = [
            *below("epochs", self.epochs, 0, strict=True),
            *below("max_steps", self.max_steps, 1),
            *below("train_limit", self.train_limit, 1),
            *below("evals_per_epoch", self.evals_per_epoch, 0),
            *below("seed", self.seed, 0),
            *below("nproc", self.nproc, 1),
            *below("log_every", self.log_every, 1),
            *self.optimizer.faults(),
            *b.faults(),
            *below("checkpoint.every", c.every, 1),
            *below("checkpoint.keep", c.keep, 1),
            *below("checkpoint.retries", c.retries, 0),
            *below("parallel.timeout", self.parallel.timeout, 1),
            *share("dropout", self.dropout),
            *device_faults(self.device),
            *_limit(self.reject_limit),
            *no_files("train", self.train, required=True),
            *no_files("dev", self.dev),
            *(f"report_to: {line}" for line in trackers.missing(self.report_to)),
            *self.task_options.faults(),
        ]
        if b.examples % max(1, self.nproc):
            faults.append(
                f"batch.examples: {b.examples} cannot be shared evenly by {self.nproc} processes"
            )
        _refuse(faults)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a fine-tuned model on data with gold answers.

    Args:
        model: directory of a fine-tuned model, or a run of `spanbert finetune` (its best model).
        data: files in the task's format.
        metrics: file for the numbers as JSON; null prints them only.
        predictions: file for the predictions in the layout of the task's official scorer. squad2
            writes the best answers, beside them NAME_na.json for --na-prob-file and
            NAME_thresholded.json with "" above the threshold; tacred labels, and NAME_ids.
        html: file for a page that shows the predictions in their texts.
        plot: image with the confusion of labels, or the distribution of scores.
        limit: use only so many examples, from the start.
        on_error: what becomes of records that cannot be used: error stops at the first, skip leaves
            them out and lists them on the console.
        reject_limit: share of a file's records, from 0 to 1, that skip may leave out; above it the
            file is refused. One record may always be left out, but with 0.
        precision: bf16, fp32 or auto.
        device: auto, cpu, cuda or cuda:N.
        batch_tokens: tokens computed at a time.
    """

    model: str
    data: list[str]
    metrics: str | None = None
    predictions: str | None = None
    html: str | None = None
    plot: str | None = None
    limit: int | None = None
    on_error: Literal["error", "skip"] = "error"
    reject_limit: float = REJECT_LIMIT
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    batch_tokens: int = BATCH_TOKENS

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        _refuse(
            [
                *below("limit", self.limit, 1),
                *below("batch_tokens", self.batch_tokens, 1),
                *_limit(self.reject_limit),
                *device_faults(self.device),
                *no_files("data", self.data, required=True),
                *outputs(self, ("metrics", "predictions", "html", "plot"), self.data),
                *self.task_options.faults(),
            ]
        )


@dataclass(frozen=True)
class PredictConfig:
    """Predict for every line of a JSONL file, or for a text; started again, it goes on where it
    was.

    Args:
        model: directory of a fine-tuned model, or a run of `spanbert finetune` (its best model).
        files: the file of records, one JSON object a line (one that ends in .txt is one text, for
            tasks that need no more), and the file to write, one line for each in the same order.
        html: file for a page that shows the predictions in their texts.
        overwrite: write anew what another command has written.
        on_error: what becomes of records that cannot be used: error stops at the first, skip writes
            a line with the reason in its place.
        precision: bf16, fp32 or auto.
        device: auto, cpu, cuda or cuda:N.
        batch_tokens: tokens computed at a time.
    """

    model: str
    files: list[str]
    html: str | None = None
    overwrite: bool = False
    on_error: Literal["error", "skip"] = "error"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    batch_tokens: int = BATCH_TOKENS

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = [
            *below("batch_tokens", self.batch_tokens, 1),
            *device_faults(self.device),
            *self.task_options.faults(),
        ]
        if len(self.files) != 2:
            faults.append("files: expected a file of records and a file to write")
        else:
            faults += no_files("files", self.files[:1])
            if Path(self.files[0]).resolve() == Path(self.files[1]).resolve():
                faults.append("files: the records would be written over; name another file")
            faults += outputs(self, ("html",), self.files)
        _refuse(faults)


def below(name: str, value: float | None, least: float, strict: bool = False) -> list[str]:
    """A line if a number is too small; None is fine."""
    if value is None or value > least or (value == least and not strict):
        return []
    return [f"{name}: must be {'greater than' if strict else 'at least'} {least}; got {value}"]


def _limit(value: float) -> list[str]:
    return [] if 0 <= value <= 1 else [f"reject_limit: must lie in [0, 1]; got {value}"]


def share(name: str, value: float | None) -> list[str]:
    """A line if a number is not in [0, 1); None is fine."""
    if value is None or 0 <= value < 1:
        return []
    return [f"{name}: must lie in [0, 1); got {value}"]


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ConfigError("\n".join(faults))


def steps_of(config: Any, epochs: float, batches_per_epoch: int) -> int:
    """Updates of a run."""
    steps = max(1, round(epochs * batches_per_epoch))
    return steps if config.max_steps is None else min(steps, config.max_steps)
