"""SpanBERT (arXiv 1907.10529): span masking, span boundary objective, pre-training.

The public names are loaded on first use, so that `spanbert --help` starts without torch and
`SpanMasker` and `SBOHead` work with torch and numpy alone.
"""

from spanbert_ext import _moved
from spanbert_ext._lazy import lazy_names

__version__ = "0.2.0.dev0"

_HOMES = {
    "SpanMasker": "masking.masker",
    "MaskedBatch": "masking.batch",
    "SBOHead": "model.sbo",
    "linear_cross_entropy": "ops.cross_entropy",
    "SpanBertConfig": "model.pretraining",
    "SpanBertForPreTraining": "model.pretraining",
    "SpanFiller": "filling.filler",
    "ExtractiveQA": "tasks.qa.pipeline",
    "CorefResolver": "tasks.coref.pipeline",
    "RelationClassifier": "tasks.relation.pipeline",
    "SpanTagger": "tasks.tagging.pipeline",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
_moved.install()
