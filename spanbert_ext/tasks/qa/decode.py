"""From start and end scores to answers: the best spans over all windows of a question.

As the SQuAD scripts of BERT: the best starts and the best ends of a window are paired, a span's
score is their sum, the windows of a question are pooled, equal answers count once. Starts and ends
are picked among the pieces that may be one; the scripts also pick others and then drop them.

Nothing here loops over pairs in Python: what is slow would be paid for every question.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.features import Window
from spanbert_ext.tasks.qa.metrics import normalise
from spanbert_ext.tasks.task import Feature

# Windows that are decoded at a time, so that memory does not grow with the number of questions.
_AT_ONCE = 256
# Pairs that are looked at together; and pairs of one question above which no more are looked at for
# answers that differ: only texts that repeat themselves get there.
_MOST_PAIRS = 1 << 21


@dataclass(frozen=True, slots=True)
class Answer:
    """A stretch of the context.

    Args:
        start, end: characters, end exclusive; `context[start:end] == text`.
        score: probability among the answers that were kept, if there is one.
    """

    start: int
    end: int
    text: str
    score: float


NO_ANSWER = Answer(0, 0, "", 0.0)


@dataclass(frozen=True, slots=True)
class QAPrediction:
    """The answers to a question.

    Args:
        answers: best first, different texts; empty only where the context has nothing to read.
        null_score: probability that there is no answer, against those kept.
        score_diff: score of no answer minus that of the best answer, a difference of logits.
    """

    answers: tuple[Answer, ...]
    null_score: float
    score_diff: float


class _Request(NamedTuple):
    pairs: int  # best starts and ends that are paired
    kept: int
    least: int  # answers that are wanted, if there are as many
    max_answer: int


def decode(
    examples: Sequence[QAExample],
    features: Sequence[Feature],
    outputs: Sequence[np.ndarray],
    options: QAOptions,
) -> list[QAPrediction]:
    """The best answers of each example.

    Args:
        features: of these examples, all of them.
        outputs: [n, 2] float32 for each feature, start and end logits, finite.
    """
    rows: list[list[int]] = [[] for _ in examples]
    for row, feature in enumerate(features):
        rows[feature.example].append(row)
    requests: dict[_Request, list[int]] = {}
    for number, example in enumerate(examples):
        requests.setdefault(_request(example, options), []).append(number)
    predictions: dict[int, QAPrediction] = {}
    for request, numbers in requests.items():
        for part in _parts(numbers, rows):
            windows = [features[row].place for n in part for row in rows[n]]
            scores = [outputs[row] for n in part for row in rows[n]]
            sizes = [len(rows[n]) for n in part]
            contexts = [examples[n].context for n in part]
            found = _answers(contexts, sizes, windows, scores, request)
            predictions.update(zip(part, found, strict=True))
    return [predictions[number] for number in range(len(examples))]


def _request(example: QAExample, options: QAOptions) -> _Request:
    least = options.top_k if example.top_k is None else example.top_k
    longest = options.max_answer if example.max_answer is None else example.max_answer
    return _Request(options.n_best, max(options.n_best, least), least, longest)


def _parts(numbers: Iterable[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Examples that are decoded together."""
    part: list[int] = []
    size = 0
    for number in numbers:
        if part and size + len(rows[number]) > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append(number)
        size += len(rows[number])
    if part:
        yield part


def _answers(
    contexts: Sequence[str],
    sizes: Sequence[int],
    windows: Sequence[Window],
    scores: Sequence[np.ndarray],
    request: _Request,
) -> list[QAPrediction]:
    """Predictions of examples that have so many windows each."""
    starts, ends = _context_scores(windows, scores)
    nulls = np.array([row[0, 0] + row[0, 1] for row in scores], dtype=np.float64)
    stops = np.cumsum(sizes)
    row, first, last, score = _pairs(starts, ends, request.pairs, request.max_answer)
    cuts = np.searchsorted(row, [0, *stops])
    predictions = []
    for n, context in enumerate(contexts):
        own = slice(stops[n] - sizes[n], stops[n])
        part = slice(cuts[n], cuts[n + 1])
        pairs = row[part] - own.start, first[part], last[part], score[part]
        kept = _distinct(context, windows[own], pairs, request.kept)
        width = request.pairs
        while len(kept) < request.least and width < starts.shape[1]:
            width *= 2
            if sizes[n] * min(width, starts.shape[1]) * request.max_answer > _MOST_PAIRS:
                break
            pairs = _pairs(starts[own], ends[own], width, request.max_answer)
            kept = _distinct(context, windows[own], pairs, request.kept)
        predictions.append(_prediction(context, kept, float(nulls[own].min())))
    return predictions


def _context_scores(
    windows: Sequence[Window], scores: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the pieces that may begin an answer and that may end one: [windows, most pieces]
    float32 each, -inf elsewhere."""
    shape = len(windows), max(len(window.offsets) for window in windows)
    starts, ends = np.full(shape, -np.inf, np.float32), np.full(shape, -np.inf, np.float32)
    for row, (window, score) in enumerate(zip(windows, scores, strict=True)):
        inside = score[window.at : window.at + len(window.offsets)]
        starts[row, window.first : window.stop] = inside[window.first : window.stop, 0]
        ends[row, : len(inside)] = inside[:, 1]
    return starts, ends


def _pairs(
    starts: np.ndarray, ends: np.ndarray, best: int, max_answer: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(window, first piece, last piece, score) of the spans of the best starts and ends of each
    window, at most `max_answer` pieces long; windows ascend."""
    block = max(1, _MOST_PAIRS // min(best, max(1, starts.shape[1])) ** 2)
    found = []
    for begin in range(0, len(starts), block):
        part = slice(begin, begin + block)
        row, *rest = _block_pairs(starts[part], ends[part], best, max_answer)
        found.append((row + begin, *rest))
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def _block_pairs(
    starts: np.ndarray, ends: np.ndarray, best: int, max_answer: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first, last = _best(starts, best), _best(ends, best)
    score = np.take_along_axis(starts, first, 1)[:, :, None]
    score = score + np.take_along_axis(ends, last, 1)[:, None, :]
    length = last[:, None, :] - first[:, :, None]
    row, i, j = np.nonzero((length >= 0) & (length < max_answer) & (score > -np.inf))
    return row, first[row, i], last[row, j], score[row, i, j]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """[rows, k] places of the largest scores of each row, in ascending order; the earlier ones of
    equals, so that nothing depends on which rows stand together."""
    rows, width = scores.shape
    if count >= width:
        return np.broadcast_to(np.arange(width), scores.shape)
    # Floats in the order of their bits (-0 as 0), the place below them: no two keys are equal.
    bits = (scores + np.float32(0)).view(np.int32)
    keys = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64) << 32
    keys -= np.arange(width)
    places = np.argpartition(keys, width - count, axis=1)[:, width - count :]
    return np.sort(places, axis=1)


def _distinct(
    context: str, windows: Sequence[Window], pairs: tuple[np.ndarray, ...], count: int
) -> list[tuple[int, int, float]]:
    """(start, end, score) of the best spans whose texts differ, best first."""
    order = np.argsort(-pairs[3], kind="stable")
    kept: list[tuple[int, int, float]] = []
    spans: set[tuple[int, int]] = set()
    texts: set[str] = set()
    # Most questions are through after a few dozen pairs of several hundred.
    for begin in range(0, len(order), 64):
        rows, firsts, lasts, scores = (p[order[begin : begin + 64]].tolist() for p in pairs)
        for row, first, last, score in zip(rows, firsts, lasts, scores, strict=True):
            offsets = windows[row].offsets
            span = int(offsets[first, 0]), int(offsets[last, 1])
            if span in spans:
                continue
            spans.add(span)
            start, end = _trimmed(context, *span)
            text = context[start:end]
            # Texts of nothing but articles and punctuation all normalise to nothing.
            key = normalise(text) or text
            if start == end or key in texts:
                continue
            texts.add(key)
            kept.append((start, end, score))
            if len(kept) == count:
                return kept
    return kept


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """A span without white space at its ends, with the marks that belong to its last letter."""
    text = context[start:end]
    if not text or text.isspace():  # no character, or an end before its start
        return start, start
    start += len(text) - len(text.lstrip())
    end -= len(text) - len(text.rstrip())
    # Tokenizers that drop accents leave them out of the offsets.
    while end < len(context) and unicodedata.category(context[end]) in ("Mn", "Me"):
        end += 1
    return start, end


def _prediction(context: str, kept: list[tuple[int, int, float]], null: float) -> QAPrediction:
    if not kept:
        return QAPrediction((), 1.0, null)
    scores = np.array([score for _, _, score in kept], dtype=np.float64)
    shares = np.exp(scores - scores[0])
    total = shares.sum()
    answers = tuple(
        Answer(start, end, context[start:end], float(share))
        for (start, end, _), share in zip(kept, shares / total, strict=True)
    )
    diff = null - float(scores[0])
    null_score = np.exp(diff - np.logaddexp(diff, np.log(total)))
    return QAPrediction(answers, float(null_score), diff)
