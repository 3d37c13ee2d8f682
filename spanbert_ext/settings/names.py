"""Names of settings: those they had in earlier versions, and those that people try first.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Earlier name -> present name, both dotted. Commands, YAML files and everything that is stored are
# read with either.
RENAMED: dict[str, str] = {}

# Dotted name -> value of an earlier version -> value that does the same.
RENAMED_VALUES: dict[str, dict[str, str]] = {"executor": {"local": "own"}}

# What users of other trainers type -> settings that do it; a verb has one of them, or none.
_RATE = ("optimizer.peak_lr",)
_BATCH = ("batch.rows", "batch.examples", "rows", "batch_tokens")
_STEPS = ("steps", "max_steps")
_LENGTHS = (
    *("batch.max_length", "qa.length", "relation.length", "tagging.length", "glue.length"),
    *("coref.max_segment_len", "max_length"),
)
_DATA = ("train", "data", "corpus", "inputs")
_DEVICE = ("device",)
_MODEL = ("model", "init")
_OUTPUT = ("output", "predictions")
GUESSES: dict[str, tuple[str, ...]] = {
    "lr": _RATE,
    "learning_rate": _RATE,
    "task_learning_rate": ("optimizer.task_lr",),
    "wd": ("optimizer.weight_decay",),
    "adam_beta1": ("optimizer.beta1",),
    "adam_beta2": ("optimizer.beta2",),
    "adam_epsilon": ("optimizer.eps",),
    "max_grad_norm": ("optimizer.clip_norm",),
    "grad_clip": ("optimizer.clip_norm",),
    "warmup": ("optimizer.warmup_steps", "optimizer.warmup"),
    "warmup_steps": ("optimizer.warmup_steps", "optimizer.warmup"),
    "warmup_ratio": ("optimizer.warmup", "optimizer.warmup_steps"),
    "batch_size": _BATCH,
    "bs": _BATCH,
    "train_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "eval_batch_size": ("batch_tokens", "batch.micro_tokens", "batch.micro_rows"),
    "per_device_eval_batch_size": ("batch_tokens", "batch.micro_tokens", "batch.micro_rows"),
    "gradient_accumulation_steps": ("batch.micro_rows", "batch.micro_tokens"),
    "gradient_checkpointing": ("batch.checkpointing",),
    "epochs": ("epochs", "steps"),
    "num_epochs": ("epochs", "steps"),
    "num_train_epochs": ("epochs", "steps"),
    "max_steps": _STEPS,
    "steps": _STEPS,
    "num_steps": _STEPS,
    "max_train_steps": _STEPS,
    "max_length": _LENGTHS,
    "max_len": _LENGTHS,
    "max_seq_length": _LENGTHS,
    "max_seq_len": _LENGTHS,
    "max_sequence_length": _LENGTHS,
    "model_max_length": _LENGTHS,
    "block_size": _LENGTHS,
    "seq_len": _LENGTHS,
    "doc_stride": ("qa.stride",),
    "mlm_probability": ("masking.mask_ratio",),
    "mask_prob": ("masking.mask_ratio",),
    "masking_ratio": ("masking.mask_ratio",),
    "sbo": ("loss.sbo_weight",),
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "base_model": _MODEL,
    "checkpoint": ("model", "init", "resume"),
    "model": _MODEL,
    "init": _MODEL,
    "size": ("preset",),
    "tokenizer_name": ("tokenizer",),
    "do_lower_case": ("lowercase",),
    "uncased": ("lowercase",),
    "output_dir": _OUTPUT,
    "output_file": _OUTPUT,
    "out": _OUTPUT,
    "outdir": _OUTPUT,
    "save_dir": _OUTPUT,
    "dataset": _DATA,
    "dataset_name": _DATA,
    "data": _DATA,
    "corpus": _DATA,
    "input": _DATA,
    "train_file": _DATA,
    "train_data": _DATA,
    "validation": ("dev", "data"),
    "valid": ("dev", "data"),
    "validation_file": ("dev", "data"),
    "dev_file": ("dev", "data"),
    "eval_file": ("dev", "data"),
    "test": ("dev", "data"),
    "test_file": ("dev", "data"),
    "max_train_samples": ("train_limit",),
    "max_eval_samples": ("limit",),
    "max_samples": ("limit", "train_limit"),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "fp32": ("precision",),
    "dtype": ("precision",),
    "mixed_precision": ("precision",),
    "gpu": _DEVICE,
    "gpus": ("nproc", "device"),
    "cuda": _DEVICE,
    "cpu": _DEVICE,
    "no_cuda": _DEVICE,
    "use_cpu": _DEVICE,
    "num_workers": ("workers", "nproc"),
    "num_proc": ("workers", "nproc"),
    "preprocessing_num_workers": ("workers",),
    "threads": ("workers",),
    "nproc_per_node": ("nproc",),
    "world_size": ("nproc",),
    "ddp": ("parallel.strategy",),
    "fsdp": ("parallel.strategy",),
    "save_steps": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep",),
    "logging_steps": ("log_every",),
    "log_steps": ("log_every",),
    "eval_steps": ("validation.every", "evals_per_epoch"),
    "resume_from_checkpoint": ("resume",),
    "force": ("overwrite",),
    "overwrite_output_dir": ("overwrite", "resume"),
    "wandb": ("report_to",),
    "tensorboard": ("report_to",),
    "topk": ("top_k",),
    "k": ("top_k",),
    # One letter, behind one dash.
    "o": _OUTPUT,
    "m": _MODEL,
    "c": ("config",),
    "b": _BATCH,
    "e": ("epochs", "steps"),
    "j": ("workers", "nproc"),
}


def renamed(values: Mapping[str, Any], known: Collection[str], section: str = "") -> dict[str, Any]:
    """Values under the present names of their settings, and in present words.

    Args:
        values: name -> value.
        known: present names, dotted.
        section: what stands before the names in `values` on a command line, with its dot.
    """
    found = {}
    for name, value in values.items():
        new = RENAMED.get(section + name)
        if name not in known and new is not None and new.removeprefix(section) in known:
            name = new.removeprefix(section)
        same = RENAMED_VALUES.get(section + name, {})
        found[name] = same.get(value, value) if isinstance(value, str) else value
    return found
