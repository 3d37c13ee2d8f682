"""Which device and precision a run uses, and where its model comes from."""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spanbert_ext import _backend, conversion
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.modeling import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.presets import model_size
from spanbert_ext.training.config import PretrainConfig

logger = logging.getLogger("spanbert_ext")


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
    return "bf16" if _backend.cpu_multiplies(torch.bfloat16) else "fp32"


def describe_hardware(device: torch.device, processes: int = 1) -> str:
    """The kind and number of what computes, as a model card names it."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    name = features.get("cpu_name") or platform.machine()
    threads = processes * torch.get_num_threads()
    return f"{name}, {threads} thread" + ("s" if threads > 1 else "")


def build_model(
    config: PretrainConfig, vocab_size: int, tokenizer: PreTrainedTokenizerBase
) -> SpanBertForPreTraining:
    """A new model of the configured size, or one continued from `config.init`."""
    heads = {
        "max_span_targets": config.masking.max_span_targets,
        "sbo_weight": config.loss.sbo_weight,
        "loss": config.loss.kind,
    }
    if config.init is None:
        size = model_size(config.preset, config.model)
        special = {"pad_token_id": tokenizer.pad_token_id}
        return SpanBertForPreTraining(
            SpanBertConfig(vocab_size=vocab_size, **size, **special, **heads)
        )
    return _continue_model(Path(config.init), vocab_size, tokenizer, heads)


def _continue_model(
    path: Path, vocab_size: int, tokenizer: PreTrainedTokenizerBase, heads: dict
) -> SpanBertForPreTraining:
    try:
        described = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"init: {path} is not a Hugging Face model directory ({error})"
        ) from error
    if described.get("vocab_size") != vocab_size:
        raise ConfigError(
            f"init: {path} has a vocabulary of {described.get('vocab_size')}, the corpus was "
            f"prepared with "
            f"{vocab_size}; prepare the corpus with `--tokenizer {path}`"
        )
    if (path / "tokenizer_config.json").is_file():
        theirs = AutoTokenizer.from_pretrained(path).get_vocab()
        if theirs != tokenizer.get_vocab():
            raise ConfigError(
                f"init: the tokenizer of {path} gives other ids than the corpus's; prepare the "
                f"corpus "
                f"with `--tokenizer {path}`"
            )
    if described.get("model_type") == "spanbert":
        return SpanBertForPreTraining.from_pretrained(path, **heads)
    model, report = conversion.from_bert(path, **heads)
    logger.info("weights of %s:\n%s", path, report)
    return model


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
    return model


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint of this model: weights and two moments in fp32."""
    return 12 * sum(parameter.numel() for parameter in model.parameters())
