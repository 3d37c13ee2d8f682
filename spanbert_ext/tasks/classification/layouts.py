"""The nine tasks as a table: what their files name the texts and the label, and what is measured.

Columns are found by their names in the header, in any case, so that files with and without labels,
of any number of further columns, are read alike: those of the benchmark, the two of MNLI, its
diagnostic set, the older MRPC files. CoLA's labelled files have no header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The number that picks the best model; what else a task reports goes with it (`metrics.measures`).
Measure = Literal["matthews", "accuracy", "accuracy_and_f1", "pearson_and_spearman"]

ID_NAMES = ("index", "id", "idx")
_ONE = (("sentence",), ("text",))
_TWO = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 string", "#2 string"),
)
_NO_YES = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Layout:
    """One task.

    Args:
        texts: what the text, or the two of a pair, may be called; the first that fits is taken.
        label: what the gold label or score may be called.
        labels: as files write them, in the order of the head's outputs; none: a score between
            `LOWEST` and `HIGHEST`.
        measure: the number that picks the best model.
        bare: of files without a header the places of the text and of the label, and how many
            columns there are; None: a header is required.
    """

    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...] = ("label",)
    labels: tuple[str, ...] = _NO_YES
    measure: Measure = "accuracy"
    bare: tuple[int, int, int] | None = None

    def form(self) -> str:
        """A header of its files, with \\t for tabs."""
        return "\\t".join(("index", *self.texts[0], self.label[0]))


LOWEST, HIGHEST = 0.0, 5.0

LAYOUTS = {
    "cola": Layout(_ONE, measure="matthews", bare=(3, 1, 4)),
    "sst-2": Layout(_ONE),
    "mrpc": Layout(_TWO, ("quality", "label"), measure="accuracy_and_f1"),
    "sts-b": Layout(_TWO, ("score", "label"), (), "pearson_and_spearman"),
    "qqp": Layout(_TWO, ("is_duplicate", "label"), measure="accuracy_and_f1"),
    "mnli": Layout(_TWO, ("gold_label", "label"), ("contradiction", "entailment", "neutral")),
    "qnli": Layout(_TWO, labels=_ENTAILMENT),
    "rte": Layout(_TWO, labels=_ENTAILMENT),
    "wnli": Layout(_TWO),
}
