"""JSON lines: the layout of the original SpanBERT coreference, and plain words.

Original, one document a line: `doc_key`; `sentences`, the segments as lists of pieces with [CLS]
and [SEP]; `speakers`, alike, "[SPL]" at [CLS] and [SEP]; `clusters`, inclusive [first, last] pieces
counted over all segments; `sentence_map` and `subtoken_map`, a sentence and a word number for each
piece. [CLS] and [SEP] carry the word before them and the sentence of the piece behind them.

Plain words: the same without `subtoken_map` and `sentence_map`; `sentences` are lists of words,
clusters count words; or, in place of `sentences`, one list `words`, whose sentences are found by
rule. Plain text: `text` alone. A `genre` may be named, else `doc_key` says it. PreCo: `sentences`
and `mention_clusters` of [sentence, first, end], words of the sentence, the end exclusive.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.records import UnreadableLine, fields_of, read_objects
from spanbert_ext.tasks.coref.data import (
    Document,
    Shared,
    Span,
    cut_sentences,
    from_text,
    from_words,
    genre_of,
    sorted_clusters,
)
from spanbert_ext.tasks.forms import COREF
from spanbert_ext.tasks.gold_fields import gold_elsewhere
from spanbert_ext.tasks.rejects import Rejects

_NOBODY = ("", "-", "[SPL]")
_CONTINUATION = "##"
_KNOWN = (
    *("id", "doc_key", "text", "words", "sentences", "speakers", "genre", "mention_clusters"),
    *("sentence_map", "subtoken_map", "constituents", "ner", "pronouns"),
)


def read(path: str | Path, rejects: Rejects, shared: Shared = "keep") -> list[Document]:
    """Documents of a file in any of the layouts, in order.

    Args:
        shared: what to do with a mention in two clusters, see `documents.sorted_clusters`.

    Raises:
        DataError: as `rejects` says, or the file is not UTF-8.
    """
    found = []
    for where, record in _records(path, rejects):
        try:
            if other := gold_elsewhere(record, "clusters", _KNOWN):
                raise DataError(
                    f"no gold in 'clusters', is it {other[:40]!r}? Fields there: "
                    f"{fields_of(record)}. Expected {COREF}"
                )
            found.append(document_of(record, where, shared))
        except DataError as error:
            rejects.add(_key(record, where), where, str(error).removeprefix(f"{where}: "))
    rejects.check(path, len(found))
    return found


def _records(path: str | Path, rejects: Rejects):
    for number, record in read_objects(path):
        where = f"{path}:{number}"
        if isinstance(record, UnreadableLine):
            rejects.add(where, where, record.reason, record.excerpt)
        else:
            yield where, record


def _key(record: dict[str, Any], where: str) -> str:
    return str(record.get("doc_key") or record.get("id") or where)


def _genre(record: dict[str, Any], key: str, where: str) -> str | None:
    genre = record.get("genre")
    if genre is not None and not isinstance(genre, str):
        raise DataError(f"{where}: 'genre' must be a string, got {genre!r}")
    return genre or genre_of(key)


def document_of(record: dict[str, Any], where: str, shared: Shared = "keep") -> Document:
    """The document of one record in any of the layouts.

    Args:
        where: for messages; also the id of a record that has none.

    Raises:
        DataError: a field is missing, has another type, or does not fit the others.
    """
    if "subtoken_map" in record:
        return _from_pieces(record, where, shared)
    key = _key(record, where)
    if "sentences" in record:
        sentences = _nested(record, "sentences", where)
    elif "words" in record:
        sentences = _sentences_of(record["words"], where)
    elif isinstance(record.get("text"), str):
        if record.get("speakers") or record.get("clusters"):
            raise DataError(
                f"{where}: speakers and clusters need words, not a text. Expected {COREF}"
            )
        return from_text(key, record["text"], genre=_genre(record, key, where))
    else:
        raise DataError(
            f"{where}: a document needs 'text', 'words' or 'sentences'; fields there: "
            f"{fields_of(record)}. Expected {COREF}"
        )
    words = sum(map(len, sentences))
    return from_words(
        key,
        sentences,
        _clusters(record, words, where),
        _speakers(record, words, where),
        _genre(record, key, where),
        shared,
    )


def _from_pieces(record: dict[str, Any], where: str, shared: Shared) -> Document:
    """The document of a record in the original layout; its segments are forgotten."""
    key = _key(record, where)
    segments = [segment for segment in _nested(record, "sentences", where) if segment]
    flat = [piece for segment in segments for piece in segment]
    words = _numbers(record, "subtoken_map", len(flat), where)
    sentences = _numbers(record, "sentence_map", len(flat), where)
    special = _specials(segments, where)
    kept = np.flatnonzero(~special)
    if not len(kept):
        raise DataError(f"{where}: document {key} has no words")
    # Numbers of the file may skip; ours do not.
    word_of, sentence_of = (_consecutive(numbers[kept], where) for numbers in (words, sentences))
    sizes = np.bincount(word_of)
    firsts = np.cumsum(sizes) - sizes
    pieces = tuple(flat[place] for place in kept)
    speakers = _speakers(record, len(flat), where)
    new_place = np.cumsum(~special) - 1
    spans = []
    for cluster in _clusters(record, len(flat), where):
        for first, last in cluster:
            if special[first] or special[last]:
                raise DataError(f"{where}: mention [{first}, {last}] begins or ends at a special")
        spans.append([(word_of[new_place[a]], word_of[new_place[b]]) for a, b in cluster])
    return Document(
        key,
        tuple(_word(pieces[f : f + n]) for f, n in zip(firsts, sizes, strict=True)),
        tuple(sentence_of[firsts].tolist()),
        tuple(speakers[kept[f]] for f in firsts) if speakers and any(speakers) else None,
        _genre(record, key, where),
        sorted_clusters(spans, shared)[0],
    )


def _specials(segments: Sequence[Sequence[str]], where: str) -> np.ndarray:
    marks = []
    for number, segment in enumerate(segments):
        if len(segment) < 2:
            raise DataError(f"{where}: segment {number} lacks its [CLS] and [SEP]")
        marks += [True, *[False] * (len(segment) - 2), True]
    return np.array(marks, dtype=bool)


def _consecutive(numbers: np.ndarray, where: str) -> np.ndarray:
    steps = np.diff(numbers)
    if (steps < 0).any():
        place = int(np.flatnonzero(steps < 0)[0])
        raise DataError(f"{where}: word or sentence numbers fall after piece {place}")
    return np.append(0, np.cumsum(steps > 0))


def _word(pieces: Sequence[str]) -> str:
    return pieces[0] + "".join(piece.removeprefix(_CONTINUATION) for piece in pieces[1:])


def _nested(record: dict[str, Any], name: str, where: str) -> list[list[str]]:
    value = record.get(name)
    if not isinstance(value, list) or not all(
        isinstance(row, list) and all(isinstance(word, str) for word in row) for row in value
    ):
        raise DataError(f"{where}: {name!r} must be there, a list of lists of strings")
    return value


def _sentences_of(words: Any, where: str) -> list[list[str]]:
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise DataError(f"{where}: 'words' must be a list of strings that are not empty")
    return cut_sentences(words)


def _numbers(record: dict[str, Any], name: str, length: int, where: str) -> np.ndarray:
    value = record.get(name)
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise DataError(f"{where}: {name!r} must be a list of integers")
    if len(value) != length:
        raise DataError(f"{where}: {name!r} has {len(value)} entries for {length} pieces")
    return np.array(value, dtype=np.int64)


def _speakers(record: dict[str, Any], length: int, where: str) -> list[str | None] | None:
    value = record.get("speakers")
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"{where}: 'speakers' must be a list, got {value!r}")
    flat = [name for row in value for name in (row if isinstance(row, list) else [row])]
    if len(flat) != length:
        raise DataError(f"{where}: {len(flat)} speakers for {length} words or pieces")
    return [
        None if speaker is None or str(speaker) in _NOBODY else str(speaker) for speaker in flat
    ]


def _clusters(record: dict[str, Any], length: int, where: str) -> list[list[Span]]:
    found = []
    clusters = record.get("clusters") or []
    if not clusters and record.get("mention_clusters"):
        clusters = _of_sentences(record, where)
    if not isinstance(clusters, list):
        raise DataError(f"{where}: 'clusters' must be a list, got {clusters!r}")
    for cluster in clusters:
        mentions = []
        for mention in cluster if isinstance(cluster, list) else [cluster]:
            pair = mention if isinstance(mention, (list, tuple)) else ()
            if len(pair) != 2 or not all(type(end) is int for end in pair):
                raise DataError(f"{where}: a mention must be [first, last], got {mention!r}")
            if not 0 <= pair[0] <= pair[1] < length:
                raise DataError(f"{where}: mention {list(pair)} is out of range 0..{length - 1}")
            mentions.append((pair[0], pair[1]))
        found.append(mentions)
    return sorted((cluster for cluster in found if cluster), key=_appearance)


def _of_sentences(record: dict[str, Any], where: str) -> list[list[list[int]]]:
    """PreCo's clusters in words of the document."""
    ends = list(itertools.accumulate(map(len, _nested(record, "sentences", where)), initial=0))
    try:
        return [
            [[ends[s] + first, ends[s] + end - 1] for s, first, end in cluster if ends[s + 1] >= 0]
            for cluster in record["mention_clusters"]
        ]
    except (IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: 'mention_clusters' must hold [sentence, first, end]: {error}"
        ) from None


def _appearance(cluster: list[Span]) -> tuple[int, bool, int]:
    """Where a cluster begins in the CoNLL-2012 file that would be written of the document."""
    return min((first, first != last, -last) for first, last in cluster)
