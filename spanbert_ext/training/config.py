"""Settings of pre-training. Torch-free: `spanbert pretrain --help` reads nothing else.

Defaults are the published SpanBERT settings (arXiv 1907.10529 section 4.2), not the flag defaults
of the old code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spanbert_ext.errors import ConfigError
from spanbert_ext.training.config_checks import faults_of


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
    """How tokens are selected and corrupted (paper sections 3.1 and 6.1).

    Args:
        scheme: span masks stretches of words (SpanBERT), piece single pieces (BERT), word single
            words; entity and phrase mask candidates that `spanbert prepare --annotate` marked in
            the corpus, and words.
        candidate_prob: share of the draws of entity and phrase that take a candidate, while there
            is one.
        mask_ratio: part of a sequence's tokens that is masked, in (0, 1]; 1 masks them all.
        geometric_p: success probability of the geometric distribution of the scheme span's lengths.
        min_words: shortest length that is drawn for a span, in words. A span is shorter where a
            special token or the end of the sequence comes first, or where it is the last one of a
            sequence, which ends when mask_ratio is reached.
        max_words: longest length that is drawn, in words; the distribution is renormalised over
            min_words..max_words. Spans that touch become one longer span.
        replacement: span draws 80/10/10 (mask, random, keep) once per span, piece once per token,
            as the scheme piece always does.
        max_span_targets: how many positions of a span the boundary objective predicts.
        endpoints: external predicts a span from the tokens around it, internal from its own first
            and last.
    """

    scheme: Literal["span", "piece", "word", "entity", "phrase"] = "span"
    candidate_prob: float = 0.5
    mask_ratio: float = 0.15
    geometric_p: float = 0.2
    min_words: int = 1
    max_words: int = 10
    replacement: Literal["span", "piece"] = "span"
    max_span_targets: int = 15
    endpoints: Literal["external", "internal"] = "external"

    def candidates(self) -> Literal["entity", "phrase"] | None:
        """The kind of candidates that the scheme draws."""
        return self.scheme if self.scheme in ("entity", "phrase") else None


@dataclass(frozen=True)
class LossOptions:
    """The objectives (paper section 3.2). Next sentence prediction comes with `batch.pairs`.

    Args:
        sbo_weight: weight of the span boundary objective; 0 leaves it and its head out.
        sbo_layer: layer whose output the span boundary objective reads, counted from 0, or from the
            last one with -1.
        kind: code averages each objective over its own targets, paper sums both for each masked
            token.
    """

    sbo_weight: float = 1.0
    sbo_layer: int = -1
    kind: Literal["code", "paper"] = "code"


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW with linear warm-up and linear decay to zero.

    Args:
        peak_lr: learning rate at the end of the warm-up.
        warmup_steps: steps of linear warm-up; on the command line a tenth of the steps where the
            run is shorter than the default.
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
        rows: rows of a batch; several short sequences share a row. On the command line as many as
            the corpus fills where it fills fewer than the default.
        max_length: tokens of a row, [CLS] and [SEP] included.
        micro_rows: rows computed at a time (gradient accumulation); null means all. It must divide
            rows. The update does not depend on it.
        resident: keep the training rows in the device's memory and make batches there; auto does so
            on a GPU where they take at most a quarter of the memory that is free. Pairs are made on
            the host.
        pairs: sequences are two segments, half of the time from two documents, and next sentence
            prediction tells which (BERT; the paper's bi-sequence models). Each segment is masked on
            its own.
        short_prob: chance of a pair to be limited to fewer tokens than a row has.
    """

    rows: int = 256
    max_length: int = 512
    micro_rows: int | None = None
    resident: Literal["auto", "on", "off"] = "auto"
    pairs: bool = False
    short_prob: float = 0.0


@dataclass(frozen=True)
class RuntimeOptions:
    """How the step is run; the numbers do not depend on it but for their rounding.

    Args:
        graph: replay the step as CUDA graphs, which needs resident rows; auto does so on a GPU and
            goes on without where the step cannot be captured.
        compile: run the model through torch.compile, which takes a minute or two at the start; auto
            does not, since no measurement shows yet that it pays.
        deterministic: take torch's deterministic algorithms, so that a GPU repeats every bit, as a
            CPU does anyway; slower, and a step for which torch has none stops.
    """

    graph: Literal["auto", "on", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False


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
        retries: further attempts to write a checkpoint after one that failed; then the run stops.
        retry_seconds: before the first further attempt; doubled before each one after it.
    """

    every: int = 1000
    keep: int = 3
    space_check: bool = True
    retries: int = 3
    retry_seconds: float = 5.0


@dataclass(frozen=True)
class NumericsOptions:
    """What happens to updates whose gradient is not finite, or far larger than those before.

    Such batches are listed in bad_batches.jsonl. Not finite ones are always skipped.

    Args:
        max_skipped: this many non-finite updates in a row end the run.
        spike_factor: a gradient norm above this many medians of recent norms is a spike; 0 looks
            for none.
        spike_window: recent norms that the median is taken of.
        spike_policy: warn applies the update, skip does not, rollback goes back to the newest
            checkpoint and jumps over the batches since then.
        max_rollbacks: a spike after so many rollbacks ends the run.
    """

    max_skipped: int = 10
    spike_factor: float = 10.0
    spike_window: int = 64
    spike_policy: Literal["warn", "skip", "rollback"] = "warn"
    max_rollbacks: int = 3


@dataclass(frozen=True)
class ParallelOptions:
    """How several processes train one model; the update does not depend on their number.

    Args:
        strategy: ddp keeps a whole model in every process, fsdp (FSDP2) divides parameters,
            gradients and moments among them, for models that do not fit otherwise.
        timeout: seconds that a process waits for another one before it gives the run up.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout: float = 600.0


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a SpanBERT on a prepared corpus, or the demonstration if no corpus is named.

    Args:
        output: directory of the run: checkpoints, config.yaml, metrics.jsonl.
        corpus: directory written by `spanbert prepare`, or several with weights, as in
            books=3,news=1 (a row in four from news; a small one repeats sooner, with new masks);
            null runs the demonstration on text every Python carries.
        init: start from these weights instead of random ones: a Hugging Face directory or hub name
            of BERT, SpanBERT or another encoder (RoBERTa, ModernBERT ...), a run, or an archive of
            the original SpanBERT (.tar.gz, its directory, or model.pt). init.json in the output
            says what was taken over.
        preset: size of a new model.
        steps: number of updates.
        precision: bf16 or fp32 for the matrix products; auto takes bf16 where the hardware computes
            in it.
        seed: of weights, dropout, order and masks.
        device: auto, cpu, cuda or cuda:N.
        nproc: processes on this machine that share every batch, on GPUs one for each; torchrun
            starts them itself, also on several machines.
        resume: auto continues the newest whole checkpoint of the output directory, never refuses if
            there is one, anything else is the checkpoint to continue, or a run, whose newest whole
            one is taken. Started again, the command continues what it has added since.
        strict_resume: stop where the newest checkpoint is damaged instead of continuing an older
            one.
        weights_only: accept a checkpoint whose optimizer or generator file is missing or damaged,
            and start these anew.
        log_every: steps between log lines.
        report_to: where losses and speed go besides metrics.jsonl: tensorboard, wandb (offline
            unless WANDB_MODE is set), or both, separated by a comma.
    """

    output: str = "spanbert-run"
    corpus: str | None = None
    init: str | None = None
    preset: Literal["tiny", "mini", "small", "base", "large"] = "base"
    steps: int = 2_400_000
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    device: str = "auto"
    nproc: int = 1
    resume: str = "auto"
    strict_resume: bool = False
    weights_only: bool = False
    log_every: int = 100
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    model: ModelOptions = field(default_factory=ModelOptions)
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    numerics: NumericsOptions = field(default_factory=NumericsOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = faults_of(self)
        if faults:
            raise ConfigError("\n".join(faults))

    def micro_rows(self, world: int = 1) -> int:
        """Rows that each of `world` processes computes at a time.

        Raises:
            ConfigError: the rows of a batch cannot be shared out evenly.
        """
        rows, wanted = self.batch.rows, self.batch.micro_rows or self.batch.rows
        share = rows // world
        if rows % world:
            raise ConfigError(
                f"batch.rows: {rows} rows cannot be shared evenly by {world} processes; take "
                f"{rows - rows % world or world} or {rows - rows % world + world}"
            )
        if share % min(wanted, share):
            raise ConfigError(
                f"batch.micro_rows: {wanted} does not divide the {share} rows that each of {world} "
                "processes has"
            )
        return min(wanted, share)


# What `spanbert pretrain` does without a corpus: sized so that two CPU cores finish in a few
# minutes.
DEMONSTRATION = PretrainConfig(
    output="spanbert-demo",
    preset="tiny",
    steps=1200,
    # bf16 gains nothing on matrices this small: on a CPU with AMX, where every new shape costs a
    # compilation too, it took 1.5 times as long at first and 3 times after some hundred steps.
    precision="fp32",
    log_every=50,
    optimizer=OptimizerOptions(peak_lr=2e-3, warmup_steps=100, weight_decay=0.01),
    batch=BatchOptions(rows=32, max_length=64),
    validation=ValidationOptions(every=200, rows=256),
    checkpoint=CheckpointOptions(every=400, keep=2),
)

# Settings that may differ between a checkpoint and the run that continues it: the numbers of an
# update do not depend on them (micro_rows, micro_tokens, resident, device, the runtime and the
# number of processes change its rounding and which tokens dropout hits, nothing else). Training
# data is compared by its digest.
FREE_ON_RESUME = frozenset(
    {
        "output",
        "corpus",
        "resume",
        "strict_resume",
        "weights_only",
        "device",
        "log_every",
        "report_to",
        "reject_limit",
        "train",
        "dev",
        "batch.micro_rows",
        "batch.micro_tokens",
        "batch.checkpointing",
        "batch.resident",
        "runtime.graph",
        "runtime.compile",
        "runtime.deterministic",
        "validation.every",
        "validation.rows",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.space_check",
        "nproc",
        "numerics.max_skipped",
        "numerics.max_rollbacks",
        "parallel.strategy",
        "parallel.timeout",
        "checkpoint.retries",
        "checkpoint.retry_seconds",
    }
)
