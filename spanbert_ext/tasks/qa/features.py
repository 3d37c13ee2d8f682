"""Windows of a long context, each behind its question, as the encoder reads them.

Every piece of a context is in at least one window. A piece in several of them counts as a start
only where it has most context around it: largest min(pieces left, pieces right) + 0.01 * size of
the window, the first one of equals (SQuAD scripts of BERT).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spanbert_ext.tasks.layout import PairLayout
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.task import Feature
from spanbert_ext.text import Tokens, token_ids, tokenise


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Where a feature's part of the context lies.

    Args:
        at: place of its first piece in the sequence.
        offsets: [n, 2] int32, characters of its pieces, or of the words they belong to.
        first, stop: its pieces first..stop-1 have most context here, counted in the window.
    """

    at: int
    offsets: np.ndarray
    first: int
    stop: int


def features_of(examples: Sequence[QAExample], tokenizer: Any, options: QAOptions) -> list[Feature]:
    """The windows of each example, in order; one at least, even for a context without pieces.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """
    layout = PairLayout.of(tokenizer)
    # White space around a question must not take the room of its words.
    asked = [example.question.strip() for example in examples]
    questions = token_ids(asked, tokenizer)
    words = any(example.whole_words for example in examples)
    contexts = tokenise((example.context for example in examples), tokenizer, words)
    token_types = functools.cache(layout.token_types)
    # Behind the quarter that belongs to the context there is no room for a longer question.
    longest = options.length - layout.specials - max(1, options.length // 4)
    longest = max(0, min(options.max_question, longest))
    features = []
    for number, example in enumerate(examples):
        question, context = questions[asked[number]][:longest], contexts[example.context]
        room = options.length - layout.specials - len(question)
        head = np.concatenate([layout.before, question, layout.between])
        answer = answer_pieces(example, context)
        offsets = context.words if example.whole_words else context.offsets
        for first, stop, own_first, own_stop in windows(
            len(context.ids), room, stride_of(options, room)
        ):
            part = slice(first, stop)
            features.append(
                Feature(
                    example=number,
                    input_ids=np.concatenate([head, context.ids[part], layout.behind]),
                    token_type_ids=token_types(len(question), stop - first),
                    labels=_labels(answer, first, stop, len(head)),
                    place=Window(len(head), offsets[part], own_first - first, own_stop - first),
                )
            )
    return features


def stride_of(options: QAOptions, room: int) -> int:
    """Pieces from the start of a window with so much room to the start of the next."""
    if options.overlap is not None:
        return max(1, room - options.overlap)
    return min(options.stride, room)


@functools.lru_cache(maxsize=256)
def windows(count: int, room: int, stride: int) -> tuple[tuple[int, int, int, int], ...]:
    """The windows over some pieces.

    Args:
        count: pieces of the context.
        room: pieces of a window, at least 1.
        stride: in [1, room].

    Returns:
        (first, stop, own first, own stop) of each: its pieces, and those that have most context
        in it, the stop exclusive.
    """
    if count <= room:
        return ((0, count, 0, count),)
    firsts = range(0, count - room + stride, stride)
    winner, best = np.zeros(count, dtype=np.int64), np.full(count, -np.inf)
    for number, first in enumerate(firsts):
        size = min(room, count - first)
        left = np.arange(size)
        context = np.minimum(left, size - 1 - left) + 0.01 * size
        part = slice(first, first + size)
        better = context > best[part]
        winner[part][better] = number
        best[part][better] = context[better]
    # The winners ascend: of two windows, the later one is better from some piece on.
    own = np.searchsorted(winner, np.arange(len(firsts) + 1)).tolist()
    return tuple(
        (first, min(first + room, count), max(own[n], first), max(own[n + 1], first))
        for n, first in enumerate(firsts)
    )


def answer_pieces(example: QAExample, context: Tokens) -> tuple[int, int] | None:
    """First and last piece that share a character with the first answer.

    Returns:
        (-1, -1) if there is no answer, its place is not known, or no piece holds a character of it;
        None where nobody says.
    """
    if not example.answers:
        return (-1, -1) if example.is_impossible or example.golds else None
    text, start = example.answers[0]
    starts, ends = context.offsets.T
    found = np.flatnonzero((starts < start + len(text)) & (ends > start) & (starts < ends))
    return (int(found[0]), int(found[-1])) if len(found) else (-1, -1)


def _labels(answer: tuple[int, int] | None, first: int, stop: int, at: int) -> np.ndarray | None:
    if answer is None:
        return None
    inside = first <= answer[0] and answer[1] < stop
    return np.array([at + place - first if inside else 0 for place in answer], dtype=np.int64)
