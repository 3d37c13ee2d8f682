"""The coreference model: candidate spans, pruning, antecedents, and their specification."""

from spanbert_ext._lazy import lazy_names

_HOMES = {"SpanBertForCoreference": "coreference"}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
