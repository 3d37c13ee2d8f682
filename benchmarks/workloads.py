"""Inputs of every benchmark: synthetic text with the shape of real one, batches, models.

Ids are drawn at random, a fifth of them continuation pieces, from a vocabulary laid out like BERT's
(28996 pieces, special ids 0 and 100 to 103). Seeds are fixed: what is timed is the same everywhere.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spanbert_ext import MaskedBatch, SBOHead, SpanBertConfig, SpanMasker
from spanbert_ext.ops import backend
from spanbert_ext.training.presets import PRESETS

VOCAB = 28996
PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
SPECIALS = (PAD, UNK, CLS, SEP, MASK)
FIRST_WORD, FIRST_CONTINUATION = 1000, 23000
LENGTH = 512
SLOTS = 15  # positions of a span the published SBO predicts
IGNORE = -100


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed)


def text_rows(rows: int, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    """[rows, length] int64: [CLS], pieces of words, [SEP]."""
    draws = generator(seed)
    words = torch.randint(FIRST_WORD, FIRST_CONTINUATION, (rows, length), generator=draws)
    pieces = torch.randint(FIRST_CONTINUATION, VOCAB, (rows, length), generator=draws)
    ids = torch.where(torch.rand(rows, length, generator=draws) < 0.2, pieces, words)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def word_starts() -> torch.Tensor:
    """[VOCAB] bool, which pieces begin a word."""
    return torch.arange(VOCAB) < FIRST_CONTINUATION


@functools.cache
def masker() -> SpanMasker:
    """The published masking over this vocabulary."""
    return SpanMasker(word_starts(), SPECIALS, MASK, seed=0, max_span_targets=SLOTS)


@functools.cache
def tokenizer():
    """A transformers tokenizer with this vocabulary, for collators that ask for one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    named = {PAD: "[PAD]", UNK: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    pieces = {
        named.get(i, f"w{i}" if i < FIRST_CONTINUATION else f"##w{i}"): i for i in range(VOCAB)
    }
    model = WordPiece(pieces, unk_token="[UNK]")
    names = {f"{name[1:-1].lower()}_token": name for name in named.values()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)


def masked_rows(rows: int, device: str, length: int = LENGTH) -> MaskedBatch:
    """A masked batch of `text_rows` as a step has it: on the CPU the slots that are used, on a GPU
    all of them.
    """
    batch = masker()(text_rows(rows, length), sample_ids=torch.arange(rows))
    return batch.used() if device == "cpu" else batch.to(device)


def num_sbo_targets(batch: MaskedBatch) -> int:
    """Targets of the SBO."""
    return int((batch.sbo_ids != IGNORE).sum())


def sbo_head(hidden: int, dtype: torch.dtype, device: str) -> SBOHead:
    """A head with random weights, biases and gains too."""
    torch.manual_seed(1)
    head = SBOHead(hidden, max_span_targets=SLOTS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return head.to(device, dtype)


def random_like_hidden(*shape: int, dtype: torch.dtype, device: str, seed: int = 2) -> torch.Tensor:
    """Normal numbers, as LayerNorm leaves them."""
    return torch.randn(*shape, generator=generator(seed)).to(device, dtype)


def model_config(preset: str, attention_dropout: float, **changes) -> SpanBertConfig:
    """Configuration of a preset with the published hidden dropout."""
    fields = {**PRESETS[preset], "vocab_size": VOCAB, "max_span_targets": SLOTS}
    fields |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": attention_dropout}
    return SpanBertConfig(**{**fields, **changes})


@contextmanager
def reference_backend() -> Iterator[None]:
    """Inside the block every operation is the specification's."""
    name = "SPANBERT_EXT_BACKEND"
    before = os.environ.get(name)
    os.environ[name] = "reference"
    backend.reset()
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        backend.reset()
