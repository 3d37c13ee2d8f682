"""Weights in and out: pre-training from a BERT directory, and plain BERT from what was pre-trained.

Files are safetensors or what transformers reads without unpickling code; nothing is fetched unless
a hub name is given.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import BertConfig
from transformers.utils import logging

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.model.config import ABOUT_THE_FILE, SpanBertConfig
from spanbert_ext.model.pretraining import SpanBertForPreTraining
from spanbert_ext.threads import alone_with
from spanbert_ext.weights.archives import pickle_fault
from spanbert_ext.weights.hub import TOKENIZER_FILES
from spanbert_ext.weights.load_report import LoadReport

# What of BERT's configuration our encoder and output layer do not vary.
_REQUIRED = {
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
# What reading configurations and weights of strangers raises.
_UNUSABLE = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    EOFError,
    ZeroDivisionError,
    SafetensorError,
    StrictDataclassError,
)
# Bytes of which torch's CPU allocator hands out multiples.
_ALIGNMENT = 64
_HEAD_FIELDS = (
    "max_span_targets",
    "position_size",
    "sbo_weight",
    "loss",
    "encoder_config",
    "last_layer_rows",
    "sbo_layer",
    "nsp",
)


def from_bert(path: str | os.PathLike, **options) -> tuple[SpanBertForPreTraining, LoadReport]:
    """Pre-training from a Hugging Face BERT directory: encoder and MLM head taken over, with
    `nsp=True` pooler and next sentence head too, SBO head new.

    Args:
        path: directory or hub name of any BERT model (with or without heads), or of a SpanBERT one.
        options: fields of `SpanBertConfig` that replace those of the file.

    Raises:
        DataError: it is no BERT or one that our encoder does not compute, its output layer is not
            tied, or weights of the encoder are missing, misshapen or not finite.
    """
    try:
        fields, _ = SpanBertConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: its config.json cannot be read: {error}") from error
    if not fields:
        raise DataError(
            f"{path}: no config.json was found; a Hugging Face model directory is expected"
        )
    # The original SpanBERT directories have no model_type.
    kind = fields.get("model_type", "bert")
    if kind not in ("bert", SpanBertConfig.model_type):
        raise DataError(
            f"{path}: model_type is {kind!r}, not 'bert'; other encoders come in "
            "through SpanBertForPreTraining.from_encoder"
        )
    layout = "BERT directory" if kind == "bert" else "SpanBERT directory"
    return load_model(str(path), layout, fields, options, folder=path)


def load_model(
    source: str,
    layout: str,
    fields: Mapping[str, Any],
    options: Mapping[str, Any],
    folder: str | os.PathLike | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    notes: tuple[str, ...] = (),
) -> tuple[SpanBertForPreTraining, LoadReport]:
    """A model in fp32 from a directory, or from tensors under our names.

    Args:
        source, layout, notes: for the report.
        fields, options: of `SpanBertConfig`; options win.
        folder, weights: one of the two.

    Raises:
        DataError: as `from_bert`.
    """
    for name, wanted in _REQUIRED.items():
        if fields.get(name, wanted) not in (None, wanted):
            raise DataError(
                f"{source}: {name} is {fields[name]!r} in its configuration; this package trains "
                f"encoders with {wanted!r} only"
            )
    fields = {name: value for name, value in fields.items() if name not in ABOUT_THE_FILE}
    with quiet_loading(source):
        config = SpanBertConfig(**{**fields, **options})
        # Half-precision files too: the optimizer's parameters are fp32. Shapes are our report's.
        model, info = SpanBertForPreTraining.from_pretrained(
            folder,
            config=config,
            state_dict=weights,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    heads = ("cls.", "bert.pooler.")
    lost = [name for name in info["missing_keys"] if not name.startswith(heads)]
    check_weights(source, model, lost, info["mismatched_keys"])
    own_memory(model)
    licence = model.config.weights_licence
    return model, LoadReport.of(model, source, layout, info, notes=notes, licence=licence)


@contextlib.contextmanager
def quiet_loading(source: str) -> Iterator[None]:
    """transformers says nothing (a `LoadReport` does); what it raises becomes DataError.

    One thread at a time: while it loads, transformers changes settings of the whole process.
    """
    with alone_with(logging):
        before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        except pickle.UnpicklingError as error:
            raise DataError(f"{source}: {pickle_fault(error)}") from error
        except _UNUSABLE as error:
            raise DataError(f"{source} cannot be used: {error or type(error).__name__}") from error
        finally:
            logging.set_verbosity(before)
            if bar:
                logging.enable_progress_bar()


def own_memory(model: torch.nn.Module) -> None:
    """Copies weights that lie in a mapped file, at any byte, to where torch would have put them.

    Products of fp32 matrices whose rows begin elsewhere differ in the last digits: a resumed run
    would not repeat the one that was never stopped, nor an evaluation what training had measured.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.detach().clone()


def check_weights(
    source: str,
    model: torch.nn.Module,
    lost: Iterable[str],
    misshapen: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Refuse a model whose encoder was not wholly in the file, or whose weights are not finite.

    Args:
        lost: parameters of the encoder that the file lacks.
        misshapen: (name, shape in the file, shape in the model).

    Raises:
        DataError: lists every such tensor, a long list in part.
    """
    lost, misshapen = sorted(lost), sorted(misshapen)
    broken = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    faults = []
    if misshapen:
        shapes = [f"{n} is {tuple(a)} there, {tuple(b)} by its config" for n, a, b in misshapen]
        faults.append(f"{len(shapes)} tensors of another shape: {_listed(shapes)}")
    if lost:
        faults.append(f"{len(lost)} weights of the encoder are missing: {_listed(lost)}")
    if broken:
        faults.append(f"{len(broken)} tensors hold NaN or infinity: {_listed(broken)}")
    if faults:
        raise DataError(
            f"{source}: {'; '.join(faults)}. Fetch or convert it again, or take an earlier "
            "checkpoint"
        )


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def export_bert(
    model_or_dir: SpanBertForPreTraining | str | os.PathLike,
    out_dir: str | os.PathLike,
    tokenizer_dir: str | os.PathLike | None = None,
    mlm_head: bool = True,
) -> list[Path]:
    """Write a directory that transformers loads without this package: a plain `model_type: bert`,
    or another encoder as its own class.

    Args:
        model_or_dir: the model, or a directory it was saved in.
        out_dir: made if missing; files of the same names are replaced, one by one and whole.
        tokenizer_dir: where tokenizer files are copied from; default the model's directory.
        mlm_head: write BERT's masked language model head too; False where it was never trained.

    Returns:
        The files written: config.json, model.safetensors (encoder, MLM head, and pooler and next
            sentence head where the model has them) and the tokenizer's.

    Raises:
        DataError: tokenizer_dir holds no tokenizer.
        StorageError: a file could not be written.
    """
    source = None
    if not isinstance(model_or_dir, SpanBertForPreTraining):
        source = Path(model_or_dir)
        if not (source / "config.json").is_file():
            raise DataError(f"{source}: no config.json there; a saved model directory is expected")
        model_or_dir = SpanBertForPreTraining.from_pretrained(source)
    model = model_or_dir
    tokenizer = _tokenizer_files(Path(tokenizer_dir or source)) if tokenizer_dir or source else []
    if tokenizer_dir and not tokenizer:
        raise DataError(f"{tokenizer_dir}: no tokenizer files there ({', '.join(TOKENIZER_FILES)})")
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that every file arrives there whole, by a rename.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as work:
            if model.config.encoder_config is None:
                _write_bert(model, Path(work), mlm_head)
            else:
                _write_encoder(model, Path(work))
            for file in tokenizer:
                shutil.copyfile(file, Path(work) / file.name)
            # The weights last: a directory that has them has everything.
            names = sorted(os.listdir(work), key=lambda name: (".safetensors" in name, name))
            for name in names:
                os.replace(Path(work) / name, out / name)
    except OSError as error:
        raise StorageError(f"{out}: the model could not be written: {error}") from error
    return [out / name for name in names]


def bert_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of a `SpanBertConfig`'s fields those that a plain `BertConfig` of its encoder has, and the
    licence of the weights where there is one."""
    left_out = {*ABOUT_THE_FILE, *_HEAD_FIELDS}
    if fields.get("weights_licence") is None:
        left_out.add("weights_licence")
    return {name: value for name, value in fields.items() if name not in left_out}


def _write_bert(model: SpanBertForPreTraining, folder: Path, mlm_head: bool) -> None:
    fields = bert_fields(model.config.to_dict())
    heads = "BertForPreTraining" if model.config.nsp else "BertForMaskedLM"
    config = BertConfig(**fields, architectures=[heads if mlm_head else "BertModel"])
    config.dtype = model.dtype
    config.save_pretrained(folder)
    dropped = ("cls.sbo.", "cls.sbo_bias") if mlm_head else ("cls.",)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(dropped)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _give_mode(folder)


def _write_encoder(model: SpanBertForPreTraining, folder: Path) -> None:
    """Its class has a masked language model head of its own shape, so both heads are left out."""
    if model.config.weights_licence is not None:
        model.encoder.config.weights_licence = model.config.weights_licence
    model.encoder.save_pretrained(folder)
    _give_mode(folder)


def _give_mode(folder: Path) -> None:
    """safetensors makes files 0600; the configuration has the mode that the umask gives."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        os.chmod(file, mode)


def _tokenizer_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory")
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
