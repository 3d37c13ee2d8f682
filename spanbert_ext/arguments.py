"""From the words of a command line and YAML files to a settings dataclass.

Nothing is interpreted before every fault is known: all unknown names and wrong values of both
sources are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from spanbert_ext.errors import ConfigError
from spanbert_ext.training import settings

# The paper's models: settings that `--config` takes by name.
NAMED_CONFIGS = Path(__file__).parent / "configs"
_FLAGS = ("--help", "-h", "--debug", "--print_config")


@dataclass(frozen=True)
class Verb:
    """One word of the command.

    Args:
        settings: the class of its settings; None for a verb that takes them apart itself.
        positional: the setting that bare words belong to.
        other_case: when other defaults hold than the class's own, for the help.
    """

    name: str
    usage: str
    description: str
    run: Callable[[Sequence[str]], int]
    settings: Callable[[], type] | None = None
    positional: str | None = None
    other_case: str = ""


@dataclass(frozen=True)
class Arguments:
    """A command line taken apart, nothing interpreted yet.

    Args:
        values: setting -> text, in the order given; None where the value is missing.
        files: YAML files of --config.
        positionals: words that belong to no option.
    """

    values: dict[str, str | None]
    files: tuple[str, ...]
    positionals: tuple[str, ...]


def split_arguments(words: Sequence[str]) -> Arguments:
    """Take a command line apart: every option but the flags has exactly one value.

    Raises:
        ConfigError: an option with one dash, or no file behind --config.
    """
    values: dict[str, str | None] = {}
    files, positionals = [], []
    rest = iter(words)
    for word in rest:
        if word in _FLAGS or word.startswith("--print_config="):
            continue
        if word.startswith("-") and not word.startswith("--"):
            raise ConfigError(f"{word}: no such option; settings are `--name value`")
        if not word.startswith("--"):
            positionals.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = next(rest, None)
        if name == "config":
            if value is None:
                raise ConfigError("--config: a YAML file or a name is required")
            files.append(config_file(value))
        else:
            values[name.replace("-", "_")] = value
    return Arguments(values, tuple(files), tuple(positionals))


def config_names() -> list[str]:
    """Names that `--config` takes in place of a file."""
    return sorted(path.stem for path in NAMED_CONFIGS.glob("*.yaml"))


def config_file(value: str) -> str:
    """The YAML file that `--config` means: a path, or a bare name of `config_names`.

    Raises:
        ConfigError: a bare name that is neither.
    """
    if Path(value).suffix or Path(value).name != value or Path(value).is_file():
        return value
    if value not in config_names():
        raise ConfigError(
            f"--config {value}: there is no such file, and no settings of this name (names: "
            f"{', '.join(config_names())})"
        )
    return str(NAMED_CONFIGS / f"{value}.yaml")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file as dotted names.

    Raises:
        ConfigError: it cannot be read, is not YAML or not a mapping.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not a YAML file: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"--config {path}: expected names and values, got {type(loaded).__name__}"
        )
    return settings.flatten(loaded)


def make_parser(verb: Verb, defaults: Any, other_defaults: Any = None) -> ArgumentParser:
    """A parser with one option for every setting of a verb.

    Args:
        defaults: an instance whose values are the defaults, None for the class's own.
        other_defaults: what holds where nothing is given, named in the help where it differs.
    """
    cls = verb.settings()
    parser = ArgumentParser(
        prog=f"spanbert {verb.name}",
        usage=verb.usage,
        description=verb.description,
        exit_on_error=False,
    )
    others = settings.options(cls, other_defaults) if other_defaults is not None else []
    other_values = {option.name: option.default for option in others}
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of these settings; options override it. Pre-training also takes the name "
        f"of one of the paper's models: {', '.join(config_names())}.",
    )
    for option in settings.options(cls, defaults):
        text = option.help
        other = other_values.get(option.name, option.default)
        if other != option.default:
            text += f" [{verb.other_case}: {other}]"
        parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=text)
    return parser


def parse_settings(
    verb: Verb, words: Sequence[str], defaults_for: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The settings dataclass of a verb, from the command line and YAML.

    Args:
        defaults_for: given the settings named so far, an instance whose values are the defaults, or
            None.

    Raises:
        ConfigError: lists every fault.
    """
    cls = verb.settings()
    if any(word in ("--help", "-h") for word in words):
        other = defaults_for({}) if defaults_for else None
        make_parser(verb, None, other).parse_args(["--help"])
    arguments = split_arguments(words)
    _check_values(arguments, {option.name: option for option in settings.options(cls, None)})
    given: dict[str, Any] = {}
    for path in arguments.files:
        given |= read_yaml(path)
    given |= arguments.values
    if arguments.positionals:
        if verb.positional is None:
            raise ConfigError(
                f"unexpected argument {arguments.positionals[0]!r}; settings are `--name value`"
            )
        given[verb.positional] = list(arguments.positionals)
    defaults = defaults_for(given) if defaults_for else None
    # Reports every fault; jsonargparse would stop at the first.
    built = settings.as_flat_dict(settings.build(cls, given, defaults))
    parser = make_parser(verb, defaults)
    options = [f"--config={path}" for path in arguments.files]
    options += [
        f"--{name}={json.dumps(built[name]) if isinstance(built[name], list) else value}"
        for name, value in arguments.values.items()
    ]
    if arguments.positionals:
        options.append(f"--{verb.positional}={json.dumps(arguments.positionals)}")
    options += [word for word in words if word.startswith("--print_config")]
    parsed = parser.parse_args(options).as_dict()
    own = {k: v for k, v in settings.flatten(parsed).items() if k != "config"}
    return settings.build(cls, own, defaults)


def _check_values(arguments: Arguments, known: dict[str, Any]) -> None:
    for name, value in arguments.values.items():
        if value is None and name not in known:
            raise ConfigError(settings.unknown_name(name, known))
        if value is None:
            raise ConfigError(f"--{name}: a value is required ({known[name].help})")
