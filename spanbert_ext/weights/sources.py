"""What pre-training can start from: a name, to a model and a report of what it took over.

* a Hugging Face directory, or a hub name: BERT with or without heads, SpanBERT, or another
  masked-language-model encoder (RoBERTa, ModernBERT, ELECTRA, DeBERTa ...)
* the original SpanBERT archives: `config.json` without model_type beside `pytorch_model.bin`
  (encoder alone, LayerNorm's gamma and beta), or fairseq's `model.pt` (encoder and both heads)
* a .tar.gz of any of these

Nothing here runs code that comes with weights. A hub name is looked up in the local cache first and
on the network only if it is not there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from spanbert_ext.device import physical_memory
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.model.pretraining import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.text.vocabulary import read_json
from spanbert_ext.weights import conversion, fairseq, hub
from spanbert_ext.weights.archives import read_tensors, unpack
from spanbert_ext.weights.load_report import LoadReport

LICENCE = (
    "CC BY-NC 4.0, non-commercial use only: these files have the layout of the released SpanBERT "
    "weights, whose licence that is"
)
# The hub's copies of the released weights.
_RELEASED = "spanbert/"
_PICKLE = "pytorch_model.bin"
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_BYTES_PER_LAYER = 100_000  # of Python objects, whatever its width


@dataclass(frozen=True)
class StartingPoint:
    """Weights that were found and recognised, nothing loaded yet.

    Args:
        name: as the user gave it.
        folder: where configuration, weights and tokenizer lie.
        layout: spanbert, bert, original (encoder of the released archives), fairseq, or encoder.
        fields: the configuration, of whatever class; for fairseq only its `file`.
        licence: of the weights, where the name alone tells it.
    """

    name: str
    folder: Path
    layout: str
    fields: dict[str, Any]
    licence: str | None = None


@contextlib.contextmanager
def open_start(name: str) -> Iterator[StartingPoint]:
    """Find and recognise what `name` means; an archive stays unpacked until the block ends.

    Raises:
        ConfigError: there is nothing of that name.
        DataError: it is no model, or an archive that cannot be trusted.
        StorageError: no room to unpack an archive.
    """
    path, licence = Path(name), None
    with contextlib.ExitStack() as stack:
        if path.is_file() and path.resolve().name.endswith(_ARCHIVES):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spanbert-")))
            unpack(path, folder)
            path = _model_folder(name, folder)
        elif not path.exists():
            path = _from_hub(name)
            licence = LICENCE if name.lower().startswith(_RELEASED) else None
        yield replace(_recognised(name, path), licence=licence)


def _model_folder(name: str, folder: Path) -> Path:
    found = {p.parent for f in ("config.json", fairseq.FILE) for p in folder.rglob(f)}
    if len(found) != 1:
        raise DataError(
            f"{name}: {len(found)} models in the archive; exactly one directory with config.json "
            f"or {fairseq.FILE} is expected. Unpack it and name the one you mean"
        )
    return found.pop()


def _from_hub(name: str) -> Path:
    """A model's directory in the local cache, downloaded if it is not there."""
    return hub.find(
        name,
        [hub.MODEL_FILES, (*hub.MODEL_FILES, _PICKLE)],
        lambda folder: (folder / "config.json").is_file() and bool(_weight_files(folder)),
        "the model's directory",
        "config.json with weights that are safetensors or a plain pickle",
    )


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]


def _recognised(name: str, path: Path) -> StartingPoint:
    if path.is_file():
        return StartingPoint(name, path.parent, "fairseq", {"file": path.name})
    if not (path / "config.json").is_file():
        if (path / fairseq.FILE).is_file():
            return StartingPoint(name, path, "fairseq", {"file": fairseq.FILE})
        raise ConfigError(
            f"{name}: no model here: expected a run with checkpoints (step-...), config.json with "
            f"weights beside it (Hugging Face, original SpanBERT) or fairseq's {fairseq.FILE}"
        )
    fields = read_json(path / "config.json")
    _check_size(name, fields)
    kind = fields.get("model_type")
    if kind in (SpanBertConfig.model_type, "bert"):
        return StartingPoint(name, path, kind, fields)
    if kind is None:
        pickled = [file.name for file in _weight_files(path)] == [_PICKLE]
        return StartingPoint(name, path, "original" if pickled else "bert", fields)
    return StartingPoint(name, path, "encoder", fields)


def _check_size(name: str, fields: dict[str, Any]) -> None:
    """Refuse a configuration whose model this machine cannot hold, before anything is allocated."""

    def size(field: str) -> int:
        value = fields.get(field)
        return value if isinstance(value, int) else 0

    hidden, layers = size("hidden_size"), size("num_hidden_layers")
    rows = size("vocab_size") + size("max_position_embeddings") + size("type_vocab_size")
    layer = 4 * hidden * hidden + 2 * hidden * size("intermediate_size")
    needed = 4 * (rows * hidden + layers * layer) + layers * _BYTES_PER_LAYER
    memory = physical_memory()
    if memory is not None and needed > memory:
        raise DataError(
            f"{name}: config.json describes a model that needs {needed / 1e9:,.1f} GB; this "
            f"machine has {memory / 1e9:.1f} GB of memory. Check the file"
        )


def read_start(start: StartingPoint, **options) -> tuple[SpanBertForPreTraining, LoadReport]:
    """The model, in fp32 on the CPU, and what it took over.

    Args:
        options: fields of `SpanBertConfig` that replace those of the file; `max_span_targets` only
            where the SBO head is new, since a trained one has its own table.

    Raises:
        DataError: a weight is missing, misshapen or not finite, the encoder is not one for masked
            language models, or the file holds code.
    """
    if start.layout == "encoder":
        return _read_encoder(start, options)
    if start.layout == "original":
        return _read_original(start, options)
    if start.layout == "fairseq":
        return _read_fairseq(start, options)
    if "max_span_targets" in start.fields:
        options.pop("max_span_targets", None)
    if start.licence is not None:
        options["weights_licence"] = start.licence
    layout = f"{'BERT' if start.layout == 'bert' else 'SpanBERT'} directory"
    return conversion.load_model(start.name, layout, start.fields, options, folder=start.folder)


def _read_fairseq(start: StartingPoint, options) -> tuple[SpanBertForPreTraining, LoadReport]:
    fields, weights = fairseq.read_fairseq(start.folder / start.fields["file"])
    if "max_span_targets" in fields:
        options.pop("max_span_targets", None)
    heads = fields["num_attention_heads"]
    return conversion.load_model(
        start.name,
        "original SpanBERT checkpoint with heads",
        {**fields, "weights_licence": LICENCE},
        options,
        weights=weights,
        notes=(f"{heads} attention heads of {fairseq.HEAD_SIZE}; the file does not say",),
    )


def _read_original(start: StartingPoint, options) -> tuple[SpanBertForPreTraining, LoadReport]:
    """config.json without model_type, and a pickle whose names may be those of 2019."""
    stored = read_tensors(start.folder / _PICKLE)
    # What Google's own BERTs have too; those carry the masked language model's head.
    released = any(name.endswith(".gamma") for name in stored) and not any(
        name.startswith("cls.predictions.") for name in stored
    )
    return conversion.load_model(
        start.name,
        "original SpanBERT archive, encoder alone" if released else "BERT of before model_type",
        {**start.fields, "weights_licence": LICENCE if released else None},
        options,
        weights={fairseq.modern_name(name): tensor for name, tensor in stored.items()},
    )


def hf_config(start: StartingPoint) -> PretrainedConfig:
    """The configuration of a directory that transformers reads.

    Raises:
        DataError: of a model that is no encoder of masked language models.
    """
    with conversion.quiet_loading(start.name):
        config = AutoConfig.from_pretrained(start.folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise DataError(
            f"{start.name}: {config.model_type} is no encoder of masked language models in "
            "transformers; take a BERT-like one (BERT, RoBERTa, ModernBERT, ELECTRA, DeBERTa ...)"
        )
    return config


def _read_encoder(start: StartingPoint, options) -> tuple[SpanBertForPreTraining, LoadReport]:
    kind, config = start.fields["model_type"], hf_config(start)
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if field in options and not hasattr(config, field):
            raise ConfigError(
                f"model.dropout: {kind} calls its dropouts otherwise than BERT; leave the setting "
                f"out, and change {start.name}/config.json if need be"
            )
        if field in options:
            setattr(config, field, options.pop(field))
    with conversion.quiet_loading(start.name):
        encoder, info = AutoModel.from_pretrained(
            start.folder,
            config=config,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
        licence = getattr(config, "weights_licence", None)  # of an encoder that we exported
        model = SpanBertForPreTraining.from_encoder(encoder, weights_licence=licence, **options)
    lost = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    conversion.check_weights(start.name, model, lost, info["mismatched_keys"])
    heads = [name for name, _ in model.named_parameters() if name.startswith("cls.")]
    info = {"missing_keys": heads, "unexpected_keys": info["unexpected_keys"]}
    return model, LoadReport.of(model, start.name, f"{kind} directory", info, licence=licence)


def export_start(name: str, out_dir: str | os.PathLike) -> LoadReport:
    """Write a starting point as a directory that transformers loads without this package.

    Args:
        name: as in `open_start`.
        out_dir: as in `conversion.export_bert`. A head that would be random is left out.

    Raises:
        ConfigError, DataError, StorageError: as `open_start`, `read_start` and `export_bert`.
    """
    with open_start(name) as start:
        model, report = read_start(start)
        with_tokenizer = any((start.folder / f).is_file() for f in hub.TOKENIZER_FILES)
        conversion.export_bert(
            model,
            out_dir,
            tokenizer_dir=start.folder if with_tokenizer else None,
            mlm_head="MLM head" not in report.new,
        )
    if not with_tokenizer:
        missing = "no tokenizer lies beside the weights: copy the one they were trained with there"
        report = replace(report, notes=(*report.notes, missing))
    return report
