"""Texts as pieces with their places in the text, and the special tokens around two texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError

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


@dataclass(frozen=True, slots=True, eq=False)
class PairLayout:
    """The special tokens around and between two texts, as the tokenizer itself puts them.

    Args:
        before, between, behind: int64 ids.
        types: token types of before, first text, between, second text, behind; each one number for
            every token; None where the model has no token types.
    """

    before: np.ndarray
    between: np.ndarray
    behind: np.ndarray
    types: tuple[np.ndarray, int, np.ndarray, int, np.ndarray] | None

    @classmethod
    def of(cls, tokenizer: Any) -> PairLayout:
        """Read off a pair that the tokenizer joins; [CLS] first [SEP] second [SEP] for a
        tokenizer that adds nothing.

        Raises:
            DataError: it neither joins pairs nor has the tokens [CLS] and [SEP].
        """
        probe = tokenizer("a", "a", return_token_type_ids=True, verbose=False)
        ids, parts = np.array(probe["input_ids"], dtype=np.int64), probe.sequence_ids(0)
        typed = "token_type_ids" in tokenizer.model_input_names
        if not (parts and parts[0] is None and parts[-1] is None and 0 in parts and 1 in parts):
            return cls._plain(tokenizer, typed)
        first, second = parts.index(0), parts.index(1)
        end, last = len(parts) - parts[::-1].index(0), len(parts) - parts[::-1].index(1)
        kinds = np.array(probe["token_type_ids"], dtype=np.int64)
        types = (kinds[:first], kinds[first], kinds[end:second], kinds[second], kinds[last:])
        return cls(ids[:first], ids[end:second], ids[last:], types if typed else None)

    @classmethod
    def _plain(cls, tokenizer: Any, typed: bool) -> PairLayout:
        begin, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
        if begin is None or separator is None:
            raise DataError(
                "the tokenizer has no tokens that begin a sequence and part two texts; give it "
                "cls_token and sep_token"
            )
        one = np.array([separator])
        zeros, ones = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
        types = (zeros, 0, zeros, 1, ones) if typed else None
        return cls(np.array([begin]), one, one, types)

    @property
    def specials(self) -> int:
        """How many there are."""
        return len(self.before) + len(self.between) + len(self.behind)

    def token_types(self, first: int, second: int) -> np.ndarray | None:
        """[n] int64 for texts of so many pieces."""
        if self.types is None:
            return None
        before, one, between, other, behind = self.types
        return np.concatenate(
            [before, np.full(first, one), between, np.full(second, other), behind]
        )
