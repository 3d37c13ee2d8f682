"""SpanBERT (arXiv 1907.10529): span masking, span boundary objective, pre-training.

The public names are loaded on first use, so that `spanbert --help` starts without torch and
`SpanMasker` and `SBOHead` work with torch and numpy alone.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "SpanMasker": "masking",
    "MaskedBatch": "masked_batch",
    "SBOHead": "sbo",
    "linear_cross_entropy": "cross_entropy",
    "SpanBertConfig": "modeling",
    "SpanBertForPreTraining": "modeling",
    "SpanFiller": "filling",
    "ExtractiveQA": "tasks.qa.answering",
    "CorefResolver": "tasks.coref.resolver",
    "RelationClassifier": "tasks.relation.classifier",
    "SpanTagger": "tasks.tagging.tagger",
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
