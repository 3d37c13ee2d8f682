"""The `spanbert` command: `spanbert VERB [--config FILE.yaml] [--name value ...]`.

Settings are the fields of frozen dataclasses; help comes from their docstrings. Every unknown name
and wrong value of the command line and of the YAML file is reported at once, before torch is
imported. Nothing heavy is imported at the top: each verb loads what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spanbert_ext
from spanbert_ext.cli.arguments import (
    Verb,
    asks_for_help,
    parse_named,
    parse_settings,
    split_arguments,
)
from spanbert_ext.cli.console import patient_output, plain_console
from spanbert_ext.cli.task_verbs import EVALUATE, FINETUNE, PREDICT
from spanbert_ext.errors import ConfigError, Preempted, ReportedElsewhere, SpanBertError
from spanbert_ext.settings import build


def _pretrain_settings() -> type:
    from spanbert_ext.training.config import PretrainConfig

    return PretrainConfig


def _prepare_settings() -> type:
    from spanbert_ext.data.config import PrepareConfig

    return PrepareConfig


def _pretrain_defaults(given: dict[str, Any]) -> Any:
    from spanbert_ext.training.pretrain_defaults import pretrain_defaults

    return pretrain_defaults(given)


def run_pretrain(words: Sequence[str]) -> int:
    """`spanbert pretrain`: the demonstration without a corpus."""
    config, named = parse_named(VERBS["pretrain"], words, _pretrain_defaults)
    _quiet_console()
    from spanbert_ext.training.pretrain import pretrain
    from spanbert_ext.training.pretrain_defaults import lowered_rows, tell_of_warmup

    if "optimizer.warmup_steps" not in named:
        tell_of_warmup(config)
    if config.corpus is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("corpus: the demonstration starts processes itself, with --nproc N")
        from spanbert_ext.cli.demo import run_demonstration

        run_demonstration(config)
        return 0
    result = pretrain(config if "batch.rows" in named else lowered_rows(config))
    if result.was_finished:
        print(
            f"{result.run} is finished: {result.checkpoint} is its last checkpoint; nothing to do"
        )
        return 0
    if config.nproc > 1 or os.environ.get("RANK", "0") != "0":
        return 0  # rank 0 has said it
    print(f"finished: {result.checkpoint}")
    print(f"for plain transformers: spanbert export {result.run} OUTPUT_DIRECTORY")
    return 0


def run_prepare(words: Sequence[str]) -> int:
    """`spanbert prepare`."""
    config = parse_settings(VERBS["prepare"], words)
    _quiet_console(loads_models=False)
    from spanbert_ext.data import prepare
    from spanbert_ext.training.progress import Progress

    with Progress() as progress:
        corpus = prepare(config, progress)
    print(f"{config.output}: {corpus.summary()}")
    if config.verify:
        print("every file has the digest that was written")
    print(f"next: spanbert pretrain --corpus {config.output} --output RUN_DIRECTORY")
    return 0


def run_export(words: Sequence[str]) -> int:
    """`spanbert export MODEL OUTPUT`."""
    verb = VERBS["export"]
    if asks_for_help(words):
        print(f"usage: {verb.usage}\n\n{verb.description}")
        return 0
    arguments = split_arguments(words, {}, "model")
    odd = arguments.values or arguments.files or arguments.faults
    if len(arguments.positionals) != 2 or odd:
        raise ConfigError(f"expected a model, a directory and nothing else: {verb.usage}")
    source, target = map(Path, arguments.positionals)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty directory; choose another output")
    if not source.exists():
        raise ConfigError(f"{source}: there is no such file or directory")
    _quiet_console()
    from spanbert_ext.tasks.coref.model import released
    from spanbert_ext.training import checkpoint, model_card
    from spanbert_ext.weights import sources

    if released.is_released(source):
        print(released.import_released(source, target))
        print(f"next: spanbert predict coref IN.jsonl OUT.jsonl --model {target}")
        return 0
    folder = checkpoint.model_directory(source)
    print(sources.export_start(str(folder), target))
    model_card.write_card(folder, target)
    print(f"wrote {target}: transformers loads it without this package")
    return 0


def _fill_settings() -> type:
    from spanbert_ext.filling.config import FillConfig

    return FillConfig


def run_fill(words: Sequence[str]) -> int:
    """`spanbert fill MODEL TEXT [TEXT ...]`."""
    config = parse_settings(VERBS["fill"], words)
    _quiet_console()
    from spanbert_ext.filling.filler import SpanFiller, table

    model, *texts = config.inputs
    found = SpanFiller(model, device=config.device)(
        texts,
        pieces=config.pieces,
        max_pieces=config.max_pieces,
        top_k=config.top_k,
        by=config.by,
        refine=config.refine,
    )
    for text, fillings in zip(texts, found, strict=True):
        print("\n".join([text, *(f"  {line}" for line in table(fillings))]))
    return 0


def _bench_settings() -> type:
    from spanbert_ext.cli.bench import BenchConfig

    return BenchConfig


def run_bench(words: Sequence[str]) -> int:
    """`spanbert bench`."""
    config = parse_settings(VERBS["bench"], words)
    _quiet_console()
    from spanbert_ext.cli import bench

    print(bench.report(bench.run(config, lambda line: print(line, file=sys.stderr, flush=True))))
    return 0


def _plot_settings() -> type:
    from spanbert_ext.training.plots import PlotConfig

    return PlotConfig


def run_plot(words: Sequence[str]) -> int:
    """`spanbert plot RUN ...`."""
    config = parse_settings(VERBS["plot"], words)
    _quiet_console(loads_models=False)
    from spanbert_ext.training import plots

    for run in plots.plot(config):
        print(run.summary())
    print(f"wrote {config.output}")
    return 0


def run_doctor(words: Sequence[str]) -> int:
    """`spanbert doctor`."""
    verb = VERBS["doctor"]
    if asks_for_help(words):
        print(f"usage: {verb.usage}\n\n{verb.description}")
        return 0
    if [word for word in words if word != "--debug"]:
        raise ConfigError(f"takes no arguments; got {' '.join(words)}")
    from spanbert_ext.cli import doctor

    print(doctor.report())
    return 0


def _quiet_console(loads_models: bool = True) -> None:
    plain_console()
    if loads_models:
        from transformers.utils import logging

        logging.disable_progress_bar()


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
            examples=(
                "spanbert prepare books/ --documents file --output corpus",
                "spanbert prepare a.jsonl.gz b.parquet --text_field body --output corpus",
            ),
            interrupted="the same command goes on from what is finished",
        ),
        Verb(
            "pretrain",
            "spanbert pretrain [--corpus DIRECTORY --output DIRECTORY] [options]",
            "Pre-train a SpanBERT, or continue a run. Without --corpus: a demonstration of a few "
            "minutes "
            "on text every Python carries, with its own small settings; options override them too.",
            run_pretrain,
            _pretrain_settings,
            other_case="without --corpus",
            examples=(
                "spanbert pretrain --corpus corpus --preset base --output run",
                "spanbert pretrain --corpus corpus --init bert-base-cased --steps 1e5 --output run",
                "spanbert pretrain --config our-bert --corpus corpus --batch.micro_rows 16",
            ),
            interrupted="the same command begins or continues the run",
        ),
        FINETUNE,
        EVALUATE,
        PREDICT,
        Verb(
            "export",
            "spanbert export MODEL OUTPUT",
            "Write a model as a plain Hugging Face directory that transformers loads without this "
            "package: a run (its newest checkpoint), a checkpoint, or an archive of the original "
            "SpanBERT. The folder of a released SpanBERT coreference model (TensorFlow) becomes "
            "one that `spanbert predict coref` uses.",
            run_export,
        ),
        Verb(
            "fill",
            "spanbert fill MODEL TEXT [TEXT ...] [options]",
            "Propose what is hidden at [MASK] or ___ in a text, by the masked language model, by "
            "the span boundary objective, and by both.",
            run_fill,
            _fill_settings,
            "inputs",
            examples=('spanbert fill run "the ____ sat on the mat" --pieces 2',),
        ),
        Verb(
            "plot",
            "spanbert plot RUN [RUN ...] [--output FILE]",
            "Draw the learning curves of runs over each other: losses in training and held out, "
            "gradient norm, tokens a second, learning rate.",
            run_plot,
            _plot_settings,
            "runs",
            examples=("spanbert plot run run2 --output plots.png",),
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
        "SpanBERT: prepare text, pre-train, fine-tune, predict. `spanbert pretrain` alone is a "
        "demonstration.\n\n"
        + "\n".join(lines)
        + "\n\n`spanbert VERB --help` lists the settings of a verb. "
        "--config FILE reads them from YAML; --debug shows tracebacks.\n"
        "Exit codes: 0 done, 2 settings, 65 data, 70 internal, 71 memory, 74 storage, "
        "75 stopped and resumable, 76 numerics."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. `--help` and `--print_config` leave through
    SystemExit(0).
    """
    with patient_output():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"spanbert_ext {spanbert_ext.__version__}")
        return 0
    try:
        if words[0] not in VERBS:
            message = build.unknown_name(words[0], VERBS).replace("setting", "verb")
            raise ConfigError(f"{message} (verbs: {', '.join(VERBS)})")
        return VERBS[words[0]].run(words[1:])
    except ReportedElsewhere as error:
        return error.exit_code
    except SpanBertError as error:
        if "--debug" in words:
            raise
        rank = os.environ.get("RANK", "0")
        who = "spanbert" if rank == "0" else f"spanbert: rank {rank}"
        kind = "" if isinstance(error, Preempted) else "error: "
        print(f"{who}: {kind}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        # What was computing may know better than the verb what is kept.
        kept = ": ".join(map(str, error.args)) or VERBS[words[0]].interrupted
        print(f"spanbert: interrupted; {kept}", file=sys.stderr)
        return 130
