"""Downstream tasks: question answering, coreference, relations, tagging, sentence classification.

`spanbert finetune | evaluate | predict TASK` from the command line; `ExtractiveQA`,
`CorefResolver`, `RelationClassifier` and `SpanTagger` from Python. Nothing heavy is imported until
a name is used.
"""

import importlib

_HOMES = {
    "ExtractiveQA": "qa.answering",
    "CorefResolver": "coref.resolver",
    "RelationClassifier": "relation.classifier",
    "SpanTagger": "tagging.tagger",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOMES])
