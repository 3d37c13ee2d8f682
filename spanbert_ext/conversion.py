"""Weights in and out: pre-training from a BERT directory, and plain BERT from what was pre-trained.

Files are safetensors or what transformers reads without unpickling code; nothing is fetched unless
a hub name is given.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from transformers import BertConfig

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.modeling import ABOUT_THE_FILE, SpanBertConfig, SpanBertForPreTraining

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
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


def from_bert(path: str | os.PathLike, **options) -> tuple[SpanBertForPreTraining, str]:
    """Pre-training from a Hugging Face BERT directory: encoder and MLM head taken over, with
    `nsp=True` pooler and next sentence head too, SBO head new.

    Args:
        path: directory or hub name of any BERT model (with or without heads), or of a SpanBERT one.
        options: fields of `SpanBertConfig` that replace those of the file.

    Returns:
        The model and the text of `load_report`.

    Raises:
        DataError: it is no BERT, its output layer is not tied, or encoder weights are missing in
            the file.
    """
    fields, _ = SpanBertConfig.get_config_dict(path)
    if not fields:
        raise DataError(
            f"{path}: no config.json was found; a Hugging Face model directory is expected"
        )
    # The original SpanBERT directories have no model_type.
    if fields.get("model_type", "bert") not in ("bert", SpanBertConfig.model_type):
        raise DataError(
            f"{path}: model_type is {fields['model_type']!r}, not 'bert'; other encoders come in "
            "through SpanBertForPreTraining.from_encoder"
        )
    if not fields.get("tie_word_embeddings", True):
        raise DataError(
            f"{path}: its output layer is not the word embedding (tie_word_embeddings is false)"
        )
    fields = {name: value for name, value in fields.items() if name not in ABOUT_THE_FILE}
    config = SpanBertConfig(**{**fields, **options})
    model, info = SpanBertForPreTraining.from_pretrained(
        path, config=config, output_loading_info=True
    )
    heads = ("cls.", "bert.pooler.")
    lost = sorted(name for name in info["missing_keys"] if not name.startswith(heads))
    if lost:
        raise DataError(f"{path}: {len(lost)} weights of the encoder are missing, first {lost[0]}")
    return model, load_report(info)


def load_report(info: dict) -> str:
    """What a file gave and what it did not, in a few lines.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    """
    lines = []
    for title, key in (("new (not in the file)", "missing_keys"), ("not used", "unexpected_keys")):
        groups = _by_module(info[key])
        lines += [f"{title}: {name} ({count} tensors)" for name, count in groups.items()]
    for name, found, expected in sorted(info["mismatched_keys"]):
        lines.append(
            f"other shape: {name} is {tuple(found)} in the file, {tuple(expected)} in the model"
        )
    return "\n".join(lines) or "every weight was in the file"


def _by_module(names) -> dict[str, int]:
    """Tensor counts under the first two parts of their names."""
    groups: dict[str, int] = {}
    for name in sorted(names):
        group = ".".join(name.split(".")[:2])
        groups[group] = groups.get(group, 0) + 1
    return groups


def export_bert(
    model_or_dir: SpanBertForPreTraining | str | os.PathLike,
    out_dir: str | os.PathLike,
    tokenizer_dir: str | os.PathLike | None = None,
) -> list[Path]:
    """Write a plain `model_type: bert` directory, which transformers loads without this package.

    Args:
        model_or_dir: the model, or a directory it was saved in.
        out_dir: made if missing; files of the same names are replaced, one by one and whole.
        tokenizer_dir: where tokenizer files are copied from; default the model's directory.

    Returns:
        The files written: config.json, model.safetensors (encoder, MLM head, and pooler and next
            sentence head where the model has them) and the tokenizer's.

    Raises:
        DataError: the encoder is no BERT, or tokenizer_dir holds no tokenizer.
        StorageError: a file could not be written.
    """
    source = None
    if not isinstance(model_or_dir, SpanBertForPreTraining):
        source = Path(model_or_dir)
        if not (source / "config.json").is_file():
            raise DataError(f"{source}: no config.json there; a saved model directory is expected")
        model_or_dir = SpanBertForPreTraining.from_pretrained(source)
    model = model_or_dir
    if model.config.encoder_config is not None:
        kind = model.config.encoder_config["model_type"]
        raise DataError(
            f"the encoder is {kind!r}, not BERT: save `model.encoder` with its own save_pretrained"
        )
    tokenizer = _tokenizer_files(Path(tokenizer_dir or source)) if tokenizer_dir or source else []
    if tokenizer_dir and not tokenizer:
        raise DataError(
            f"{tokenizer_dir}: no tokenizer files there ({', '.join(_TOKENIZER_FILES)})"
        )
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that every file arrives there whole, by a rename.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as work:
            _write_bert(model, Path(work))
            for file in tokenizer:
                shutil.copyfile(file, Path(work) / file.name)
            # The weights last: a directory that has them has everything.
            names = sorted(os.listdir(work), key=lambda name: (name == "model.safetensors", name))
            for name in names:
                os.replace(Path(work) / name, out / name)
    except OSError as error:
        raise StorageError(f"{out}: the model could not be written: {error}") from error
    return [out / name for name in names]


def _write_bert(model: SpanBertForPreTraining, folder: Path) -> None:
    fields = model.config.to_dict()
    for name in (*ABOUT_THE_FILE, *_HEAD_FIELDS):
        fields.pop(name, None)
    architecture = "BertForPreTraining" if model.config.nsp else "BertForMaskedLM"
    config = BertConfig(**fields, architectures=[architecture])
    config.dtype = model.dtype
    config.save_pretrained(folder)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(("cls.sbo.", "cls.sbo_bias"))
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes files 0600; the configuration has the mode that the umask gives.
    os.chmod(folder / "model.safetensors", (folder / "config.json").stat().st_mode & 0o777)


def _tokenizer_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory")
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
