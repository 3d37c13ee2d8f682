"""The special tokens around one text and around two, as the model's own tokenizer puts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError

_BERT_TYPES = np.array([0, 0, 0, 1, 1])  # of [CLS] a [SEP] b [SEP]


def check_first_token(tokenizer: Any, where: str) -> None:
    """Raises DataError for a tokenizer that puts its special tokens behind a text only, as XLNet's:
    the tasks read the first token of a sequence."""
    parts = tokenizer("a", verbose=False).sequence_ids(0)
    if parts and parts[0] is not None and None in parts:
        raise DataError(
            f"{where}: its tokenizer ({type(tokenizer).__name__}) puts its special tokens behind a "
            "text, as XLNet does; the tasks need an encoder whose sequences begin with one, as "
            "BERT's and RoBERTa's do"
        )


def around_text(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ids before and behind one text, int64; [CLS] and [SEP] for a tokenizer that adds nothing.

    Raises:
        DataError: it neither adds special tokens nor has [CLS] and [SEP].
    """
    probe = tokenizer("a", verbose=False)
    ids, parts = np.array(probe["input_ids"], dtype=np.int64), probe.sequence_ids(0)
    if not (parts and parts[0] is None and parts[-1] is None and 0 in parts):
        begin, separator = _plain_ids(tokenizer)
        return np.array([begin]), np.array([separator])
    return ids[: parts.index(0)], ids[len(parts) - parts[::-1].index(0) :]


def _plain_ids(tokenizer: Any) -> tuple[int, int]:
    begin, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
    if begin is None or separator is None:
        raise DataError(
            "the tokenizer has no tokens that begin a sequence and part two texts; give it "
            "cls_token and sep_token"
        )
    return begin, separator


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
    def of(cls, tokenizer: Any, as_bert: bool = False) -> PairLayout:
        """Read off a pair that the tokenizer joins; [CLS] first [SEP] second [SEP] for a
        tokenizer that adds nothing.

        Args:
            as_bert: texts that are joined as BERT's have the types 0 and 1, whatever the tokenizer
                says of types.

        Raises:
            DataError: it neither joins pairs nor has the tokens [CLS] and [SEP].
        """
        probe = tokenizer("a", "a", return_token_type_ids=True, verbose=False)
        ids, parts = np.array(probe["input_ids"], dtype=np.int64), probe.sequence_ids(0)
        kinds = np.array(probe["token_type_ids"], dtype=np.int64)
        typed = "token_type_ids" in tokenizer.model_input_names
        if not (parts and parts[0] is None and parts[-1] is None and 0 in parts and 1 in parts):
            begin, separator = _plain_ids(tokenizer)
            ids, parts = np.array([begin, 0, separator, 0, separator]), [None, 0, None, 1, None]
            kinds = _BERT_TYPES
        first, second = parts.index(0), parts.index(1)
        end, last = len(parts) - parts[::-1].index(0), len(parts) - parts[::-1].index(1)
        if as_bert and (first, second - end, len(parts) - last) == (1, 1, 1):
            typed, kinds = True, np.repeat([0, 1], [second, len(parts) - second])
        types = (kinds[:first], kinds[first], kinds[end:second], kinds[second], kinds[last:])
        return cls(ids[:first], ids[end:second], ids[last:], types if typed else None)

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
