"""`spanbert pretrain` without arguments: the main job, whole and small, ending in something to look
at.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spanbert_ext.cli import demo_text
from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, prepare
from spanbert_ext.errors import StorageError
from spanbert_ext.files import write_text
from spanbert_ext.filling.filler import SpanFiller
from spanbert_ext.training import model_card
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.models import choose_device, load_checkpoint
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.progress import format_seconds
from spanbert_ext.training.run import RunResult
from spanbert_ext.weights import conversion

_VOCABULARY = 3000
_HELD_OUT_DOCUMENTS = 0.1


def run_demonstration(config: PretrainConfig) -> None:
    """Write text, prepare it, pre-train, export, and show what was learned. Running it again
    continues.

    Args:
        config: settings with `corpus` None; everything goes below `config.output`.

    Raises:
        SpanBertError: as `prepare` and `pretrain`.
    """
    choose_device(config.device)  # before work that would be for nothing
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


def report(result: RunResult, corpus: Corpus, config: PretrainConfig, plain: Path) -> list[str]:
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
        if name not in end:  # loss.sbo_weight is 0
            continue
        cells = [f"{value:.2f} ({np.exp(value):,.0f})" for value in (start[name], end[name], guess)]
        lines.append(f"  {label:34s}{cells[0]:>16s}{cells[1]:>16s}{cells[2]:>20s}")
    filled = []
    if model.cls.sbo is not None:
        filled = _filled_lines(SpanFiller(model, tokenizer), _example(tokenizer, held_out))
    return [
        *lines,
        *filled,
        "",
        "A few minutes teach frequent words, not meaning; published models train for days.",
        f"Plain BERT directory: {plain}   AutoModelForMaskedLM.from_pretrained({str(plain)!r})",
        "Your own text:        spanbert prepare TEXT... --output corpus && "
        "spanbert pretrain --corpus corpus --output run --preset base",
    ]


def _filled_lines(filler: SpanFiller, example: tuple[str, int, int] | None) -> list[str]:
    """What each head puts in place of three words of a sentence, with their geometric mean
    probability."""
    if example is None:
        return []
    text, start, end = example
    lines = [
        f"A held-out sentence that hides {text[start:end]!r} (with the mean chance of a word):",
        f"  {text[:start]}____ ____ ____{text[end:]}",
    ]
    columns = []
    for by, label in (("mlm", "MLM fills"), ("sbo", "SBO fills"), ("combined", "together")):
        found = filler(text, span=(start, end), pieces=3, top_k=3, by=by)
        columns.append([label, *(f"{f.text} {math.exp(f.score):.1%}" for f in found)])
    rows = itertools.zip_longest(*columns, fillvalue="")
    return lines + [("  " + "".join(f"{cell:38s}" for cell in row)).rstrip() for row in rows]


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


def _example(
    tokenizer: PreTrainedTokenizerBase, held_out: PackedRows
) -> tuple[str, int, int] | None:
    """The first held-out sentence of 12 to 30 plain words, and where three of them lie in its
    middle; None if there is none.
    """
    for ids in _sentences(tokenizer, held_out):
        words = tokenizer.convert_ids_to_tokens(ids)
        if 12 <= len(words) <= 30 and all(word.isalpha() for word in words[:-1]):
            first = len(words) // 2 - 1
            start = len(" ".join(words[:first])) + 1
            text = " ".join(words[:-1]) + words[-1]
            return text, start, start + len(" ".join(words[first : first + 3]))
    return None


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
