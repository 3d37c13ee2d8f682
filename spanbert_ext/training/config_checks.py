"""Impossible values of pre-training settings: one line for each, all at once. Torch-free."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from spanbert_ext.data.corpus_choice import parse_corpora
from spanbert_ext.errors import ConfigError
from spanbert_ext.training import trackers
from spanbert_ext.training.presets import model_size

if TYPE_CHECKING:
    from spanbert_ext.training.config import PretrainConfig


def faults_of(config: PretrainConfig) -> list[str]:
    """One line for every impossible value; empty if there is none."""
    return [
        *_range_faults(config),
        *_model_faults(config),
        *_masking_faults(config),
        *_batch_faults(config),
        *_run_faults(config),
    ]


def short_warmup(steps: int) -> int:
    """Steps of warm-up of a run that is too short for the published ones."""
    return max(0, steps // 10)


def device_faults(device: str) -> list[str]:
    """A line if that cannot be a device's name."""
    if device in ("auto", "cpu", "cuda") or re.fullmatch("cuda:[0-9]+", device):
        return []
    return [f"device: must be auto, cpu, cuda or cuda:N; got {device!r}"]


def _range_faults(c: PretrainConfig) -> list[str]:
    positive = math.nextafter(0.0, 1.0)
    below_one = math.nextafter(1.0, 0.0)
    unlimited = math.inf
    ranges = [
        ("steps", c.steps, 1, unlimited),
        ("seed", c.seed, 0, 2**63 - 1),
        ("log_every", c.log_every, 1, unlimited),
        ("model.dropout", c.model.dropout, 0, below_one),
        ("masking.candidate_prob", c.masking.candidate_prob, 0, 1),
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
        ("batch.short_prob", c.batch.short_prob, 0, 1),
        ("validation.every", c.validation.every, 0, unlimited),
        ("validation.rows", c.validation.rows, 1, unlimited),
        ("nproc", c.nproc, 1, unlimited),
        ("numerics.max_skipped", c.numerics.max_skipped, 1, unlimited),
        ("numerics.spike_factor", c.numerics.spike_factor, 0, unlimited),
        ("numerics.spike_window", c.numerics.spike_window, 2, unlimited),
        ("numerics.max_rollbacks", c.numerics.max_rollbacks, 0, unlimited),
        ("parallel.timeout", c.parallel.timeout, 1, unlimited),
        ("checkpoint.every", c.checkpoint.every, 1, unlimited),
        ("checkpoint.keep", c.checkpoint.keep, 1, unlimited),
        ("checkpoint.retries", c.checkpoint.retries, 0, unlimited),
        ("checkpoint.retry_seconds", c.checkpoint.retry_seconds, 0, unlimited),
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
    size = model_size(c.preset, c.model)
    hidden, heads = size["hidden_size"], size["num_attention_heads"]
    if heads >= 1 and hidden % heads:
        faults.append(f"model.heads: {heads} heads do not divide a hidden size of {hidden}")
    positions = size.get("max_position_embeddings", 512)
    if c.batch.max_length > positions:
        faults.append(
            f"batch.max_length: at most {positions} (positions of the model); got "
            f"{c.batch.max_length}"
        )
    return faults + sbo_layer_faults(c.loss.sbo_layer, size["num_hidden_layers"])


def sbo_layer_faults(layer: int, layers: int) -> list[str]:
    """Whether `loss.sbo_layer` is one of a model's layers."""
    if layers < 1 or -layers <= layer < layers:
        return []
    return [
        f"loss.sbo_layer: must lie in [-{layers}, {layers}) for a model of {layers} layers; got "
        f"{layer}"
    ]


def _masking_faults(c: PretrainConfig) -> list[str]:
    masking, default, faults = c.masking, type(c.masking)(), []
    if masking.max_words < masking.min_words:
        faults.append(
            f"masking.max_words: {masking.max_words} is below masking.min_words {masking.min_words}"
        )
    unread = [] if masking.scheme == "span" else ["geometric_p", "min_words", "max_words"]
    if masking.candidates() is None:
        unread.append("candidate_prob")
    faults += [
        f"masking.{name}: the scheme {masking.scheme} does not use it; leave it out"
        for name in unread
        if getattr(masking, name) != getattr(default, name)
    ]
    if masking.scheme == "piece" and c.loss.sbo_weight > 0:
        faults.append(
            "loss.sbo_weight: the scheme piece has no targets for the span boundary objective; "
            f"set it to 0; got {c.loss.sbo_weight}"
        )
    return faults


def _batch_faults(c: PretrainConfig) -> list[str]:
    faults = []
    micro = c.batch.micro_rows
    if micro and micro >= 1 and c.batch.rows % micro:
        faults.append(f"batch.micro_rows: {micro} does not divide batch.rows {c.batch.rows}")
    if c.batch.pairs and c.batch.resident == "on":
        faults.append("batch.resident: pairs are made on the host; leave it at auto, or off")
    if c.batch.short_prob and not c.batch.pairs:
        faults.append("batch.short_prob: only pairs are shortened; batch.pairs is false")
    return faults


def _run_faults(c: PretrainConfig) -> list[str]:
    faults = trackers.missing(c.report_to)
    if not c.output:
        faults.append("output: a directory is required")
    try:
        parse_corpora(c.corpus or "")
    except ConfigError as error:
        faults.append(str(error))
    if c.optimizer.warmup_steps > c.steps:
        faults.append(
            f"optimizer.warmup_steps: {c.optimizer.warmup_steps} steps of warm-up do not fit into "
            f"{c.steps} steps; `--optimizer.warmup_steps {short_warmup(c.steps)}` do"
        )
    for name in ("strict_resume", "weights_only"):
        if c.resume == "never" and getattr(c, name):
            faults.append(f"{name}: nothing is continued, resume is never")
    faults += device_faults(c.device)
    if c.runtime.graph == "on" and c.batch.resident == "off":
        faults.append("runtime.graph: a graph needs rows on the device; batch.resident is off")
    if c.runtime.graph == "on" and c.batch.pairs:
        faults.append("runtime.graph: a graph needs rows on the device; pairs are made on the host")
    if c.runtime.graph == "on" and c.device == "cpu":
        faults.append("runtime.graph: there are no CUDA graphs on a CPU; device is cpu")
    if c.nproc > 1 and c.device.startswith("cuda:"):
        faults.append(f"nproc: every process needs a GPU of its own; device names {c.device}")
    if c.nproc > 1 and c.runtime.graph == "on":
        faults.append(
            f"runtime.graph: the exchange between processes is not captured; nproc is {c.nproc}"
        )
    return faults
