"""The `spanbert` command: `spanbert VERB [--config FILE.yaml] [--name value ...]`.

Settings are the fields of frozen dataclasses; help comes from their docstrings. Every unknown name
and wrong value of the command line and of the YAML file is reported at once, before torch is
imported. Nothing heavy is imported at the top: each verb loads what it needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import spanbert_ext
from spanbert_ext.errors import ConfigError, SpanBertError
from spanbert_ext.training import settings

_FLAGS = ("--help", "-h", "--debug", "--print_config")


@dataclass(frozen=True)
class Arguments:
    """A command line taken apart, nothing interpreted yet.

    Args:
        values: setting -> text, in the order given; None where the value is missing.
        files: YAML files named by --config.
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
                raise ConfigError("--config: a YAML file is required")
            files.append(value)
        else:
            values[name.replace("-", "_")] = value
    return Arguments(values, tuple(files), tuple(positionals))


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


def make_parser(
    verb: str, usage: str, description: str, cls: type, defaults: Any
) -> ArgumentParser:
    """A parser with one option for every setting of a dataclass."""
    parser = ArgumentParser(
        prog=f"spanbert {verb}", usage=usage, description=description, exit_on_error=False
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of these settings; options override it."
    )
    for option in settings.options(cls, defaults):
        parser.add_argument(
            f"--{option.name}", type=option.type, default=option.default, help=option.help
        )
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
        make_parser(verb.name, verb.usage, verb.description, cls, None).parse_args(["--help"])
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
    settings.build(
        cls, given, defaults
    )  # reports every fault; jsonargparse would stop at the first

    parser = make_parser(verb.name, verb.usage, verb.description, cls, defaults)
    options = [f"--config={path}" for path in arguments.files]
    options += [f"--{name}={value}" for name, value in arguments.values.items()]
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


def _pretrain_settings() -> type:
    from spanbert_ext.training.config import PretrainConfig

    return PretrainConfig


def _prepare_settings() -> type:
    from spanbert_ext.data.config import PrepareConfig

    return PrepareConfig


def _pretrain_defaults(given: dict[str, Any]) -> Any:
    from spanbert_ext.training.config import DEMONSTRATION

    return DEMONSTRATION if given.get("corpus") in (None, "null") else None


def run_pretrain(words: Sequence[str]) -> int:
    """`spanbert pretrain`: the demonstration without a corpus."""
    config = parse_settings(VERBS["pretrain"], words, _pretrain_defaults)
    _quiet_console()
    if config.corpus is None:
        from spanbert_ext.training.demo import run_demonstration

        run_demonstration(config)
        return 0
    from spanbert_ext.training.pretrain import pretrain

    result = pretrain(config)
    if result.was_finished:
        print(
            f"{result.run} is finished: {result.checkpoint} is its last checkpoint; nothing to do"
        )
        return 0
    print(f"finished: {result.checkpoint}")
    print(f"for plain transformers: spanbert export {result.run} OUTPUT_DIRECTORY")
    return 0


def run_prepare(words: Sequence[str]) -> int:
    """`spanbert prepare`."""
    config = parse_settings(VERBS["prepare"], words)
    _quiet_console(loads_models=False)
    from spanbert_ext.data import prepare
    from spanbert_ext.training.run_log import ByteProgress

    progress = ByteProgress()
    try:
        corpus = prepare(config, progress)
    finally:
        progress.close()
    print(f"{config.output}: {corpus.summary()}")
    print(f"next: spanbert pretrain --corpus {config.output} --output RUN_DIRECTORY")
    return 0


def run_export(words: Sequence[str]) -> int:
    """`spanbert export RUN_OR_CHECKPOINT OUTPUT`."""
    verb = VERBS["export"]
    if any(word in ("--help", "-h") for word in words):
        print(f"usage: {verb.usage}\n\n{verb.description}")
        return 0
    arguments = split_arguments(words)
    if len(arguments.positionals) != 2 or arguments.values or arguments.files:
        raise ConfigError(f"expected two directories and nothing else: {verb.usage}")
    source, target = map(Path, arguments.positionals)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty directory; choose another output")
    from spanbert_ext.training import checkpoint

    if source.is_dir() and not (source / "config.json").is_file():
        found = checkpoint.newest(source)
        if found is None:
            raise ConfigError(f"{source} holds no checkpoint (step-...) and no model (config.json)")
        source = found
    elif not source.is_dir():
        raise ConfigError(f"{source} is not a directory")
    _quiet_console()
    from spanbert_ext import conversion

    conversion.export_bert(source, target, tokenizer_dir=source)
    print(
        f"wrote {target}: AutoModelForMaskedLM.from_pretrained({str(target)!r}) loads it without "
        f"this package"
    )
    return 0


def _bench_settings() -> type:
    from spanbert_ext.bench import BenchConfig

    return BenchConfig


def run_bench(words: Sequence[str]) -> int:
    """`spanbert bench`."""
    config = parse_settings(VERBS["bench"], words)
    _quiet_console()
    from spanbert_ext import bench

    print(bench.report(bench.run(config, lambda line: print(line, file=sys.stderr, flush=True))))
    return 0


def run_doctor(words: Sequence[str]) -> int:
    """`spanbert doctor`."""
    verb = VERBS["doctor"]
    if any(word in ("--help", "-h") for word in words):
        print(f"usage: {verb.usage}\n\n{verb.description}")
        return 0
    if [word for word in words if word != "--debug"]:
        raise ConfigError(f"takes no arguments; got {' '.join(words)}")
    from spanbert_ext import doctor

    print(doctor.report())
    return 0


def _quiet_console(loads_models: bool = True) -> None:
    from spanbert_ext.training.run_log import plain_console

    plain_console()
    if loads_models:
        from transformers.utils import logging

        logging.disable_progress_bar()


@dataclass(frozen=True)
class Verb:
    """One word of the command."""

    name: str
    usage: str
    description: str
    run: Callable[[Sequence[str]], int]
    settings: Callable[[], type] | None = None
    positional: str | None = None


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "prepare",
            "spanbert prepare INPUT [INPUT ...] --output DIRECTORY [options]",
            "Turn text files into a corpus: token files, a tokenizer and a sidecar with counts and "
            "digests.",
            run_prepare,
            _prepare_settings,
            "inputs",
        ),
        Verb(
            "pretrain",
            "spanbert pretrain [--corpus DIRECTORY --output DIRECTORY] [options]",
            "Pre-train a SpanBERT, or continue a run. Without --corpus: a demonstration of a few "
            "minutes "
            "on text every Python carries, with its own small settings; options override them too.",
            run_pretrain,
            _pretrain_settings,
        ),
        Verb(
            "export",
            "spanbert export RUN_OR_CHECKPOINT OUTPUT",
            "Write a checkpoint (the newest of a run) as a plain BERT directory that transformers "
            "loads "
            "without this package.",
            run_export,
        ),
        Verb(
            "bench",
            "spanbert bench [options]",
            "Measure pre-training steps on made-up rows: rows/s, tokens/s, the share of each part, "
            "and which back end and attention ran.",
            run_bench,
            _bench_settings,
        ),
        Verb(
            "doctor",
            "spanbert doctor",
            "Say which parts are installed, which back end runs, and what each missing part costs.",
            run_doctor,
        ),
    )
}


def _overview() -> str:
    lines = [f"  {verb.name:10s}{verb.description}" for verb in VERBS.values()]
    return (
        "usage: spanbert VERB [options]\n\n"
        "SpanBERT: prepare text, pre-train, export. `spanbert pretrain` alone is a "
        "demonstration.\n\n"
        + "\n".join(lines)
        + "\n\n`spanbert VERB --help` lists the settings of a verb. "
        "--config FILE reads them from YAML; --debug shows tracebacks.\n"
        "Exit codes: 0 done, 2 settings, 65 data, 70 internal, 74 storage, 75 stopped and "
        "resumable, 76 numerics."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. `--help` and `--print_config` leave through
    SystemExit(0).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"spanbert_ext {spanbert_ext.__version__}")
        return 0
    try:
        if words[0] not in VERBS:
            message = settings.unknown_name(words[0], VERBS).replace("setting", "verb")
            raise ConfigError(f"{message} (verbs: {', '.join(VERBS)})")
        return VERBS[words[0]].run(words[1:])
    except SpanBertError as error:
        if "--debug" in words:
            raise
        print(f"spanbert: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("spanbert: interrupted", file=sys.stderr)
        return 130
