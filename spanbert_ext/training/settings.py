"""Strict settings: frozen dataclasses with documented fields, built from text so that every fault
is found.

A settings class is a frozen dataclass whose fields are int, float, bool, str, `| None` of those,
Literal, list of them, or another settings class, and whose `validate()` raises ConfigError with one
line for every impossible value. Its docstring's `Args:` section is the help text of the command
line. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from spanbert_ext.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: dotted name, annotated type, default value and help text."""

    name: str
    type: Any
    default: Any
    help: str


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
            found.append(Option(prefix + field.name, kind, value, helps.get(field.name, "")))
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
    known = {option.name: option for option in options(cls, defaults)}
    faults: list[str] = []
    good: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in known:
            faults.append(unknown_name(name, known))
            continue
        try:
            good[name] = convert(value, known[name].type)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    missing = _required(cls) - good.keys() if defaults is None else set()
    faults += [f"{name}: a value is required" for name in sorted(missing)]
    if not missing:
        settings = _construct(cls, good, defaults)
        faults += _impossible(settings)
    if faults:
        raise ConfigError("; ".join(faults) if len(faults) == 1 else _listed(faults))
    return settings


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
            values[field.name] = _construct(kind, inner, default)
        else:
            values[field.name] = flat.get(field.name, default)
    return cls(**values)


def unknown_name(name: str, known: Mapping[str, Any]) -> str:
    """Message for a name that does not exist, with the nearest one that does.

    A bare name is also compared with the last part of dotted ones, since forgetting the group is
    common.
    """
    group, _, last = name.rpartition(".")
    same_last = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    by_last = {candidate.rpartition(".")[2]: candidate for candidate in known}
    near = same_last or difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    near = near or [
        by_last[m] for m in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
    ]
    return f"{name}: no such setting" + (f", did you mean {near[0]}?" if near else "")


def convert(value: Any, kind: Any) -> Any:
    """A value from YAML or a command line as an annotated type.

    Raises:
        ValueError: says what was expected and what came.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if (value is None or value == "null") and type(None) in get_args(kind):
            return None
        inner = [part for part in get_args(kind) if part is not type(None)]
        return convert(value, inner[0])
    if origin is Literal:
        if isinstance(value, bool) and "on" in get_args(kind):
            value = "on" if value else "off"  # what YAML makes of a bare on or off
        if value not in get_args(kind):
            raise ValueError(f"must be one of {', '.join(map(str, get_args(kind)))}; got {value!r}")
        return value
    if origin in (tuple, list):
        inner = get_args(kind)[0]
        if isinstance(value, str) and get_origin(inner) is Literal:
            value = [part.strip() for part in value.strip("[]").split(",") if part.strip()]
        items = value if isinstance(value, (list, tuple)) else [value]
        return origin(convert(item, inner) for item in items)
    if kind is bool:
        return _convert_bool(value)
    if kind in (int, float):
        return _convert_number(value, kind)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"must be text; got {value!r}")


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError(f"must be true or false; got {value!r}")


def _convert_number(value: Any, kind: type) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be {wanted}; got {value!r}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"must be {wanted}; got {value!r}") from None
    if kind is float:
        return number
    if not number.is_integer():
        raise ValueError(f"must be {wanted}; got {value!r}")
    return int(value) if isinstance(value, int) else int(number)
