"""From the words of a command line and YAML files to a settings dataclass.

Nothing is interpreted before every fault is known: all unknown names and wrong values of both
sources are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_origin

import yaml

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings import build
from spanbert_ext.settings.build import Option
from spanbert_ext.settings.files import config_file, read_yaml
from spanbert_ext.settings.names import GUESSES
from spanbert_ext.settings.values import optional, split_list

_HELP = ("--help", "-h")
_FLAGS = (*_HELP, "--debug", "--print_config")
_BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass(frozen=True)
class Verb:
    """One word of the command.

    Args:
        settings: the class of its settings; None for a verb that takes them apart itself.
        positional: the setting that bare words belong to.
        other_case: when other defaults hold than the class's own, for the help.
        examples: commands, for the help.
        notes: lines that stand in the help as they are.
        interrupted: what Ctrl-C leaves.
    """

    name: str
    usage: str
    description: str
    run: Callable[[Sequence[str]], int]
    settings: Callable[[], type] | None = None
    positional: str | None = None
    other_case: str = ""
    examples: tuple[str, ...] = ()
    notes: str = ""
    interrupted: str = "nothing was kept"


@dataclass
class Arguments:
    """A command line taken apart.

    Args:
        values: setting -> its text, the items of a list, or True where a boolean stands alone.
        files: YAML files of --config.
        positionals: words that belong to no option.
        faults: one line for every word that cannot be used.
    """

    values: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    positionals: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether --help stands among the options."""
    return any(word in _HELP for word in _before_separator(words))


def _before_separator(words: Sequence[str]) -> Sequence[str]:
    return words[: list(words).index("--")] if "--" in words else words


def split_arguments(
    words: Sequence[str], known: Mapping[str, Option], positional: str | None = None
) -> Arguments:
    """Take a command line apart.

    An option has one value, as `--name value` or `--name=value`; given twice, the last one counts.
    A boolean may stand alone, which means true. A list takes all words up to the next option, and
    may be given several times; where the verb takes bare words it has one word, so that it leaves
    them alone. Behind `--` there are bare words only.

    Args:
        known: the settings by name.
        positional: the setting that bare words belong to, if any.

    Raises:
        ConfigError: no file behind --config.
    """
    found = Arguments()
    options = list(_before_separator(words))
    found.positionals += words[len(options) + 1 :]
    place = 0

    def take(several: bool = False) -> list[str]:
        nonlocal place
        taken = []
        while place < len(options) and not options[place].startswith("--"):
            if taken and (not several or _is_short(options[place])):
                break
            taken.append(options[place])
            place += 1
        return taken

    bare: list[str] = []
    while place < len(options):
        word = options[place]
        place += 1
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if word in _FLAGS:
            continue
        if _is_short(word):
            take()
            found.faults.append(_unknown_short(name, known))
        elif not word.startswith("--"):
            bare.append(word)
        elif name == "config":
            files = [value] if equals else take()
            if not files or not files[0]:
                raise ConfigError("--config: a YAML file or a name is required")
            found.files.append(config_file(files[0]))
        elif name == "print_config":
            found.faults.append("--print_config: takes no value")
        elif name not in known:
            found.values[name] = value if equals else "".join(take())
        elif known[name].type is bool and not equals:
            follows = options[place] if place < len(options) else "--"
            alone = follows.startswith("--") or (positional and follows.lower() not in _BOOLEANS)
            found.values[name] = True if alone else take()[0]
        else:
            several = positional in (None, name)
            given = [value] if equals else take(several and _is_list(known[name]))
            if given:
                _add(found, known[name], given)
            else:
                found.faults.append(f"--{name}: a value is required ({known[name].help})")
    found.positionals[:0] = bare
    return found


def _is_short(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not word[1].isdecimal() and word[1] not in "-."


def _is_list(option: Option) -> bool:
    return get_origin(optional(option.type)[0]) in (list, tuple)


def _add(found: Arguments, option: Option, words: list[str]) -> None:
    """The value of an option; items of a list that is there already go before the new ones."""
    name = option.name
    if not _is_list(option):
        found.values[name] = words[0]
        return
    if name not in found.values and len(words) == 1:
        found.values[name] = words[0]  # which may be null
        return
    kind = optional(option.type)[0]
    before = found.values.get(name, [])
    given = [before] if isinstance(before, str) else []
    try:
        items = [item for word in (*given, *words) for item in split_list(word, kind)]
    except ValueError as error:
        found.faults.append(f"{name}: {error}")
        return
    found.values[name] = items if isinstance(before, str) else before + items


def _unknown_short(name: str, known: Mapping[str, Option]) -> str:
    meant = [guess for guess in GUESSES.get(name, ()) if guess in known or guess == "config"]
    remedy = f", did you mean --{meant[0]}?" if meant else "; settings are `--name value`"
    return f"-{name}: no such option{remedy}"


DefaultsFor = Callable[[dict[str, Any]], Any]


def parse_settings(
    verb: Verb, words: Sequence[str], defaults_for: DefaultsFor | None = None
) -> Any:
    """The settings dataclass of a verb, from the command line and YAML.

    Args:
        defaults_for: given the values that are named, an instance whose values are the defaults, or
            None.

    Raises:
        ConfigError: lists every fault.
    """
    return parse_named(verb, words, defaults_for)[0]


def parse_named(
    verb: Verb, words: Sequence[str], defaults_for: DefaultsFor | None = None
) -> tuple[Any, frozenset[str]]:
    """(what `parse_settings` gives, names of the settings that are not defaults)"""
    cls = verb.settings()
    if asks_for_help(words):
        from spanbert_ext.cli.verb_help import help_text

        print(help_text(verb, defaults_for({}) if defaults_for else None))
        raise SystemExit(0)
    known = {option.name: option for option in build.options(cls)}
    groups = {name.rpartition(".")[0] for name in known}
    arguments = split_arguments(words, known, verb.positional)
    given: dict[str, Any] = {}
    for path in arguments.files:
        given |= build.renamed(read_yaml(path, groups), known)
    given |= build.renamed(arguments.values, known)
    faults = list(arguments.faults)
    if arguments.positionals and verb.positional is None:
        faults.append(
            f"unexpected argument {arguments.positionals[0]!r}; settings are `--name value`"
        )
    elif arguments.positionals:
        given[verb.positional] = arguments.positionals
    good, wrong = build.converted(cls, given)
    defaults = defaults_for(good) if defaults_for else None
    config = build.assemble(cls, good, faults + wrong, defaults)
    if "--print_config" in _before_separator(words):
        flat = build.as_flat_dict(config)
        print(yaml.safe_dump(build.nest(flat), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return config, frozenset(good)
