"""Models of the original TensorFlow coreference (mandarjoshi90/coref, "independent") as ours.

A released model is a folder with `NAME.ckpt.index`, `NAME.ckpt.data-00000-of-00001`,
`bert_config.json` and `vocab.txt`. The names of its variables are those that the original code
gives them when its graph is built (`independent.py`, `util.py` and BERT's `modeling.py`); `HEAD`
and `_encoder_names` are the whole table, and a checkpoint with other variables is refused by their
names. Kernels are stored transposed.

The two differ in three places, which the import settles:

- the features of a pair of spans stand in another order;
- they compare speakers by name, also the name of nobody, so that "unknown" counts as "the same";
- a genre they do not know is their first, bc.

What stays different: their candidate spans may begin or end at [CLS] and [SEP].
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig

from spanbert_ext.data.storage import locked_staging, publish
from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.data import GENRES
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.coref.options import CorefOptions
from spanbert_ext.tasks.coref.task import CorefTask
from spanbert_ext.tasks.models import read_tokenizer
from spanbert_ext.tasks.task_file import write_task
from spanbert_ext.weights.load_report import LoadReport
from spanbert_ext.weights.tensorflow import TensorflowCheckpoint

_CONFIG, _VOCABULARY = "bert_config.json", "vocab.txt"
_PAIRS = "coref_layer/slow_antecedent_scores"
_SEGMENTS = "coref_layer/segment_distance/segment_distance_embeddings"
# Ours below `coref.` -> theirs. A linear layer is `output_weights` and `output_bias` there.
HEAD = {
    "mentions.head_attention.weight": "mention_word_attn/output_weights",
    "mentions.head_attention.bias": "mention_word_attn/output_bias",
    "mentions.width_embedding.weight": "span_width_embeddings",
    "mentions.network.inner.weight": "mention_scores/hidden_weights_0",
    "mentions.network.inner.bias": "mention_scores/hidden_bias_0",
    "mentions.network.out.weight": "mention_scores/output_weights",
    "mentions.network.out.bias": "mention_scores/output_bias",
    "mentions.width_prior_embedding.weight": "span_width_prior_embeddings",
    "mentions.width_prior.inner.weight": "width_scores/hidden_weights_0",
    "mentions.width_prior.inner.bias": "width_scores/hidden_bias_0",
    "mentions.width_prior.out.weight": "width_scores/output_weights",
    "mentions.width_prior.out.bias": "width_scores/output_bias",
    "antecedents.coarse.weight": "src_projection/output_weights",
    "antecedents.coarse.bias": "src_projection/output_bias",
    "antecedents.distance_prior_embedding.weight": "antecedent_distance_emb",
    "antecedents.distance_prior.weight": "output_weights",
    "antecedents.distance_prior.bias": "output_bias",
    "antecedents.features.distance.weight": "coref_layer/antecedent_distance_emb",
    "antecedents.features.segment.weight": _SEGMENTS,
    "antecedents.features.speaker.weight": "coref_layer/same_speaker_emb",
    "antecedents.features.genre.weight": "genre_embeddings",
    "antecedents.network.inner.weight": f"{_PAIRS}/hidden_weights_0",
    "antecedents.network.inner.bias": f"{_PAIRS}/hidden_bias_0",
    "antecedents.network.out.weight": f"{_PAIRS}/output_weights",
    "antecedents.network.out.bias": f"{_PAIRS}/output_bias",
    "antecedents.gate.weight": "coref_layer/f/output_weights",
    "antecedents.gate.bias": "coref_layer/f/output_bias",
}
# The order of features in a pair, theirs; ours is that of `AntecedentScorer.features`.
_FEATURES = ("speaker", "genre", "distance", "segment")
# Parts of the graph that are no part of the model.
_UNUSED = re.compile(r"bert/pooler/|global_step$|beta[12]_power|.*/(Adam(_1)?|adam_[mv])$")


def is_released(folder: Path) -> bool:
    """Whether a folder looks like a model of the original coreference."""
    return (folder / _CONFIG).is_file() and any(folder.glob("*.index"))


def import_released(folder: Path, out: Path) -> LoadReport:
    """Write a released model as a folder that `evaluate`, `predict` and `CorefResolver` load.

    Args:
        out: must not exist, or be empty.

    Raises:
        DataError: files are missing or damaged, or variables have other names or shapes than the
            original code gives them.
        StorageError: the folder cannot be written.
    """
    model = read_released(folder)
    tokenizer = read_tokenizer(folder)
    length = min(512 if model.config.hidden_size >= 1024 else 384, model.bert.max_positions)
    task = CorefTask("coref", CorefOptions(**model.options.to_dict(), max_segment_len=length))
    task.facts["genres"] = model.options.genres
    try:
        with locked_staging(out) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            write_task(staging, task)
            publish(staging, out)
    except OSError as error:
        raise StorageError(f"{out}: the model could not be written: {error}") from error
    info = {"missing_keys": [], "unexpected_keys": []}
    return LoadReport.of(model, str(folder), "original coreference in TensorFlow", info)


def read_released(folder: Path) -> SpanBertForCoreference:
    """The model of a released folder.

    Raises:
        DataError: as `import_released`.
    """
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} files *.index; exactly one checkpoint is expected")
    stored = TensorflowCheckpoint(found[0].with_suffix(""))
    try:
        fields = json.loads((folder / _CONFIG).read_text("utf-8"))
        config = BertConfig(**{n: v for n, v in fields.items() if n in BertConfig().to_dict()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / _CONFIG} cannot be read: {error}") from error
    names = dict(_encoder_names(config.num_hidden_layers))
    names |= {f"coref.{ours}": theirs for ours, theirs in HEAD.items()}
    _check_names(folder, stored, set(names.values()))
    config.coref = _options(folder, stored).to_dict()
    model = SpanBertForCoreference(config)
    _check_shapes(folder, stored, model, names)
    weights = {ours: _tensor(ours, stored[theirs]) for ours, theirs in names.items()}
    _settle(weights)
    model.load_state_dict(weights)
    return model


def _encoder_names(layers: int) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of BERT's variables."""
    for kind in ("word", "position", "token_type"):
        name = f"bert/embeddings/{kind}_embeddings"
        yield f"{name.replace('/', '.')}.weight", name
    norms, denses = ["bert/embeddings/LayerNorm"], []
    for layer in range(layers):
        base = f"bert/encoder/layer_{layer}"
        norms += [f"{base}/attention/output/LayerNorm", f"{base}/output/LayerNorm"]
        denses += [f"{base}/attention/self/{part}" for part in ("query", "key", "value")]
        denses += [
            f"{base}/{part}/dense" for part in ("attention/output", "intermediate", "output")
        ]
    for modules, parts in (
        (norms, {"weight": "gamma", "bias": "beta"}),
        (denses, {"weight": "kernel", "bias": "bias"}),
    ):
        for module in modules:
            ours = module.replace("layer_", "layer.").replace("/", ".")
            yield from ((f"{ours}.{part}", f"{module}/{theirs}") for part, theirs in parts.items())


def _check_names(folder: Path, stored: TensorflowCheckpoint, expected: set[str]) -> None:
    there = {name for name in stored if not _UNUSED.match(name)}
    faults = []
    for what, names in (("missing", expected - there), ("unknown", there - expected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            faults.append(f"{len(names)} {what}: {', '.join(sorted(names)[:5])}{more}")
    if faults:
        raise DataError(
            f"{folder}: its variables are not those of the original coreference model "
            f"(independent.py): {'; '.join(faults)}"
        )


def _check_shapes(folder: Path, stored: TensorflowCheckpoint, model, names: dict[str, str]) -> None:
    # One row of the model's own is that of unknown speakers, one that of unknown genres.
    fewer = {HEAD[f"antecedents.features.{name}.weight"] for name in ("speaker", "genre")}
    odd = []
    for ours, tensor in model.state_dict().items():
        shape = tuple(tensor.T.shape if _is_linear(ours, tensor.dim()) else tensor.shape)
        theirs = names[ours]
        wanted = (shape[0] - 1, *shape[1:]) if theirs in fewer else shape
        if stored.shape(theirs) != wanted:
            odd.append(f"{theirs} is {stored.shape(theirs)}, not {wanted}")
    if odd:
        raise DataError(f"{folder}: variables of other shapes than expected: {'; '.join(odd[:5])}")


def _options(folder: Path, stored: TensorflowCheckpoint) -> CorefModelOptions:
    """What the shapes tell; the rest as published."""
    widths, genres = stored.shape("span_width_embeddings"), stored.shape("genre_embeddings")
    if len(widths) != 2 or not genres or genres[0] != len(GENRES):
        raise DataError(f"{folder}: {len(GENRES)} genres are expected; there are {genres[:1]}")
    return CorefModelOptions(
        max_span_width=widths[0],
        feature_size=widths[1],
        ffnn_size=stored.shape("mention_scores/hidden_bias_0")[0],
        max_training_segments=stored.shape(_SEGMENTS)[0],
        genres=list(GENRES),
    )


def _tensor(ours: str, values: np.ndarray) -> torch.Tensor:
    """In our layout: linear layers are transposed there, embeddings are not."""
    tensor = torch.from_numpy(values.astype(np.float32))
    return tensor.T.contiguous() if _is_linear(ours, tensor.dim()) else tensor


def _is_linear(ours: str, dimensions: int) -> bool:
    return dimensions == 2 and "embedding" not in ours and ".features." not in ours


def _settle(weights: dict[str, torch.Tensor]) -> None:
    """The places where the two models differ, see the module."""
    base = "coref.antecedents."
    speaker, genre = f"{base}features.speaker.weight", f"{base}features.genre.weight"
    weights[speaker] = weights[speaker][[0, 1, 1]]
    weights[genre] = torch.cat([weights[genre][:1], weights[genre]])
    inner = weights[f"{base}network.inner.weight"]
    size = weights[genre].shape[1]
    spans, features = inner.split([inner.shape[1] - 4 * size, 4 * size], dim=1)
    by_name = dict(zip(_FEATURES, features.split(size, dim=1), strict=True))
    ordered = [by_name[name] for name in ("distance", "segment", "speaker", "genre")]
    weights[f"{base}network.inner.weight"] = torch.cat([spans, *ordered], dim=1)
