"""Which device and precision a run uses, and new models and those of checkpoints."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.model.pretraining import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.ops import backend
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.presets import model_size
from spanbert_ext.weights.conversion import own_memory


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes the GPU if there is one; process `local_rank` of a machine takes that GPU.

    Raises:
        ConfigError: the named device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" and local_rank else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} is not there ({torch.cuda.device_count()} CUDA devices); `spanbert "
            f"doctor` says why"
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` takes bf16 where matrix products run natively in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if backend.cpu_multiplies(torch.bfloat16) else "fp32"


def describe_hardware(device: torch.device, processes: int = 1) -> str:
    """The kind and number of what computes, as a model card names it."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    features = backend.cpu_features()
    name = features.get("cpu_name") or platform.machine()
    threads = processes * torch.get_num_threads()
    return f"{name}, {threads} thread" + ("s" if threads > 1 else "")


def head_options(config: PretrainConfig) -> dict:
    """Fields of `SpanBertConfig` that the run's settings decide, whatever the model starts from."""
    return {
        "max_span_targets": config.masking.max_span_targets,
        "sbo_weight": config.loss.sbo_weight,
        "sbo_layer": config.loss.sbo_layer,
        "loss": config.loss.kind,
        "nsp": config.batch.pairs,
    }


def build_model(
    config: PretrainConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase
) -> SpanBertForPreTraining:
    """A new model of the configured size, with random weights."""
    size = model_size(config.preset, config.model)
    special = {"pad_token_id": tokenizer.pad_token_id}
    return SpanBertForPreTraining(
        SpanBertConfig(vocab_size=vocab_size, **size, **special, **head_options(config))
    )


def load_checkpoint(path: Path) -> SpanBertForPreTraining:
    """The model of a checkpoint directory, every weight found.

    Raises:
        StorageError: weights are missing or superfluous, or the file cannot be read.
    """
    try:
        model, report = SpanBertForPreTraining.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path} cannot be loaded: {error}") from error
    odd = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if odd:
        raise StorageError(
            f"{path} does not hold exactly the model's weights; differing: {', '.join(odd[:5])}"
        )
    own_memory(model)
    return model


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint of this model: weights and two moments in fp32."""
    return 12 * sum(parameter.numel() for parameter in model.parameters())
