"""Strict settings: frozen dataclasses with documented fields, built from text so that every fault
is found.

A settings class is a frozen dataclass whose fields are int, float, bool, str, Literal, a list of
str, Name or Literal, `| None` of those, or another settings class, and whose `validate()` raises
ConfigError with one line for every impossible value. Its docstring's `Args:` section is the help
text of the command line. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.names import GUESSES, renamed
from spanbert_ext.settings.values import convert, shown


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
