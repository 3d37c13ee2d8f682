"""A run that starts from given weights: whether they fit its corpus and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spanbert_ext.data import Corpus
from spanbert_ext.data.tokenizer import is_cased, stated_lowercasing
from spanbert_ext.errors import ConfigError
from spanbert_ext.model.hf_encoder import longest_sequence
from spanbert_ext.model.pretraining import SpanBertForPreTraining
from spanbert_ext.text.vocabulary import VocabularyInfo
from spanbert_ext.training import checkpoint
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.config_checks import sbo_layer_faults
from spanbert_ext.training.models import head_options
from spanbert_ext.weights.load_report import LoadReport
from spanbert_ext.weights.sources import StartingPoint, open_start, read_start

# Special tokens of both published BERT vocabularies, one of which every original archive has.
_PUBLISHED_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def continue_model(
    config: PretrainConfig, corpus: Corpus
) -> tuple[SpanBertForPreTraining, LoadReport]:
    """The model of `config.init` with the run's options, and what it took over.

    Raises:
        ConfigError: lists every way in which the weights do not fit the corpus or the settings.
        DataError, StorageError: as `open_start` and `read_start`.
    """
    name = str(checkpoint.model_directory(Path(config.init)))
    if not Path(name).exists():
        name = config.init  # a hub name is no path
    options = head_options(config)
    if config.model.dropout is not None:
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            options[field] = config.model.dropout
    with open_start(name) as start:
        layers = start.fields.get("num_hidden_layers")
        faults = sbo_layer_faults(config.loss.sbo_layer, layers) if layers else []
        if faults:
            raise ConfigError(f"{faults[0]} (init {config.init})")
        model, report = read_start(start, **options)
        faults, notes = _vocabulary_faults(model, start, corpus)
    faults += _length_faults(model, config)
    if faults:
        lines = faults[0] if len(faults) == 1 else "".join(f"\n  - {fault}" for fault in faults)
        raise ConfigError(f"init: {config.init} does not fit this run: {lines}")
    return model, replace(report, notes=(*report.notes, *notes))


def _vocabulary_faults(
    model: SpanBertForPreTraining, start: StartingPoint, corpus: Corpus
) -> tuple[list[str], list[str]]:
    """(reasons to refuse, remarks)"""
    rows = model.get_input_embeddings().weight.shape[0]
    ours = corpus.vocabulary
    advice = f"prepare the corpus with `--tokenizer {start.name}`"
    faults = []
    if ours.vocab_size > rows:
        faults.append(
            f"the corpus has ids up to {ours.vocab_size - 1} ({ours.pieces[-1]!r}), the word "
            f"embedding has {rows} rows; {advice}, or grow the embedding with "
            "resize_token_embeddings and save that model"
        )
    if not any((start.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return _without_tokenizer(faults, rows, start, ours)
    theirs = VocabularyInfo.from_tokenizer(start.folder)
    if theirs.pieces != ours.pieces:
        faults.append(f"{_first_difference(theirs.pieces, ours.pieces)}; {advice}")
    stated, actual = stated_lowercasing(start.folder), stated_lowercasing(corpus.tokenizer_dir)
    notes = []
    if stated and is_cased(theirs.pieces):
        notes.append(
            "the tokenizer beside the weights lower-cases text, its vocabulary is cased: the "
            "corpus's rule is used"
        )
    elif None not in (stated, actual) and stated != actual:
        rules = ("keeps upper case", "lower-cases text")
        faults.append(
            f"the corpus's tokenizer {rules[actual]}, that of the weights {rules[stated]}; {advice}"
        )
    if rows > theirs.vocab_size and not faults:
        notes.append(f"{rows - theirs.vocab_size} rows of the word embedding belong to no piece")
    return faults, notes


def _without_tokenizer(
    faults: list[str], rows: int, start: StartingPoint, ours: VocabularyInfo
) -> tuple[list[str], list[str]]:
    advice = "prepare the corpus with the vocabulary that these weights were trained with"
    if start.layout in ("original", "fairseq"):
        advice = "prepare the corpus with the vocab.txt of bert-base-cased, as for every SpanBERT"
    if ours.vocab_size < rows:
        faults.append(
            f"no tokenizer lies beside the weights, and their word embedding has {rows} rows where "
            f"the corpus has {ours.vocab_size} ids; {advice}"
        )
    odd = [
        f"{piece} is {ours.pieces.index(piece) if piece in ours.pieces else 'missing'}, not {i}"
        for piece, i in _PUBLISHED_IDS.items()
        if i >= ours.vocab_size or ours.pieces[i] != piece
    ]
    if start.layout in ("original", "fairseq") and odd and not faults:
        faults.append(f"the corpus's ids are not BERT's ({', '.join(odd)}); {advice}")
    trust = "no tokenizer lies beside the weights: that ids mean the same is taken on trust"
    return faults, [trust]


def _first_difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"its tokenizer has {len(theirs)} ids, the corpus's has {len(ours)}"
    different = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
    i = different[0]
    return (
        f"its tokenizer gives other ids than the corpus's: {len(different)} of {len(ours)} differ, "
        f"first id {i}, which is {theirs[i]!r} there and {ours[i]!r} in the corpus"
    )


def _length_faults(model: SpanBertForPreTraining, config: PretrainConfig) -> list[str]:
    faults = []
    if model.config.encoder_config is None:
        positions = model.bert.max_positions
    else:
        positions = longest_sequence(model.backbone)
    if positions is not None and config.batch.max_length > positions:
        faults.append(
            f"batch.max_length is {config.batch.max_length}, the model has {positions} positions; "
            f"set it to at most {positions}"
        )
    wanted, have = config.masking.max_span_targets, model.config.max_span_targets
    if wanted > have:
        faults.append(
            f"masking.max_span_targets is {wanted}, the SBO head of the weights has {have} "
            f"positions; set it to at most {have}"
        )
    return faults
