"""The help of a verb: its settings by groups, with their types in words and their defaults."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Any, Literal, get_args, get_origin

from spanbert_ext.cli.arguments import Verb
from spanbert_ext.settings import build
from spanbert_ext.settings.build import Option
from spanbert_ext.settings.files import config_names
from spanbert_ext.settings.values import optional

_WORDS = {int: "whole number", float: "number", str: "text"}


def help_text(verb: Verb, other_defaults: Any = None) -> str:
    """What `spanbert VERB --help` prints.

    Args:
        other_defaults: an instance with what holds in `verb.other_case`, named where it differs.
    """
    cls = verb.settings()
    parser = argparse.ArgumentParser(
        prog=f"spanbert {verb.name}",
        usage=verb.usage,
        description=_description(verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    others = build.options(cls, other_defaults) if other_defaults is not None else []
    other_values = {option.name: option.default for option in others}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in build.options(cls):
        name = option.name.rpartition(".")[0]
        if name not in groups:
            groups[name] = _group(parser, cls, name)
        other = ""
        if other_values.get(option.name, option.default) != option.default:
            other = f" [{verb.other_case}: {_text(other_values[option.name])}]"
        text = f"{option.help}{other} ({_type_and_default(option)})".replace("%", "%%")
        groups[name].add_argument(f"--{option.name}", metavar=_metavar(option), help=text)
    general = parser.add_argument_group("general")
    general.add_argument("--help", "-h", action="store_true", help="Show this text.")
    config = "YAML file of these settings; options override it."
    if verb.name == "pretrain":
        config += f" Or the name of one of the paper's models: {', '.join(config_names())}."
    general.add_argument("--config", metavar="FILE", help=config)
    general.add_argument(
        "--print_config", action="store_true", help="Print all settings as YAML, and do nothing."
    )
    general.add_argument("--debug", action="store_true", help="Show tracebacks.")
    return parser.format_help().rstrip()


def _description(verb: Verb) -> str:
    width = min(100, shutil.get_terminal_size().columns) - 2
    text = textwrap.fill(verb.description, width)
    if verb.notes:
        text += f"\n\n{verb.notes}"
    if verb.examples:
        text += "\n\nexamples:\n" + "\n".join(f"  {line}" for line in verb.examples)
    return text


def _group(parser: argparse.ArgumentParser, cls: type, name: str) -> argparse._ArgumentGroup:
    if not name:
        return parser.add_argument_group("settings")
    about = (build.field_types(cls)[name].__doc__ or "").strip().split("\n\n")[0]
    return parser.add_argument_group(name, " ".join(about.split()))


def _metavar(option: Option) -> str:
    kind, _ = optional(option.type)
    last = option.name.rpartition(".")[2].upper()
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return f"{last} ..."
    return "[true|false]" if kind is bool else last


def _type_and_default(option: Option) -> str:
    kind, may_be_none = optional(option.type)
    words = [_WORDS[kind]] if kind in _WORDS else []  # the others show what they take
    if get_origin(kind) in (list, tuple):
        inner = get_args(kind)[0]
        of = f" of {', '.join(get_args(inner))}" if get_origin(inner) is Literal else ""
        words = [f"one or several{of}"]
    if option.default in (None, ""):
        return "; ".join([*words, "no default" if may_be_none else "required"])
    return "; ".join([*words, f"default: {_text(option.default)}"])


def _text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return "null" if value is None else str(value)
