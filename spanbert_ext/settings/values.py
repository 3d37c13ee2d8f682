"""From what is written to a value: the one place that decides what a word of a command line, of a
YAML file or a value of Python means as a setting. Torch-free.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
import types
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NewType, Union, get_args, get_origin

import yaml

# A text that is no path and holds no comma: a list of them may be written a,b.
Name = NewType("Name", str)
_MOST_DIGITS = 19  # of whole numbers: those of 64 bits


def optional(kind: Any) -> tuple[Any, bool]:
    """An annotation without its `| None`, and whether it had one."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    inner = [part for part in get_args(kind) if part is not type(None)]
    return inner[0], len(inner) < len(get_args(kind))


def convert(value: Any, kind: Any) -> Any:
    """A value from YAML, a command line or Python as an annotated type.

    Raises:
        ValueError: says what was expected and what came.
    """
    kind, may_be_none = optional(kind)
    if may_be_none and (value is None or str(value).strip().lower() in ("null", "none")):
        return None
    origin = get_origin(kind)
    if origin is Literal:
        return _convert_choice(value, get_args(kind))
    if origin in (tuple, list):
        inner = get_args(kind)[0]
        if isinstance(value, str):
            value = split_list(value, kind)
        items = value if isinstance(value, (list, tuple)) else [value]
        return origin(_convert_text(item, inner) for item in items)
    if kind is bool:
        return _convert_bool(value)
    if kind in (int, float):
        return _convert_number(value, kind)
    text = _convert_text(value, kind)
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def split_list(word: str, kind: Any) -> list[Any]:
    """The items of a list that is written in one word: [a, b], where an item in quotes may hold a
    comma, and a,b where the items are choices or names. Any other word is one item, so that a path
    may hold commas, and `./[a]` brackets.

    Raises:
        ValueError: brackets that hold no list.
    """
    if word.startswith("[") and word.endswith("]"):
        loader = yaml.BaseLoader(word)  # items stay text
        try:
            return list(loader.get_single_data())
        except yaml.YAMLError as error:
            raise ValueError(
                f"must be a list, [a, b]; got {shown(word)}. A file of this name is ./{word}"
            ) from error
    if get_args(kind)[0] is str:
        return [word]
    return [part.strip() for part in word.split(",") if part.strip()]


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    if value is None:
        return "null"
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 120, 120, 60


def _convert_text(value: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return _convert_choice(value, get_args(kind))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be text; got {shown(value)}")
    if "\0" in str(value):  # which no path can hold
        raise ValueError(f"must not hold a null character; got {shown(value)}")
    return str(value)


def _convert_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    found = value.strip() if isinstance(value, str) else value
    if "on" in choices and found not in choices:
        with contextlib.suppress(ValueError):  # as YAML has it, a bare on is a boolean
            found = "on" if _convert_bool(found) else "off"
    if found not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}; got {shown(value)}")
    return found


def _convert_bool(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (True, "true", "yes", "on", "1"):
        return True
    if word in (False, "false", "no", "off", "0"):
        return False
    raise ValueError(f"must be true or false; got {shown(value)}")


def _convert_number(value: Any, kind: type) -> int | float:
    """Exact: a whole number keeps all its digits, whether it is written 1000, 1_000 or 1e3."""
    wanted = "a whole number" if kind is int else "a number"
    fault = ValueError(f"must be {wanted}; got {shown(value)}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise fault
    try:
        rounded, number = float(value), Decimal(value)
    except (ValueError, OverflowError, InvalidOperation):
        raise fault from None
    if not math.isfinite(rounded):
        raise fault
    if kind is float:
        return rounded
    if number.adjusted() >= _MOST_DIGITS or number != number.to_integral_value():
        raise fault
    return int(number)
