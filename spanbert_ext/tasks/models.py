"""Models of fine-tuning: what they start from, and how fine-tuned ones are loaded.

A model's folder is an ordinary Hugging Face directory with the tokenizer, and `spanbert_task.json`
(task_file.py): the task's name, its options, and the facts it has learned (label names, symbols,
thresholds).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
)

from spanbert_ext.data import tokenizer as tokenizers
from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.model.hf_encoder import longest_sequence
from spanbert_ext.tasks.batching import MULTIPLE, PackedBatch
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.heads import HEADS
from spanbert_ext.tasks.hf_heads import HfHead
from spanbert_ext.tasks.layout import check_first_token
from spanbert_ext.tasks.stored_heads import names_head, sort_rows, stored_head
from spanbert_ext.tasks.task import Head
from spanbert_ext.tasks.task_file import model_folder
from spanbert_ext.weights import conversion
from spanbert_ext.weights.load_report import LoadReport
from spanbert_ext.weights.sources import StartingPoint, hf_config, open_start, read_start

_OURS = {**HEADS, "coreference": SpanBertForCoreference}
_HF_HEADS = {
    "question-answering": AutoModelForQuestionAnswering,
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
}


def head_outputs(model: nn.Module, batch: PackedBatch, head: Head) -> torch.Tensor:
    """The numbers of a head, fp32: [T, 2], [R, C] or [M, C]."""
    output = model(**batch.inputs())
    if head == "question-answering":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


def longest_input(model: nn.Module) -> int | None:
    """Tokens of the longest sequence that a model has positions for; None if any."""
    if isinstance(model, HfHead):
        return longest_sequence(model.model)
    return model.config.max_position_embeddings


def stream_multiple(model: nn.Module) -> int:
    """What the tokens of a stream are padded to a multiple of (`batching.pack`)."""
    return getattr(model, "multiple", MULTIPLE)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model's folder; a bare vocab.txt keeps the case its pieces have.

    Raises:
        DataError: there is none, or none that knows where its pieces lie in the text.
    """
    if not (folder / "tokenizer.json").is_file() and (folder / "vocab.txt").is_file():
        with tempfile.TemporaryDirectory(prefix="spanbert-") as work:
            pieces = (folder / "vocab.txt").read_text("utf-8", errors="replace").splitlines()
            lowercase = tokenizers.stated_lowercasing(folder)
            if lowercase is None:
                lowercase = not tokenizers.is_cased(pieces)
            _, files = tokenizers.load_tokenizer(folder, lowercase)
            for name, content in files.items():
                (Path(work) / name).write_bytes(content)
            return AutoTokenizer.from_pretrained(work)
    none = DataError(
        f"{folder}: no tokenizer lies beside the weights; copy the one they were trained with "
        "there (tokenizer.json, or vocab.txt)"
    )
    if not any(next(folder.glob(sign), None) for sign in ("*token*", "*vocab*", "*.model")):
        raise none
    with conversion.quiet_loading(f"the tokenizer of {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise DataError(
            f"{folder}: its tokenizer is not a fast one (tokenizer.json), which alone knows where "
            "pieces lie in the text"
        )
    # Without a vocabulary transformers makes up a tokenizer that knows no word.
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise none
    check_first_token(tokenizer, str(folder))
    return tokenizer


def start_model(
    start: StartingPoint,
    head: Head,
    labels: Sequence[str],
    vocab_size: int,
    dropout: float | None = None,
    fields: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, LoadReport]:
    """A model to fine-tune: the encoder of a starting point, with its head where that fits.

    Args:
        start: opened by `starting_points.open_start`.
        labels: names of the outputs, none for question-answering, one for a regression.
        vocab_size: ids of the tokenizer; the word embedding is grown if it has fewer.
        dropout: of embeddings, attention and sublayers; None: as the start has it.
        fields: of the model's configuration, as `DownstreamTask.model_fields`.

    Raises:
        ConfigError, DataError: as `starting_points.read_start`.
    """
    if start.layout == "encoder" and head not in _HF_HEADS:
        kind = start.fields["model_type"]
        raise ConfigError(f"{start.name}: a {head} model is a BERT, not {kind}; start from one")
    if start.layout == "encoder":
        return _hf_model(start, head, labels, vocab_size, dropout)
    options = {"nsp": True} if head == "sequence-classification" else {}
    pretrained, report = read_start(start, **options)
    if pretrained.config.encoder_config is not None:
        kind = pretrained.config.encoder_config["model_type"]
        raise ConfigError(
            f"{start.name}: a SpanBERT around {kind}: `spanbert export` it, then fine-tune the "
            "export"
        )
    config = _bert_config(pretrained.config.to_dict() | (fields or {}), head, labels, dropout)
    model = _OURS[head](config)
    weights = pretrained.bert.state_dict()
    if head != "sequence-classification":
        weights = {n: t for n, t in weights.items() if not n.startswith("pooler.")}
    model.bert.load_state_dict(weights)
    new = [name for name, _ in model.named_parameters() if not name.startswith("bert.")]
    found, notes = stored_head(start, model, head, labels)
    model.load_state_dict(found, strict=False)
    new = [name for name in new if name not in found]
    if "pooler" in report.new and head == "sequence-classification":
        new += [name for name, _ in model.named_parameters() if name.startswith("bert.pooler.")]
    unused = [name for name in report.unused if not found]
    if vocab_size > config.vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    licence = report.licence
    info = {"missing_keys": new, "unexpected_keys": unused}
    return model, LoadReport.of(
        model, start.name, report.layout, info, notes=(*report.notes, *notes), licence=licence
    )


def _bert_config(
    fields: dict[str, Any], head: Head, labels: Sequence[str], dropout: float | None
) -> BertConfig:
    fields = conversion.bert_fields(fields)
    for name in ("id2label", "label2id", "num_labels", "problem_type"):
        fields.pop(name, None)
    return BertConfig(**fields | _label_fields(head, labels) | _dropout_fields(dropout))


def _label_fields(head: Head, labels: Sequence[str]) -> dict[str, Any]:
    if not labels:
        return {}
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if head == "sequence-classification":
        kind = "regression" if len(labels) == 1 else "single_label_classification"
        fields["problem_type"] = kind
    return fields


def _dropout_fields(dropout: float | None) -> dict[str, float]:
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {} if dropout is None else dict.fromkeys(names, dropout)


def _hf_model(
    start: StartingPoint,
    head: Head,
    labels: Sequence[str],
    vocab_size: int,
    dropout: float | None,
) -> tuple[nn.Module, LoadReport]:
    config = hf_config(start)
    if type(config) not in _HF_HEADS[head]._model_mapping:
        raise DataError(f"{start.name}: transformers has no {head} head for {config.model_type}")
    for name, value in _label_fields(head, labels).items():
        setattr(config, name, value)
    if head == "question-answering" and config.num_labels != 2:
        config.num_labels = 2  # by which most classes size this head
    for name, value in _dropout_fields(dropout).items():
        if not hasattr(config, name):
            raise ConfigError(f"dropout: {config.model_type} calls its dropouts otherwise")
        setattr(config, name, value)
    with conversion.quiet_loading(start.name):
        model, info = _HF_HEADS[head].from_pretrained(
            start.folder,
            config=config,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    base = model.base_model_prefix + "."
    lost = [n for n in info["missing_keys"] if n.startswith(base) and ".pooler." not in n]
    misshapen = [entry for entry in info["mismatched_keys"] if entry[0].startswith(base)]
    conversion.check_weights(start.name, model, lost, misshapen)
    conversion.own_memory(model)
    new = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    loaded = {name for name, _ in model.named_parameters()} - new
    unsorted, notes = sort_rows(model, start, head, labels, loaded)
    info = {"missing_keys": new.union(unsorted), "unexpected_keys": info["unexpected_keys"]}
    if vocab_size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    kind = f"{start.fields['model_type']} directory"
    return HfHead(model, head), LoadReport.of(model, start.name, kind, info, notes=notes)


def load_head(
    folder: Path,
    head: Head,
    fields: Mapping[str, Any] | None = None,
    name: str | None = None,
    task: str = "TASK",
) -> nn.Module:
    """A fine-tuned model, every weight found; in fp32 on the CPU.

    Args:
        fields: of its configuration, in place of the stored ones.
        name: what the user calls the folder.
        task: that a model without this head has to be fine-tuned for, for the message.

    Raises:
        DataError: the folder holds no model with this head, or not exactly its weights.
    """
    source = name or str(folder)
    with conversion.quiet_loading(source):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.update(dict(fields or {}))
        ours = config.model_type == "bert"
        if not ours and head not in _HF_HEADS:
            raise DataError(f"{source}: {config.model_type} has no {head} head")
        loader = _OURS[head] if ours else _HF_HEADS[head]
        model, info = loader.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    base = model.base_model_prefix + "."
    missing = [n for n in info["missing_keys"] if not n.startswith(base) or ".pooler." in n]
    if missing and len(missing) == len(info["missing_keys"]):
        raise no_head(source, head, task)
    conversion.check_weights(source, model, info["missing_keys"], info["mismatched_keys"])
    conversion.own_memory(model)
    return model if ours else HfHead(model, head)


def check_head(start: StartingPoint, head: Head, task: str) -> None:
    """Raises DataError for a model that says itself that it has another head, or none."""
    classes = start.fields.get("architectures") or []
    if start.layout == "spanbert":
        raise no_head(start.name, head, task, "it is a SpanBERT from pre-training")
    if classes and not names_head(start.fields, head):
        raise no_head(start.name, head, task, f"it is a {classes[0]}")


def no_head(name: str, head: Head, task: str, what: str = "it is an encoder alone") -> DataError:
    """What to do with a model that has to be fine-tuned first."""
    return DataError(
        f"{name}: it has no {head.replace('-', ' ')} head ({what}): fine-tune it first, as with "
        f"`spanbert finetune {task} --model {name}`"
    )


def load_checkpoint(folder: Path, head: Head) -> nn.Module:
    """`load_head` of a run's checkpoint.

    Raises:
        StorageError: in place of DataError.
    """
    try:
        return load_head(folder, head)
    except DataError as error:
        raise StorageError(f"{folder} cannot be loaded: {error}") from error


def open_model(name: str):
    """`open_start`, after a run's name has become that of its best model, or newest checkpoint."""
    folder = model_folder(name)
    return open_start(str(folder) if folder.exists() else name)
