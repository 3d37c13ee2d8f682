"""Downstream tasks: question answering, coreference, relations, tagging, sentence classification.

`spanbert finetune | evaluate | predict TASK` from the command line; `ExtractiveQA`,
`CorefResolver`, `RelationClassifier` and `SpanTagger` from Python. Nothing heavy is imported until
a name is used.
"""

from spanbert_ext._lazy import lazy_names

_HOMES = {
    "ExtractiveQA": "qa.pipeline",
    "CorefResolver": "coref.pipeline",
    "RelationClassifier": "relation.pipeline",
    "SpanTagger": "tagging.pipeline",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
