"""The special tokens around two texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError


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
