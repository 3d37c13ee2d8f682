"""`spanbert pretrain` without arguments: the main job, whole and small, ending in something to look
at.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spanbert_ext import conversion
from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, prepare
from spanbert_ext.errors import StorageError
from spanbert_ext.masked_batch import MaskedBatch
from spanbert_ext.modeling import SpanBertForPreTraining
from spanbert_ext.training import demo_text, model_card
from spanbert_ext.training.checkpoint import write_text
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.models import load_checkpoint
from spanbert_ext.training.pretrain import PretrainResult, pretrain
from spanbert_ext.training.run_log import format_seconds

_VOCABULARY = 3000
_HELD_OUT_DOCUMENTS = 0.1


@dataclass(frozen=True)
class FilledSpan:
    """A masked span and what both heads propose for it.

    Args:
        before, after: the text around the span.
        pieces: the original pieces.
        by_mlm, by_sbo: for each piece, the most probable (piece, probability) first.
    """

    before: str
    after: str
    pieces: list[str]
    by_mlm: list[list[tuple[str, float]]]
    by_sbo: list[list[tuple[str, float]]]


def run_demonstration(config: PretrainConfig) -> None:
    """Write text, prepare it, pre-train, export, and show what was learned. Running it again
    continues.

    Args:
        config: settings with `corpus` None; everything goes below `config.output`.

    Raises:
        SpanBertError: as `prepare` and `pretrain`.
    """
    began = time.monotonic()
    home = Path(config.output)
    print(
        f"The demonstration: pre-train a small SpanBERT on the Python language reference, in "
        f"{home}/"
    )
    corpus = _prepared(home)
    print(
        f"{corpus.num_documents} documents, {corpus.num_tokens:,} word pieces of a vocabulary of "
        f"{corpus.vocab_size:,}",
        flush=True,
    )
    run = dataclasses.replace(config, corpus=str(corpus.path), output=str(home / "run"))
    result = pretrain(run)
    if result.was_finished:
        print(f"{home} is finished; showing it again (choose another --output for a new run)")
    plain = home / "bert"
    if not plain.exists():
        conversion.export_bert(result.checkpoint, plain, tokenizer_dir=corpus.tokenizer_dir)
        model_card.write_card(result.checkpoint, plain)
    for line in report(result, corpus, run, plain):
        print(line)
    print(f"({format_seconds(time.monotonic() - began)} in all)")


def _prepared(home: Path) -> Corpus:
    target = home / "corpus"
    if target.exists():
        return Corpus.open(target)
    text = home / "python-reference.txt"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the output directory {home}: {error.strerror}") from error
    documents = ("\n".join(paragraphs) + "\n" for paragraphs in demo_text.documents())
    write_text(text, "\n".join(documents))
    return prepare(
        PrepareConfig(
            inputs=[str(text)],
            output=str(target),
            vocab_size=_VOCABULARY,
            lowercase=True,
            validation_fraction=_HELD_OUT_DOCUMENTS,
        )
    )


def report(
    result: PretrainResult, corpus: Corpus, config: PretrainConfig, plain: Path
) -> list[str]:
    """The closing lines: held-out losses, a filled span, what to do next."""
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    model = load_checkpoint(result.checkpoint).eval()
    train = PackedRows(corpus, max_length=config.batch.max_length, split="train")
    held_out = PackedRows(corpus, max_length=config.batch.max_length, split="validation")
    guess = unigram_loss(train, held_out, corpus.vocab_size, tokenizer.all_special_ids)
    start, end = result.state.starting_losses, result.state.latest_losses
    lines = [
        "",
        f"Loss on {held_out.num_tokens:,} held-out word pieces (in brackets: as if choosing among "
        f"so many):",
        f"  {'':34s}{'before':>16s}{'after':>16s}{'word counts alone':>20s}",
    ]
    for name, label in (
        ("mlm_loss", "MLM, reads the whole sentence"),
        ("sbo_loss", "SBO, reads the span's two borders"),
    ):
        cells = [f"{value:.2f} ({np.exp(value):,.0f})" for value in (start[name], end[name], guess)]
        lines.append(f"  {label:34s}{cells[0]:>16s}{cells[1]:>16s}{cells[2]:>20s}")
    span = fill_span(model, tokenizer, held_out, config.masking.max_span_targets)
    return [
        *lines,
        *(_span_lines(span) if span else []),
        "",
        "A few minutes teach frequent words, not meaning; published models train for days.",
        f"Plain BERT directory: {plain}   AutoModelForMaskedLM.from_pretrained({str(plain)!r})",
        "Your own text:        spanbert prepare TEXT... --output corpus && "
        "spanbert pretrain --corpus corpus --output run --preset base",
    ]


def _span_lines(span: FilledSpan) -> list[str]:
    blanks = " ".join("____" for _ in span.pieces)
    lines = ["A held-out sentence with a masked span:", f"  {span.before} {blanks} {span.after}"]
    lines.append(f"  {'hidden':16s}{'MLM fills':44s}SBO fills")
    for piece, mlm, sbo in zip(span.pieces, span.by_mlm, span.by_sbo, strict=True):
        shown = [
            ", ".join(f"{p} {probability:.0%}" for p, probability in head) for head in (mlm, sbo)
        ]
        lines.append(f"  {piece:16s}{shown[0]:44s}{shown[1]}")
    return lines


def unigram_loss(
    train: PackedRows, held_out: PackedRows, vocab_size: int, special_ids: Sequence[int]
) -> float:
    """Mean surprise, in nats, of held-out pieces under the piece counts of the training part (one
    added to each).
    """
    ordinary = np.ones(vocab_size, dtype=bool)
    ordinary[list(special_ids)] = False
    counts = [
        np.bincount(rows.batch(np.arange(len(rows))).tokens, minlength=vocab_size) * ordinary
        for rows in (train, held_out)
    ]
    probabilities = (counts[0] + ordinary) / (counts[0] + ordinary).sum()
    return float(-(counts[1][ordinary] * np.log(probabilities[ordinary])).sum() / counts[1].sum())


def fill_span(
    model: SpanBertForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    held_out: PackedRows,
    max_span_targets: int,
    top: int = 3,
) -> FilledSpan | None:
    """Mask three whole words in the middle of the first held-out sentence of 12 to 30 plain words;
    None if there is none.
    """
    for ids in _sentences(tokenizer, held_out):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        if 12 <= len(pieces) <= 30 and all(p.isalpha() for p in pieces[:-1]):
            first = len(pieces) // 2 - 1
            break
    else:
        return None
    span = slice(first, first + 3)
    tokens = torch.tensor([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
    batch = one_span_batch(tokens, first + 1, first + 4, tokenizer.mask_token_id, max_span_targets)
    with torch.no_grad():
        cu_seqlens = torch.tensor([0, len(tokens)])
        hidden = model(batch.input_ids, cu_seqlens=cu_seqlens).last_hidden_state
        heads = [model.mlm_logits(hidden[batch.target_positions]), model.sbo_logits(hidden, batch)]
    filled = []
    for logits in heads:
        best = logits.float().softmax(-1).topk(top)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        filled.append(
            [list(zip(tokenizer.convert_ids_to_tokens(i), v, strict=True)) for i, v in rows]
        )
    before, after = tokenizer.decode(ids[:first]), tokenizer.decode(ids[first + 3 :])
    return FilledSpan(before, after, pieces[span], *filled)


def _sentences(tokenizer: PreTrainedTokenizerBase, rows: PackedRows):
    """Id lists of the sentences that lie whole inside a held-out sequence."""
    stop = tokenizer.convert_tokens_to_ids(".")
    batch = rows.batch(np.arange(len(rows)))
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        sentence: list[int] = []
        for token in batch.tokens[start + 1 : end - 1].tolist():
            sentence.append(token)
            if token == stop:
                yield sentence
                sentence = []


def one_span_batch(
    tokens: torch.Tensor, first: int, stop: int, mask_id: int, max_span_targets: int
) -> MaskedBatch:
    """A batch of one sequence [T] whose tokens first..stop-1 are [MASK]; neither end may be
    special.
    """
    positions = torch.arange(first, stop)
    corrupted, labels = tokens.clone(), torch.full_like(tokens, -100)
    corrupted[first:stop] = mask_id
    labels[first:stop] = tokens[first:stop]
    offsets = positions - first
    return MaskedBatch(
        input_ids=corrupted,
        labels=labels,
        target_positions=positions,
        target_ids=tokens[first:stop],
        target_spans=torch.zeros_like(positions),
        target_offsets=offsets,
        sbo_ids=torch.where(offsets < max_span_targets, tokens[first:stop], -100),
        span_left=torch.tensor([first - 1]),
        span_right=torch.tensor([stop]),
        dropped_spans=torch.zeros(1, dtype=torch.int64),
    )
