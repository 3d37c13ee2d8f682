"""`spanbert finetune | evaluate | predict TASK`: from the words of the command to what it prints.

Nothing here imports torch before the settings are known to be right.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from spanbert_ext.cli.arguments import Verb, asks_for_help, parse_settings
from spanbert_ext.cli.console import plain_console
from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.config import EvaluateConfig, FinetuneConfig, PredictConfig
from spanbert_ext.tasks.forms import FORMS


def _for_task(verb: Verb, base: type, words: Sequence[str], defaults: Callable) -> Any:
    """The settings of a verb whose first word names the task; without one, the tasks are listed."""
    if not words or words[0].startswith("-"):
        if asks_for_help(words):
            print(_task_list(verb))
            raise SystemExit(0)
        raise ConfigError(f"a task is required: {verb.usage} (tasks: {', '.join(registry.TASKS)})")
    name = registry.entry_of(words[0]).name
    own = dataclasses.replace(
        verb,
        name=f"{verb.name} {name}",
        usage=verb.usage.replace("TASK", name),
        examples=tuple(line.replace("TASK", name) for line in verb.examples),
        settings=lambda: registry.settings_class(base, name),
    )
    if asks_for_help(words):
        own = dataclasses.replace(own, notes=_notes(verb, name))
    config = parse_settings(own, words[1:], lambda given: defaults(own.settings(), given))
    plain_console()
    from transformers.utils import logging

    logging.disable_progress_bar()
    return config


def _about(verb: Verb, entry: registry.TaskEntry) -> str:
    if verb.name != "predict":
        return entry.about
    return FORMS[entry.name].example


def _notes(verb: Verb, name: str) -> str:
    """What files of a task hold, for the help."""
    form = FORMS[name]
    if verb.name == "predict":
        title = "IN.jsonl has one JSON object a line:"
        lines = [*form.fields.splitlines(), f"such as {form.example}"]
    else:
        title, lines = "files of data:", form.file.splitlines()
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _task_list(verb: Verb) -> str:
    lines = [f"  {entry.name:10s}{_about(verb, entry)}" for entry in registry.TASKS.values()]
    title = "tasks, with a line of IN.jsonl" if verb.name == "predict" else "tasks"
    return (
        f"usage: {verb.usage}\n\n{verb.description}\n\n{title}:\n"
        + "\n".join(lines)
        + f"\n\n`spanbert {verb.name} TASK --help` lists the settings."
    )


def _own_defaults(_cls: type, _given: dict[str, Any]) -> None:
    return None


def _stored_defaults(cls: type, given: dict[str, Any]) -> Any:
    """Defaults of a verb that uses a model: the task's options are those it was trained with."""
    from spanbert_ext.tasks.task_file import stored_beside, stored_options

    stored = stored_beside(given["model"]) if given.get("model") else None
    if stored is None:
        return None
    entry = registry.entry_of(stored["task"])
    if entry.section != registry.entry_of(cls.task_name).section:
        raise ConfigError(
            f"{given['model']} was fine-tuned for {entry.name}, not for {cls.task_name}"
        )
    required = {
        field.name: given["model"] if field.name == "model" else []
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return cls(**required, **{entry.section: stored_options(stored)})


def run_finetune(words: Sequence[str]) -> int:
    """`spanbert finetune TASK`."""
    config = _for_task(FINETUNE, FinetuneConfig, words, _own_defaults)
    from spanbert_ext.tasks.finetune import METRICS, finetune

    result = finetune(config)
    if os.environ.get("RANK", "0") != "0" or (config.nproc > 1 and not result.was_finished):
        return 0  # rank 0 has said it
    best = result.state.best
    if result.was_finished:
        print(f"{result.run} is finished; nothing to do")
    if len(best) > 1:
        print(f"best on dev, after step {best['step']}: {_numbers(best)}")
    print(f"the model: {result.run / 'best'}; the numbers: {result.run / METRICS}")
    print(f"next: spanbert predict {config.task_name} IN.jsonl OUT.jsonl --model {result.run}")
    return 0


def run_evaluate(words: Sequence[str]) -> int:
    """`spanbert evaluate TASK`."""
    config = _for_task(EVALUATE, EvaluateConfig, words, _stored_defaults)
    from spanbert_ext.tasks.evaluate import evaluate

    evaluate(config, _print_result, lambda path: print(f"wrote {path}", flush=True))
    return 0


def _print_result(result: dict[str, Any]) -> None:
    for line in result["rejected"]:
        print(f"left out: {line}")
    print(f"{result['examples']} examples in {result['seconds']} s")
    width = max(24, 0, *(len(name) + 2 for name in result["metrics"]))
    for name, value in result["metrics"].items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"  {name:{width}s}{shown}")
    if not result["metrics"]:
        print("  no gold answers: nothing was scored")
    sys.stdout.flush()  # whatever becomes of the files


def run_predict(words: Sequence[str]) -> int:
    """`spanbert predict TASK IN OUT`."""
    config = _for_task(PREDICT, PredictConfig, words, _stored_defaults)
    from spanbert_ext.tasks.predict import predict

    result = predict(config)
    output = config.files[1]
    if result.was_finished:
        print(f"{output} is finished ({result.records} lines); nothing to do")
        return 0
    again = f", {result.resumed} of them by an earlier command" if result.resumed else ""
    bad = f", {result.unusable} with a reason in place of a prediction" if result.unusable else ""
    print(f"wrote {output}: {result.records} lines{again}{bad}, in {result.seconds:.1f} s")
    if config.html is not None:
        print(f"wrote {config.html}")
    return 0


def _numbers(best: dict[str, Any]) -> str:
    hidden = ("step", "total", "_thresh")  # counts and thresholds say nothing here
    known = {n: v for n, v in best.items() if v is not None and not n.endswith(hidden)}
    return ", ".join(f"{name} {value:.2f}" for name, value in [*known.items()][:6])


FINETUNE = Verb(
    "finetune",
    "spanbert finetune TASK --model MODEL --train FILE --dev FILE --output DIRECTORY [options]",
    "Fine-tune a model for a task: question answering, coreference, relations, entities, GLUE. "
    "Killed, the same command goes on.",
    run_finetune,
    examples=(
        "spanbert finetune TASK --model run --train a.json b.json --dev dev.json --output out",
        "spanbert finetune TASK --model bert-base-cased --train a.json --epochs 3 --output out",
    ),
    interrupted="the same command begins or continues the run",
)
EVALUATE = Verb(
    "evaluate",
    "spanbert evaluate TASK --model MODEL --data FILE [options]",
    "Measure a fine-tuned model on data with gold answers, as the task's official scorer does.",
    run_evaluate,
    examples=("spanbert evaluate TASK --model out --data test.json --html page.html",),
    interrupted="nothing was written; an evaluation begins anew",
)
PREDICT = Verb(
    "predict",
    "spanbert predict TASK IN.jsonl OUT.jsonl --model MODEL [options]",
    "Predict for every line of a file, or for a text (.txt); killed, the same command goes on.",
    run_predict,
    positional="files",
    examples=("spanbert predict TASK in.jsonl out.jsonl --model out",),
    interrupted="the same command goes on from what is saved",
)
