"""From text to batches of ids: prepare a corpus once, then address its rows by number.

text files -> `prepare` -> token files (`Corpus`) -> sequences packed into rows (`PackedRows`) ->
order of rows (`KeyedPermutation`, `batch_of_step`). `open_corpus` and `open_rows` also take several
corpora with weights (mixture.py). Nothing here imports torch; the names are loaded on first use, so
that a command line which only needs `PrepareConfig` starts at once.
"""

from spanbert_ext._lazy import lazy_names

_HOMES = {
    "PrepareConfig": "config",
    "prepare": "preparation",
    "Corpus": "corpus",
    "PackedRows": "rows",
    "PairedRows": "pairs",
    "open_corpus": "mixture",
    "open_rows": "mixture",
    "RowBatch": "rows",
    "KeyedPermutation": "sampler",
    "batch_of_step": "sampler",
    "VocabularyInfo": ".text.vocabulary",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
