"""The tasks by name, and the settings of the verbs for each. Torch-free."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings import build
from spanbert_ext.tasks.config import FinetuneConfig


@dataclass(frozen=True)
class TaskEntry:
    """What the command line knows of a task before anything is imported.

    Args:
        name: as in `spanbert finetune NAME`.
        about: one line for the help.
        section: of its settings: `--SECTION.name value`.
        options, task: `module:class` below `spanbert_ext.tasks`.
        epochs: of the paper's recipe.
        settings, objective: alike, of its fine-tuning.
        predictor: alike, what `evaluate` and `predict` load.
    """

    name: str
    about: str
    section: str
    options: str
    task: str
    epochs: float
    settings: str = "config:FinetuneConfig"
    objective: str = "packed_objective:PackedObjective"
    predictor: str = "predictor:Predictor"

    def options_class(self) -> type:
        """The class of its settings."""
        return _find(self.options)

    def settings_class(self) -> type:
        """The class of the settings of `finetune`."""
        return _find(self.settings)

    def objective_class(self) -> type:
        """The `FinetuneObjective`."""
        return _find(self.objective)

    def predictor_class(self) -> type:
        """The `Predictor`."""
        return _find(self.predictor)

    def task_class(self) -> type:
        """The `DownstreamTask`'s class."""
        return _find(self.task)

    def make(self, options: Any, facts: Mapping[str, Any] | None = None):
        """The `DownstreamTask`."""
        return self.task_class()(self.name, options, facts)


def _find(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"spanbert_ext.tasks.{module}"), name)


_QA = ("qa", "qa.config:QAOptions", "qa.task:QATask", 4.0)
_RELATION = (
    "relation",
    "relation.config:RelationOptions",
    "relation.task:RelationTask",
    10.0,
)
_TAGGING = ("tagging", "tagging.config:TaggingOptions", "tagging.task:TaggingTask", 10.0)
_COREF = (
    "coref",
    "coref.options:CorefOptions",
    "coref.task:CorefTask",
    20.0,
    "coref.options:CorefFinetuneConfig",
    "coref.objective:CorefObjective",
    "coref.predictor:CorefPredictor",
)
_GLUE = ("glue", "classification.config:GlueOptions", "classification.task:GlueTask", 10.0)

TASKS = {
    entry.name: entry
    for entry in (
        TaskEntry("squad", "questions answered by a span of a text: SQuAD 1.1 JSON", *_QA),
        TaskEntry("squad2", "the same with unanswerable questions: SQuAD 2.0 JSON", *_QA),
        TaskEntry("mrqa", "questions in the MRQA format (.jsonl.gz)", *_QA),
        TaskEntry("coref", "mentions of the same thing: CoNLL-2012 columns, JSON lines", *_COREF),
        TaskEntry("tacred", "relations between two marked spans: TACRED JSON", *_RELATION),
        TaskEntry("ner", "entities: CoNLL columns with BIO, IOB or BILOU tags", *_TAGGING),
        TaskEntry("cola", "GLUE: acceptability of a sentence", *_GLUE[:3], 4.0),
        TaskEntry("sst-2", "GLUE: sentiment of a sentence", *_GLUE),
        TaskEntry("mrpc", "GLUE: paraphrases", *_GLUE),
        TaskEntry("sts-b", "GLUE: similarity of two sentences, a regression", *_GLUE),
        TaskEntry("qqp", "GLUE: duplicate questions", *_GLUE),
        TaskEntry("mnli", "GLUE: entailment in three classes", *_GLUE),
        TaskEntry("qnli", "GLUE: whether a sentence answers a question", *_GLUE),
        TaskEntry("rte", "GLUE: entailment in two classes", *_GLUE),
        TaskEntry("wnli", "GLUE: entailment after resolving a pronoun", *_GLUE),
    )
}


def entry_of(name: str) -> TaskEntry:
    """The task of that name.

    Raises:
        ConfigError: there is none; names the nearest one.
    """
    if name not in TASKS:
        message = build.unknown_name(name, TASKS).replace("setting", "task")
        raise ConfigError(f"{message} (tasks: {', '.join(TASKS)})")
    return TASKS[name]


@functools.cache
def options_not_given(options: type) -> Any:
    """The defaults of a task's section: the very object that a verb's settings have where nobody
    gave a section, so that a model's own options count."""
    return options()


@functools.cache
def settings_class(base: type, name: str) -> type:
    """The settings of a verb for one task: those of `base` and the task's section.

    In place of `FinetuneConfig` the task's own class is the base. The class has `task_name`, and
    `task_options` gives the section.
    """
    entry = entry_of(name)
    options = entry.options_class()
    if base is FinetuneConfig:
        base = entry.settings_class()
    section = field(default_factory=functools.partial(options_not_given, options))
    return dataclasses.make_dataclass(
        base.__name__,
        [(entry.section, options, section)],
        bases=(base,),
        frozen=True,
        namespace={
            "__doc__": base.__doc__,
            "task_name": name,
            "task_options": property(lambda self: getattr(self, entry.section)),
        },
    )
