"""Texts as the tokens that an encoder reads, with their places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

# Texts tokenised in one call: enough to keep all cores busy, few enough that the tokenizer's own
# records of them, which are far larger than its numbers, stay small.
_AT_ONCE, _WITH_OFFSETS_AT_ONCE = 10_000, 1024
_SURROGATES = re.compile("[\ud800-\udfff]")
_IS_BLANK = np.array([chr(code).isspace() for code in range(0x3002)])
_BYTE_BLANK = "\u0120"  # how byte-level vocabularies write a blank


def readable(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, as U+FFFD; no character moves."""
    return _SURROGATES.sub("\ufffd", text)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text without special tokens.

    Args:
        ids: [n] int64.
        offsets: [n, 2] int32, first character and the one behind the last of each token, without
            white space at its ends; empty where a token stands for white space alone.
        words: [n, 2] int32, the same of the tokenizer's word that the token belongs to, between
            white space where the tokenizer's words have any inside; None where nobody asked.
    """

    ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray | None = None


def token_ids(
    texts: Iterable[str], tokenizer: Any, most: int | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """The tokens of each distinct text without special ones, [n] int64.

    Args:
        most: tokens kept of a text, its first ones.
        options: further arguments of the tokenizer.
    """
    found: dict[str, np.ndarray] = {}
    for part, batch in _batches(texts, tokenizer, _AT_ONCE, options):
        for text, ids in zip(part, batch["input_ids"], strict=True):
            found[text] = np.array(ids[:most], dtype=np.int64)
    return found


def tokenise(
    texts: Iterable[str], tokenizer: Any, words: bool = False, **options: Any
) -> dict[str, Tokens]:
    """The tokens of each distinct text with their places.

    Args:
        tokenizer: a fast tokenizer of transformers.
        words: find the tokenizer's words too.
        options: further arguments of the tokenizer.
    """
    found: dict[str, Tokens] = {}
    options = {"return_offsets_mapping": True, **options}
    for part, batch in _batches(texts, tokenizer, _WITH_OFFSETS_AT_ONCE, options):
        for place, text in enumerate(part):
            ids = np.array(batch["input_ids"][place], dtype=np.int64)
            flat = chain.from_iterable(batch["offset_mapping"][place])
            offsets = np.fromiter(flat, np.int32, 2 * len(ids)).reshape(-1, 2)
            offsets = _true_offsets(text, ids, offsets, tokenizer)
            whole = _whole_words(text, offsets, batch.word_ids(place)) if words else None
            found[text] = Tokens(ids, offsets, whole)
    return found


def _batches(
    texts: Iterable[str], tokenizer: Any, at_once: int, options: dict[str, Any]
) -> Iterator[tuple[list[str], Any]]:
    distinct = list(dict.fromkeys(texts))
    for start in range(0, len(distinct), at_once):
        part = distinct[start : start + at_once]
        yield (
            part,
            tokenizer(
                [readable(text) for text in part],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
                **options,
            ),
        )


def _true_offsets(text: str, ids: np.ndarray, offsets: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Offsets without white space at their ends, and with the characters that trimming took.

    A byte-level tokenizer that puts a blank before every word and trims offsets takes the word's
    first letter away where another part has removed the blank of the text before.
    """
    if not len(ids) or not text:
        return offsets
    blank = _blank(text)
    count = len(blank)
    place = np.arange(count, dtype=np.int32)
    behind = np.minimum.accumulate(np.where(blank, count, place)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(blank, 0, place + 1))
    starts = np.minimum(np.append(behind, count)[offsets[:, 0]], offsets[:, 1])
    ends = np.maximum(np.append(0, before)[offsets[:, 1]], starts)
    covered = np.append(0, np.maximum.accumulate(ends)[:-1])
    for n in np.flatnonzero((starts > covered) & ~blank[starts - 1]):
        token = tokenizer.convert_ids_to_tokens(int(ids[n]))
        if token.startswith(_BYTE_BLANK) and starts[n] > ends[:n].max(initial=0):
            starts[n] -= 1
            ends[n] = max(ends[n], starts[n] + 1) if len(token) > 1 else starts[n]
    return np.stack([starts, ends], axis=1).astype(np.int32)


def _blank(text: str) -> np.ndarray:
    """[characters] bool, which are white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _IS_BLANK[np.minimum(codes, len(_IS_BLANK) - 1)]


def _whole_words(text: str, offsets: np.ndarray, word_ids: list[int | None]) -> np.ndarray:
    """[n, 2] int32, offsets of the tokenizer's words of tokens."""
    if not word_ids:
        return offsets
    # A token without a word (a special one written in the text) is one itself.
    ids = np.array([-1 - n if word is None else word for n, word in enumerate(word_ids)])
    first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))
    stop = np.append(first[1:], len(ids))
    spans = np.stack([offsets[first, 0], offsets[stop - 1, 1]], axis=1)
    spans = np.repeat(spans, stop - first, axis=0)
    # A tokenizer without a pre-tokenizer takes the whole text for one word.
    blank = _blank(text)
    place = np.arange(len(blank), dtype=np.int32)
    begins = np.append(0, np.maximum.accumulate(np.where(blank, place + 1, 0)))
    ends = np.minimum.accumulate(np.where(blank, place, len(blank))[::-1])[::-1]
    starts = np.maximum(spans[:, 0], begins[offsets[:, 0]])
    ends = np.minimum(spans[:, 1], np.append(ends, len(blank))[offsets[:, 1]])
    return np.stack([starts, ends], axis=1).astype(np.int32)
