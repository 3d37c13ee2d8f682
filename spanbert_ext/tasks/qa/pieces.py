"""Texts as pieces with their places in the text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

# Texts tokenised in one call: enough to keep all cores busy, few enough that the tokenizer's own
# records of them stay small.
_AT_ONCE = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """A text without special tokens.

    Args:
        ids: [n] int64.
        offsets: [n, 2] int32, first character and the one behind the last, of each piece.
        words: [n, 2] int32, the same of the word that the piece belongs to; None where nobody
            asked.
    """

    ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray | None = None


def tokenise(texts: Iterable[str], tokenizer: Any, words: bool = False) -> dict[str, Pieces]:
    """The pieces of each distinct text; every text is tokenised once.

    Half a surrogate pair, which no tokenizer takes, is read as U+FFFD.
    """
    distinct = list(dict.fromkeys(texts))
    found: dict[str, Pieces] = {}
    for start in range(0, len(distinct), _AT_ONCE):
        part = distinct[start : start + _AT_ONCE]
        batch = tokenizer(
            [_SURROGATE.sub("\ufffd", text) for text in part],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for place, text in enumerate(part):
            ids = np.array(batch["input_ids"][place], dtype=np.int64)
            offsets = np.fromiter(
                chain.from_iterable(batch["offset_mapping"][place]), np.int32, 2 * len(ids)
            ).reshape(-1, 2)
            whole = _words(offsets, batch.word_ids(place)) if words else None
            found[text] = Pieces(ids, offsets, whole)
    return found


def _words(offsets: np.ndarray, word_ids: list[int | None]) -> np.ndarray:
    """[n, 2] int32, offsets of the words of pieces."""
    if not word_ids:
        return offsets
    # A piece without a word (a special token written in the text) is one itself.
    ids = np.array([-1 - n if word is None else word for n, word in enumerate(word_ids)])
    first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))
    stop = np.append(first[1:], len(ids))
    spans = np.stack([offsets[first, 0], offsets[stop - 1, 1]], axis=1)
    return np.repeat(spans, stop - first, axis=0)
