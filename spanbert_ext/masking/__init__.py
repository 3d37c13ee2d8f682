"""Which tokens a step hides: the masker, its settings, and the batch it gives."""

from spanbert_ext._lazy import lazy_names

_HOMES = {"SpanMasker": "masker", "MaskedBatch": "batch"}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
