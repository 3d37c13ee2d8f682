"""The pieces of words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from spanbert_ext.errors import ConfigError

_AT_ONCE = 10_000  # words
_SURROGATES = re.compile("[\ud800-\udfff]")


def pieces_of(words: Iterable[str], tokenizer: Any, most: int) -> dict[str, np.ndarray]:
    """The ids of every word, each different one tokenised once.

    Args:
        most: pieces kept of a word, its first ones.

    Returns:
        Word -> [1..most] int64. A word of which the tokenizer leaves nothing (control characters,
        an accent alone) is one unknown piece: every word has a tag, so every word needs a row.

    Raises:
        ConfigError: the tokenizer has no unknown piece to put there.
    """
    distinct = list(dict.fromkeys(words))
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(distinct), _AT_ONCE):
        part = distinct[start : start + _AT_ONCE]
        # Half a surrogate pair has no UTF-8, and the tokenizer takes nothing else.
        readable = [_SURROGATES.sub("\ufffd", word) for word in part]
        rows = tokenizer(
            readable,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        for word, row in zip(part, rows, strict=True):
            found[word] = np.array(row[:most] or [_unknown(tokenizer, word)], dtype=np.int64)
    return found


def _unknown(tokenizer: Any, word: str) -> int:
    if tokenizer.unk_token_id is None:
        raise ConfigError(f"the tokenizer leaves nothing of {word[:40]!r} and has no [UNK]")
    return tokenizer.unk_token_id
