"""Which words of which type were taken for which."""

from spanbert_ext.tasks.tagging.metrics import word_confusion
from spanbert_ext.tasks.tagging.schemes import Span


def test_words_are_counted_by_hand():
    gold = [[Span(0, 2, "PER"), Span(3, 4, "LOC")], []]
    found = [[Span(0, 1, "PER"), Span(3, 5, "PER")], [Span(1, 2, "LOC")]]
    names, counts = word_confusion(gold, found, [6, 2])
    assert names == ["O", "LOC", "PER"]
    # O: words 2 and 5 right, 4 taken for PER; of the second example 0 right, 1 taken for LOC.
    assert counts.tolist() == [[3, 1, 1], [0, 0, 1], [1, 0, 1]]
    assert counts.sum() == 8
