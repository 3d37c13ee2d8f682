"""Settings of pre-training. Torch-free: `spanbert pretrain --help` reads nothing else.

Defaults are the published SpanBERT settings (arXiv 1907.10529 section 4.2), not the flag defaults
of the old code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spanbert_ext.errors import ConfigError
from spanbert_ext.presets import PRESETS


@dataclass(frozen=True)
class ModelOptions:
    """Size of the encoder; what is null comes from the preset.

    Args:
        layers: number of transformer layers.
        hidden: width of the token vectors; the heads must divide it.
        heads: attention heads per layer.
        feed_forward: width of the feed-forward layers.
        dropout: dropout on embeddings, attention probabilities and sublayer outputs.
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class MaskingOptions:
    """How tokens are selected and corrupted (paper section 3.1).

    Args:
        mask_ratio: part of a sequence's tokens that is masked, in (0, 1].
        geometric_p: success probability of the geometric distribution of span lengths.
        min_words: shortest span, in words.
        max_words: longest span, in words; the distribution is renormalised over
            min_words..max_words.
        replacement: span draws 80/10/10 (mask, random, keep) once per span, piece once per token.
        max_span_targets: how many positions of a span the boundary objective predicts.
    """

    mask_ratio: float = 0.15
    geometric_p: float = 0.2
    min_words: int = 1
    max_words: int = 10
    replacement: Literal["span", "piece"] = "span"
    max_span_targets: int = 15


@dataclass(frozen=True)
class LossOptions:
    """The two objectives (paper section 3.2).

    Args:
        sbo_weight: weight of the span boundary objective; 0 switches it off.
        kind: code averages each objective over its own targets, paper sums both for each masked
            token.
    """

    sbo_weight: float = 1.0
    kind: Literal["code", "paper"] = "code"


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW with linear warm-up and linear decay to zero.

    Args:
        peak_lr: learning rate at the end of the warm-up.
        warmup_steps: steps of linear warm-up.
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
        eps: term that keeps the division finite.
        weight_decay: decoupled weight decay; biases and LayerNorm have none.
        clip_norm: largest global gradient norm of an update; 0 switches clipping off.
    """

    peak_lr: float = 1e-4
    warmup_steps: int = 10_000
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class BatchOptions:
    """What one update sees.

    Args:
        rows: rows of a batch; several short sequences share a row.
        max_length: tokens of a row, [CLS] and [SEP] included.
        micro_rows: rows computed at a time (gradient accumulation); null means all. It must divide
            rows. The update does not depend on it.
        resident: keep the training rows in the device's memory and make batches there; auto does so
            on a GPU where they take at most a quarter of the memory that is free.
    """

    rows: int = 256
    max_length: int = 512
    micro_rows: int | None = None
    resident: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True)
class RuntimeOptions:
    """How the step is run; the numbers do not depend on it but for their rounding.

    Args:
        graph: replay the step as CUDA graphs, which needs resident rows; auto does so on a GPU and
            goes on without where the step cannot be captured.
        compile: run the model through torch.compile, which takes a minute or two at the start; auto
            does not, since no measurement shows yet that it pays.
    """

    graph: Literal["auto", "on", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True)
class ValidationOptions:
    """Loss on held-out sequences, with the same masks every time.

    Args:
        every: steps between validations; 0 validates at the start and at the end only.
        rows: at most this many rows of the held-out part.
    """

    every: int = 1000
    rows: int = 256


@dataclass(frozen=True)
class CheckpointOptions:
    """When state is saved.

    Args:
        every: steps between checkpoints; the last step is always saved.
        keep: how many checkpoints stay on disk.
        space_check: refuse to start with room for fewer than two checkpoints.
    """

    every: int = 1000
    keep: int = 3
    space_check: bool = True


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a SpanBERT on a prepared corpus, or the demonstration if no corpus is named.

    Args:
        output: directory of the run: checkpoints, config.yaml, metrics.jsonl.
        corpus: directory written by `spanbert prepare`; null runs the demonstration on text every
            Python carries.
        init: continue from this Hugging Face directory (BERT or SpanBERT) instead of random
            weights.
        preset: size of a new model.
        steps: number of updates.
        precision: bf16 or fp32 for the matrix products; auto takes bf16 where the hardware computes
            in it.
        seed: of weights, dropout, order and masks.
        device: auto, cpu, cuda or cuda:N.
        resume: auto continues the newest whole checkpoint of the output directory, never refuses if
            there is one, anything else is the checkpoint directory to continue.
        log_every: steps between log lines.
    """

    output: str = "spanbert-run"
    corpus: str | None = None
    init: str | None = None
    preset: Literal["tiny", "mini", "small", "base", "large"] = "base"
    steps: int = 2_400_000
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    device: str = "auto"
    resume: str = "auto"
    log_every: int = 100
    model: ModelOptions = field(default_factory=ModelOptions)
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = [
            *_range_faults(self),
            *_model_faults(self),
            *_batch_faults(self),
            *_run_faults(self),
        ]
        if faults:
            raise ConfigError("\n".join(faults))

    def micro_rows(self) -> int:
        """Rows computed at a time."""
        return self.batch.micro_rows or self.batch.rows


# What `spanbert pretrain` does without a corpus: sized so that two CPU cores finish in a few
# minutes.
DEMONSTRATION = PretrainConfig(
    output="spanbert-demo",
    preset="tiny",
    steps=1200,
    log_every=50,
    optimizer=OptimizerOptions(peak_lr=2e-3, warmup_steps=100, weight_decay=0.01),
    batch=BatchOptions(rows=32, max_length=64),
    validation=ValidationOptions(every=200, rows=256),
    checkpoint=CheckpointOptions(every=400, keep=2),
)

# Settings that may differ between a checkpoint and the run that continues it: the numbers of an
# update do not depend on them (micro_rows, resident, device and the runtime change its rounding and
# which tokens dropout hits, nothing else).
FREE_ON_RESUME = frozenset(
    {
        "output",
        "corpus",
        "resume",
        "device",
        "log_every",
        "batch.micro_rows",
        "batch.resident",
        "runtime.graph",
        "runtime.compile",
        "validation.every",
        "validation.rows",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.space_check",
    }
)


def model_size(config: PretrainConfig) -> dict[str, int | float]:
    """The preset's BertConfig fields with the overrides of `config.model`."""
    size = dict(PRESETS[config.preset])
    model = config.model
    overrides = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": model.feed_forward,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
    }
    return size | {key: value for key, value in overrides.items() if value is not None}


def _range_faults(c: PretrainConfig) -> list[str]:
    positive = math.nextafter(0.0, 1.0)
    below_one = math.nextafter(1.0, 0.0)
    unlimited = math.inf
    ranges = [
        ("steps", c.steps, 1, unlimited),
        ("seed", c.seed, 0, 2**63 - 1),
        ("log_every", c.log_every, 1, unlimited),
        ("model.dropout", c.model.dropout, 0, below_one),
        ("masking.mask_ratio", c.masking.mask_ratio, positive, 1),
        ("masking.geometric_p", c.masking.geometric_p, positive, below_one),
        ("masking.min_words", c.masking.min_words, 1, unlimited),
        ("masking.max_span_targets", c.masking.max_span_targets, 1, unlimited),
        ("loss.sbo_weight", c.loss.sbo_weight, 0, unlimited),
        ("optimizer.peak_lr", c.optimizer.peak_lr, positive, unlimited),
        ("optimizer.warmup_steps", c.optimizer.warmup_steps, 0, unlimited),
        ("optimizer.beta1", c.optimizer.beta1, 0, below_one),
        ("optimizer.beta2", c.optimizer.beta2, 0, below_one),
        ("optimizer.eps", c.optimizer.eps, positive, unlimited),
        ("optimizer.weight_decay", c.optimizer.weight_decay, 0, unlimited),
        ("optimizer.clip_norm", c.optimizer.clip_norm, 0, unlimited),
        ("batch.rows", c.batch.rows, 1, unlimited),
        ("batch.max_length", c.batch.max_length, 8, unlimited),
        ("batch.micro_rows", c.batch.micro_rows, 1, unlimited),
        ("validation.every", c.validation.every, 0, unlimited),
        ("validation.rows", c.validation.rows, 1, unlimited),
        ("checkpoint.every", c.checkpoint.every, 1, unlimited),
        ("checkpoint.keep", c.checkpoint.keep, 1, unlimited),
        *((f"model.{name}", getattr(c.model, name), 1, unlimited) for name in _SIZES),
    ]
    return [
        _range_fault(name, value, low, high)
        for name, value, low, high in ranges
        if value is not None and not (low <= value <= high and value != math.inf)
    ]


_SIZES = ("layers", "hidden", "heads", "feed_forward")


def _range_fault(name: str, value: float, low: float, high: float) -> str:
    lower = f"[{low}" if low == 0 or low >= 1 else "(0"
    upper = "1]" if high == 1 else "1)" if high < 1 else "" if high == math.inf else f"{high}]"
    if upper:
        return f"{name}: must lie in {lower}, {upper}; got {value}"
    return (
        f"{name}: must be {'greater than 0' if lower == '(0' else f'at least {low}'}; got {value}"
    )


def _model_faults(c: PretrainConfig) -> list[str]:
    faults = []
    if c.init is not None:
        given = [f"model.{name}" for name in _SIZES if getattr(c.model, name) is not None]
        faults += [f"{name}: the size comes from init {c.init}; leave it out" for name in given]
        return faults
    size = model_size(c)
    hidden, heads = size["hidden_size"], size["num_attention_heads"]
    if heads >= 1 and hidden % heads:
        faults.append(f"model.heads: {heads} heads do not divide a hidden size of {hidden}")
    positions = size.get("max_position_embeddings", 512)
    if c.batch.max_length > positions:
        faults.append(
            f"batch.max_length: at most {positions} (positions of the model); got "
            f"{c.batch.max_length}"
        )
    return faults


def _batch_faults(c: PretrainConfig) -> list[str]:
    faults = []
    micro = c.batch.micro_rows
    if micro and micro >= 1 and c.batch.rows % micro:
        faults.append(f"batch.micro_rows: {micro} does not divide batch.rows {c.batch.rows}")
    if c.masking.max_words < c.masking.min_words:
        faults.append(
            f"masking.max_words: {c.masking.max_words} is below masking.min_words "
            f"{c.masking.min_words}"
        )
    return faults


def _run_faults(c: PretrainConfig) -> list[str]:
    faults = []
    if c.optimizer.warmup_steps > c.steps:
        faults.append(
            f"optimizer.warmup_steps: {c.optimizer.warmup_steps} steps of warm-up do not fit into "
            f"{c.steps} steps"
        )
    if c.device not in ("auto", "cpu", "cuda") and not c.device.removeprefix("cuda:").isdigit():
        faults.append(f"device: must be auto, cpu, cuda or cuda:N; got {c.device!r}")
    if c.runtime.graph == "on" and c.batch.resident == "off":
        faults.append("runtime.graph: a graph needs rows on the device; batch.resident is off")
    if c.runtime.graph == "on" and c.device == "cpu":
        faults.append("runtime.graph: there are no CUDA graphs on a CPU; device is cpu")
    return faults
