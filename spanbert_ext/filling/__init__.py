"""Filling spans: a masked language model writes what a gap hides."""

from spanbert_ext._lazy import lazy_names

_HOMES = {"SpanFiller": "filler"}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
