"""YAML files of settings: which file `--config` means, and what stands in it.

Values stay the text that was written; `settings.convert` alone decides what it means, so that a
file and a command line read the same word alike: 1e3 is a number, and no is a text where one is
wanted. Torch-free.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from spanbert_ext.errors import ConfigError

# The paper's models: settings that `--config` takes by name.
NAMED_CONFIGS = Path(__file__).parents[1] / "configs"


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


def read_yaml(path: str, groups: Collection[str] = ()) -> dict[str, Any]:
    """A YAML file as dotted names with the text of their values; None for null.

    Args:
        path: of the file, in UTF-8.
        groups: first parts of dotted names, whose mappings are taken apart.

    Raises:
        ConfigError: it cannot be read, is not YAML or not a mapping, or names a setting twice.
    """
    try:
        loaded = _TextLoader(Path(path).read_text("utf-8-sig")).get_single_data()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config {path}: not in UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not a YAML file: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"--config {path}: not settings: brackets inside brackets") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        kind = "a list" if isinstance(loaded, list) else "one value"
        raise ConfigError(f"--config {path}: expected `name: value` lines, got {kind}")
    flat: dict[str, Any] = {}
    for key, value in loaded.items():
        inside = value if isinstance(value, dict) and key in groups else None
        named = {key: value} if inside is None else {f"{key}.{k}": v for k, v in inside.items()}
        twice = named.keys() & flat.keys()
        if twice:
            raise ConfigError(f"--config {path}: {min(twice)} is set twice")
        flat |= named
    return flat


class _TextLoader(yaml.SafeLoader):
    """Scalars stay text, but for null; a key stands in a mapping once."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        """As the base class, for keys that differ."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is set twice", key.start_mark
                )
            seen.add(name)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


def _reason(error: yaml.YAMLError) -> str:
    """What the parser says, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (character {error.position})"
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "'\\t'" in text:
        text = "a tab; lines are indented with spaces"
    return text + where
