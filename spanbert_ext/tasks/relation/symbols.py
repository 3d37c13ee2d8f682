"""Symbols for the places and types of entities, each a token of the vocabulary.

The map from symbols to tokens depends on the set of types alone, not on the order of records or
files, and is stored with the model: an encoder that learned `[unused7]` as OBJ=CITY must never
read it as something else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken

from spanbert_ext.errors import DataError

logger = logging.getLogger("spanbert_ext")

ROLES = ("SUBJ", "OBJ")
_UNUSED = re.compile(r"\[unused(\d+)\]")
_OTHER_TYPE = "?"


def opening(role: str) -> str:
    """The symbol in front of an entity."""
    return f"{role}-START"


def closing(role: str) -> str:
    """The symbol behind an entity."""
    return f"{role}-END"


def of_type(role: str, type: str) -> str:
    """The symbol of an entity's type."""
    return f"{role}={type}"


def of_other_type(role: str) -> str:
    """The symbol of all types that training has not seen."""
    return of_type(role, _OTHER_TYPE)


def choose(
    tokenizer: Any, subject_types: Iterable[str], object_types: Iterable[str]
) -> dict[str, str]:
    """A token for every symbol; the tokenizer grows where its vocabulary has no room for them.

    Taken are `[unusedN]` in order of N, then new tokens. The symbols come in a fixed order:
    markers, unseen types, subject types and object types by name.

    Returns:
        Symbol -> token, in that order.
    """
    wanted = [name(role) for role in ROLES for name in (opening, closing)]
    wanted += [of_other_type(role) for role in ROLES]
    for role, types in zip(ROLES, (subject_types, object_types), strict=True):
        wanted += [of_type(role, type) for type in sorted(set(types))]
    wanted = list(dict.fromkeys(wanted))
    vocabulary, taken = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    numbers = [match for match in map(_UNUSED.fullmatch, vocabulary) if match]
    free = [m[0] for m in sorted(numbers, key=lambda m: int(m[1])) if m[0] not in taken]
    chosen = dict(zip(wanted, free, strict=False))
    new = {symbol: f"[{symbol}]" for symbol in wanted[len(free) :]}
    if new:
        logger.info("%d symbols have no [unusedN] token; the vocabulary grows by them", len(new))
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new.values()])
    return chosen | new


def ids_of(symbols: dict[str, str], tokenizer: Any) -> dict[str, int]:
    """The id of every symbol.

    Raises:
        DataError: the tokenizer lacks one, so it is not the model's.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in symbols.values() if token not in vocabulary]
    if missing:
        raise DataError(
            f"the tokenizer has no token {missing[0]} ({len(missing)} are missing), which marks "
            "entities for this model; load the tokenizer that was saved with it"
        )
    return {symbol: vocabulary[token] for symbol, token in symbols.items()}


def known_types(symbols: dict[str, str], role: str) -> list[str]:
    """Types of the role that training has seen, by name."""
    prefix, other = of_type(role, ""), of_other_type(role)
    return [s.removeprefix(prefix) for s in symbols if s.startswith(prefix) and s != other]
