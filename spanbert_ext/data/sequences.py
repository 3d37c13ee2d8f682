"""Cutting documents into sequences: contiguous segments that together are the corpus.

A document that fits is one sequence. Otherwise a sequence ends, in this order of preference, at the
latest sentence end in the second half of its window, at the latest beginning of a word, or at the
full window. The next one begins right there, so nothing is lost and sequence i is positions
[cuts[i], cuts[i + 1]).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from spanbert_ext.data.corpus import Corpus
from spanbert_ext.text.vocabulary import VocabularyInfo

# Classes of a piece, as bits.
STARTS_WORD = 1
ENDS_SENTENCE = 2
CLOSES = 4

_TERMINALS = frozenset(".!?。！？")
_CLOSERS = frozenset("\"'”’»)]}")


def piece_classes(info: VocabularyInfo) -> np.ndarray:
    """[V] uint8 bits of each piece: begins a word, ends a sentence, closes a quotation or bracket.

    A straight quotation mark may open or close. Where word starts carry their space it opens when
    it has one; otherwise (WordPiece) it counts as closing, so a cut never parts it from the
    sentence end before it.
    """
    classes = np.zeros(info.vocab_size, dtype=np.uint8)
    for i, text in enumerate(info.texts):
        characters = set(text)
        if info.word_starts[i]:
            classes[i] |= STARTS_WORD
        if characters & _TERMINALS and characters <= _TERMINALS | _CLOSERS:
            classes[i] |= ENDS_SENTENCE
        opens = info.space_marked and info.word_starts[i]
        if characters and characters <= _CLOSERS and not opens:
            classes[i] |= CLOSES
    classes[list(info.special_ids)] = STARTS_WORD
    return classes


def sentence_cuts(window: np.ndarray) -> np.ndarray:
    """[n] ascending offsets inside a window where a sentence has just ended and a word begins.

    Args:
        window: [W] uint8 classes of consecutive pieces.
    """
    ends = np.flatnonzero(window & ENDS_SENTENCE)
    others = np.flatnonzero(window & CLOSES == 0)
    behind = np.searchsorted(others, ends + 1)  # what closes a sentence belongs to it
    cuts = others[behind[behind < others.size]]
    return cuts[window[cuts] & STARTS_WORD != 0]


def next_cut(window: np.ndarray) -> int:
    """Length of the next sequence, 1 to R.

    Args:
        window: [R + 1] uint8 classes of the pieces from the sequence's start; the last is beyond
            it.
    """
    room = window.size - 1
    cuts = sentence_cuts(window)
    if cuts.size and 2 * cuts[-1] >= room:
        return int(cuts[-1])
    starts = np.flatnonzero(window[1:] & STARTS_WORD)
    return int(starts[-1]) + 1 if starts.size else room


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceIndex:
    """All sequences of a corpus for one length.

    Args:
        cuts: [N + 1] int64 positions; sequence i is [cuts[i], cuts[i + 1]).
        documents: [N] int64 document of each sequence.
    """

    cuts: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return self.documents.size

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64 pieces of each sequence."""
        return np.diff(self.cuts)


@functools.lru_cache(maxsize=2)  # the training and the validation part share one index
def cut_corpus(corpus: Corpus, max_pieces: int) -> SequenceIndex:
    """Cut every document of a corpus into sequences of at most `max_pieces` pieces.

    Raises:
        DataError: a token file is damaged.
    """
    if max_pieces < 1:
        raise ValueError(f"max_pieces must be at least 1; got {max_pieces}")
    classes = piece_classes(corpus.vocabulary)
    ends = corpus.document_ends
    starts = np.concatenate([[0], ends[:-1]])
    inner: list[int] = []
    for document in np.flatnonzero(ends - starts > max_pieces):
        start, stop = int(starts[document]), int(ends[document])
        tokens = corpus.read(start, stop)
        corpus.check_ids(tokens)
        inner += [start + cut for cut in inner_cuts(tokens, classes, max_pieces)]
    cuts = np.sort(np.concatenate([[0], ends, np.asarray(inner, dtype=np.int64)]))
    return SequenceIndex(cuts, np.searchsorted(ends, cuts[:-1], side="right"))


def inner_cuts(tokens: np.ndarray, classes: np.ndarray, max_pieces: int) -> list[int]:
    """Offsets inside one document ([n] ids) where its second and later sequences begin."""
    cuts, start = [], 0
    while tokens.size - start > max_pieces:
        start += next_cut(classes[tokens[start : start + max_pieces + 1]])
        cuts.append(start)
    return cuts
