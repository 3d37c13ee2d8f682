"""Checkpoints of the original SpanBERT code (`model.pt`) under the names of this package.

A file is a dict with `model`, the tensors. Theirs -> ours:

    decoder.bert.*.LayerNorm.{gamma,beta}                  bert.*.LayerNorm.{weight,bias}
    decoder.cls.predictions.{transform.*,bias}             cls.predictions.{transform.*,bias}
    decoder.cls.pair_target_predictions.position_embeddings.weight
                                                           cls.sbo.position_embeddings.weight
    decoder.cls.pair_target_predictions.mlp_layer_norm.*   cls.sbo.*
    decoder.cls.pair_target_predictions.bias               cls.sbo_bias
    decoder.cls.{predictions,pair_target_predictions}.decoder.weight   the word embedding (tied)

The columns of `linear1` mean [left; right; position] in both.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from spanbert_ext.errors import DataError
from spanbert_ext.weights.archives import read_tensors

FILE = "model.pt"
# Not in the files; every published BERT has it.
HEAD_SIZE = 64
_LAYER_NORM = {"gamma": "weight", "beta": "bias"}
_PAIR = "cls.pair_target_predictions."
_WORDS = "bert.embeddings.word_embeddings.weight"


def modern_name(name: str) -> str:
    """A tensor's name with LayerNorm's parameters called as they are today."""
    head, _, last = name.rpartition(".")
    return f"{head}.{_LAYER_NORM.get(last, last)}"


def our_name(name: str) -> str:
    """The name here of a tensor of a fairseq checkpoint."""
    name = modern_name(name.removeprefix("decoder."))
    if name == f"{_PAIR}bias":
        return "cls.sbo_bias"
    return name.replace(f"{_PAIR}mlp_layer_norm.", "cls.sbo.").replace(_PAIR, "cls.sbo.")


def read_fairseq(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The encoder and the heads of a checkpoint.

    Returns:
        (fields of `SpanBertConfig` that the shapes tell, tensors under our names).

    Raises:
        DataError: not such a file, or its output layers are not the word embedding.
    """
    stored = read_tensors(path, "model")
    if f"decoder.{_WORDS}" not in stored:
        raise DataError(
            f"{path}: no checkpoint of the original SpanBERT code, whose tensors are named "
            "decoder.bert.* and decoder.cls.*"
        )
    weights = {our_name(name): tensor for name, tensor in stored.items()}
    for name in ("cls.predictions.decoder.weight", "cls.sbo.decoder.weight"):
        tied = weights.pop(name, None)
        if tied is not None and not torch.equal(tied, weights[_WORDS]):
            raise DataError(f"{path}: {name} is not the word embedding; tied weights are expected")
    return _fields(path, weights), weights


def _fields(path: Path, weights: dict[str, torch.Tensor]) -> dict:
    try:
        vocab_size, hidden = weights[_WORDS].shape
        fields = {
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "num_attention_heads": hidden // HEAD_SIZE,
            "num_hidden_layers": 1
            + max(int(n) for n in re.findall(r"bert\.encoder\.layer\.(\d+)\.", "\n".join(weights))),
            "intermediate_size": len(weights["bert.encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(weights["bert.embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(weights["bert.embeddings.token_type_embeddings.weight"]),
        }
        positions = weights.get("cls.sbo.position_embeddings.weight")
        if positions is not None:
            fields["max_span_targets"], fields["position_size"] = positions.shape
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: parts of the encoder are missing ({error})") from error
    if hidden % HEAD_SIZE:
        raise DataError(
            f"{path}: hidden size {hidden} is not a multiple of {HEAD_SIZE}, the width of an "
            "attention head in every published BERT; the file does not say how many heads it has"
        )
    return fields
