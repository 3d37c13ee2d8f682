"""Strict settings: frozen dataclasses with documented fields, built from text so that every fault
is found.

A settings class is a frozen dataclass whose fields are int, float, bool, str, Literal, a list of
str, Name or Literal, `| None` of those, or another settings class, and whose `validate()` raises
ConfigError with one line for every impossible value. Its docstring's `Args:` section is the help
text of the command line. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import reprlib
import types
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import yaml

from spanbert_ext.errors import ConfigError
from spanbert_ext.training.setting_names import GUESSES, renamed

# A text that is no path and holds no comma: a list of them may be written a,b.
Name = NewType("Name", str)
_MOST_DIGITS = 19  # of whole numbers: those of 64 bits


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting.

    Args:
        name: with dots.
        type: as annotated.
        default: value where none is given.
        help: what it does.
        before: value that does what versions did that lacked the setting.
    """

    name: str
    type: Any
    default: Any
    help: str
    before: Any


def added(default: Any, before: Any) -> Any:
    """A field that came in a later version and whose default is not what was done before.

    Args:
        default: value where none is given.
        before: value that does what versions without the setting did; stored runs, models and
            corpora that lack it have this value.
    """
    return dataclasses.field(default=default, metadata={"before": before})


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved annotation of every field of a settings class."""
    return get_type_hints(cls)


def field_help(cls: type) -> dict[str, str]:
    """Field name -> text of its entry in the `Args:` section of the class's docstring, or of that
    of a class it extends."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= _help_of(base)
    return texts


def _help_of(cls: type) -> dict[str, str]:
    texts: dict[str, str] = {}
    current = None
    section = (cls.__dict__.get("__doc__") or "").partition("Args:")[2]
    for line in section.splitlines():
        names = re.match(r" {4,8}(\w+(?:, \w+)*): +(.*)", line)
        if names and not line.startswith(" " * 9):
            current = names[1].split(", ")
            texts.update(dict.fromkeys(current, names[2].strip()))
        elif current and line.strip():
            texts.update({name: f"{texts[name]} {line.strip()}" for name in current})
        elif current:
            current = None
    return texts


def options(cls: type, defaults: Any = None, prefix: str = "") -> list[Option]:
    """Every leaf setting of a class, nested ones with dotted names; defaults taken from an instance
    if given.
    """
    found: list[Option] = []
    helps = field_help(cls)
    for field in dataclasses.fields(cls):
        kind = field_types(cls)[field.name]
        value = getattr(defaults, field.name) if defaults is not None else _default(field)
        if dataclasses.is_dataclass(kind):
            found += options(kind, value, f"{prefix}{field.name}.")
        else:
            before = field.metadata.get("before", value)
            text = helps.get(field.name, "")
            found.append(Option(prefix + field.name, kind, value, text, before))
    return found


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one mapping with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return nested


def as_flat_dict(settings: Any) -> dict[str, Any]:
    """Dotted name -> value of every leaf setting of an instance; tuples become lists, as YAML has
    them.
    """
    flat = flatten(dataclasses.asdict(settings))
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()
    }


def build(cls: type, flat: Mapping[str, Any], defaults: Any = None) -> Any:
    """An instance of a settings class from dotted names; `defaults` (an instance) fills what is not
    named.

    Raises:
        ConfigError: lists every unknown name, wrong type and impossible value at once.
    """
    return assemble(cls, *converted(cls, flat), defaults)


def converted(cls: type, flat: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(name -> value of its setting's type, one line for every name or value that cannot be used)

    Names that a setting had before are replaced by its present one.
    """
    known = {option.name: option for option in options(cls)}
    groups = {name.rpartition(".")[0] for name in known} - {""}
    good: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in renamed(flat, known).items():
        if name in groups:
            if value is not None and value != {}:
                faults.append(f"{name}: {_group_text(name, known)} Got {shown(value)}")
        elif name not in known:
            faults.append(unknown_name(name, known, groups))
        else:
            try:
                good[name] = convert(value, known[name].type)
            except ValueError as error:
                faults.append(f"{name}: {error}")
    return good, faults


def assemble(cls: type, good: Mapping[str, Any], faults: list[str], defaults: Any = None) -> Any:
    """An instance of a settings class from what `converted` gave.

    Args:
        faults: found so far; those of the values are added.
        defaults: an instance that fills what is not named; None takes the class's own defaults.

    Raises:
        ConfigError: lists every fault.
    """
    faults = list(faults)
    missing = _required(cls) - good.keys() if defaults is None else set()
    told = {fault.partition(":")[0].removeprefix("--") for fault in faults}
    faults += [f"{name}: a value is required" for name in sorted(missing - told)]
    if not missing:
        settings = _construct(cls, good, defaults)
        faults += _impossible(settings)
    if faults:
        raise ConfigError("; ".join(faults) if len(faults) == 1 else _listed(faults))
    return settings


def _group_text(group: str, known: Mapping[str, Any]) -> str:
    meant = [f"{guess} or " for guess in GUESSES.get(group, ()) if guess in known]
    inside = [name for name in known if name.startswith(f"{group}.")]
    return f"is a group of settings, did you mean {''.join(meant)}{inside[0]}?"


def _impossible(settings: Any) -> list[str]:
    try:
        settings.validate()
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _listed(faults: list[str]) -> str:
    return f"{len(faults)} settings cannot be used:\n" + "\n".join(
        f"  - {fault}" for fault in faults
    )


def _required(cls: type) -> set[str]:
    missing = dataclasses.MISSING
    return {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is missing and f.default_factory is missing
    }


def _construct(cls: type, flat: Mapping[str, Any], defaults: Any) -> Any:
    values = {}
    for field in dataclasses.fields(cls):
        kind = field_types(cls)[field.name]
        default = getattr(defaults, field.name) if defaults is not None else _default(field)
        if dataclasses.is_dataclass(kind):
            head = f"{field.name}."
            inner = {k.removeprefix(head): v for k, v in flat.items() if k.startswith(head)}
            # Where nothing is named, the default itself: what it is can tell that nobody asked.
            own = default if not inner and default is not None else None
            values[field.name] = _construct(kind, inner, default) if own is None else own
        else:
            values[field.name] = flat.get(field.name, default)
    return cls(**values)


def unknown_name(name: str, known: Mapping[str, Any], groups: Iterable[str] = ()) -> str:
    """Message for a name that does not exist, with the one that was probably meant.

    A bare name is also compared with the last part of dotted ones, since forgetting the group is
    common, and with the names that other trainers use.
    """
    last = name.rpartition(".")[2]
    same_last = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    near = same_last or [guess for guess in GUESSES.get(last, ()) if guess in known]
    near = near or difflib.get_close_matches(name, [*known, *groups], n=1, cutoff=0.6)
    if not near:
        by_last = {candidate.rpartition(".")[2]: candidate for candidate in known}
        near = [by_last[m] for m in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)]
    return f"{name}: no such setting" + (f", did you mean {near[0]}?" if near else "")


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
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"must be text; got {shown(value)}")


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
