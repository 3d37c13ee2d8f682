"""The work on one unit: count its words, or write its pieces. Runs in any process."""

from __future__ import annotations

import array
import collections
import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from spanbert_ext.data.candidates import BEGIN, mark_candidates
from spanbert_ext.data.job import Job, unit_part
from spanbert_ext.data.portions import Portion
from spanbert_ext.data.readers import Reader
from spanbert_ext.data.storage import DigestedFile
from spanbert_ext.data.token_files import INDEX_DTYPE, token_dtype
from spanbert_ext.data.tokenizer import count_words
from spanbert_ext.text.vocabulary import VocabularyInfo

# Characters given to the tokenizers library in one call; it shares them out to its threads.
_BATCH = 1 << 20

Progress = Callable[[int], None]


def run_unit(job: Job, stage: str, number: int, progress: Progress) -> dict:
    """The result of a unit's part, which is finished afterwards.

    Args:
        stage: `count` or `encode`.
        progress: receives the number of bytes read since it was called last.

    Raises:
        DataError: faulty input.
        OSError: a file cannot be written.
    """
    part = unit_part(stage, number)
    return job.finished(part) or _STAGES[stage](job, part, job.units[number], progress)


def _count(job: Job, part: str, unit, progress: Progress) -> dict:
    """`words`: a JSON object of word -> occurrences."""
    reader = Reader(job.config, job.sources, progress=progress)
    with job.writing(part, ["words"]) as (files, result):
        texts = (portion.text for portion in reader.portions(unit))
        words = count_words(texts, job.config.lowercase)
        files["words"].write(json.dumps(words, sort_keys=True).encode("ascii"))
        result.update(_read_counts(reader))
    return result


def _encode(job: Job, part: str, unit, progress: Progress) -> dict:
    """`tokens` and `ends` of the unit's documents, `rejects`, and each kind of candidate spans."""
    kinds = job.config.annotation_kinds
    with job.writing(part, ["tokens", "ends", "rejects", *kinds]) as (files, result):
        reader = Reader(
            job.config,
            job.sources,
            log=lambda entry: files["rejects"].write(_json_line(entry)),
            progress=progress,
        )
        writer = _UnitWriter(files, job.vocabulary)
        for batch in _batches(reader.portions(unit)):
            _encode_batch(job, batch, writer)
        files["ends"].write(np.asarray(writer.ends, dtype=INDEX_DTYPE).tobytes())
        result.update(_read_counts(reader))
        result["documents"] = len(writer.ends)
        result["empty_documents"] = writer.empty_documents
        result["unknown_pieces"] = writer.unknown_pieces
        result["spans"] = {kind: writer.spans[kind] for kind in kinds}
    return result


_STAGES = {"count": _count, "encode": _encode}


def _encode_batch(job: Job, batch: list[Portion], writer: _UnitWriter) -> None:
    kinds = job.config.annotation_kinds
    texts = [portion.text for portion in batch]
    # The fast variant keeps no offsets, which only annotations need.
    encode = job.tokenizer.encode_batch if kinds else job.tokenizer.encode_batch_fast
    for portion, encoding in zip(batch, encode(texts, add_special_tokens=False), strict=True):
        ids = np.asarray(encoding.ids, dtype=np.int64)
        marks = {}
        if kinds:
            spans = job.annotate(portion.text)
            begins = job.vocabulary.word_starts[ids]
            marks = mark_candidates(portion.text, spans, encoding.offsets, begins)
        writer.append(ids, {kind: marks[kind] for kind in kinds}, portion.ends_document)


class _UnitWriter:
    """Writes the documents of a unit end to end.

    Attributes:
        ends: where each document ends, in pieces.
        empty_documents: how many had no pieces; they are not written.
        unknown_pieces: how many pieces are the unknown token.
        spans: kind -> number of candidate spans.
    """

    def __init__(self, files: Mapping[str, DigestedFile], vocabulary: VocabularyInfo):
        self.ends = array.array("Q")
        self.empty_documents = 0
        self.unknown_pieces = 0
        self.spans: collections.Counter[str] = collections.Counter()
        self._files = files
        self._dtype = token_dtype(vocabulary.vocab_size)
        self._unknown = vocabulary.unk_id
        self._tokens = 0

    def append(
        self, ids: np.ndarray, candidates: Mapping[str, np.ndarray], ends_document: bool
    ) -> None:
        """Write [n] pieces of the current document, their marks for each kind and, perhaps, its
        end."""
        self._files["tokens"].write(ids.astype(self._dtype).tobytes())
        for kind, marks in candidates.items():
            self._files[kind].write(marks.tobytes())
            self.spans[kind] += int(np.count_nonzero(marks == BEGIN))
        self._tokens += ids.size
        if self._unknown is not None:
            self.unknown_pieces += int(np.count_nonzero(ids == self._unknown))
        if not ends_document:
            return
        if self._tokens == (self.ends[-1] if self.ends else 0):
            self.empty_documents += 1
        else:
            self.ends.append(self._tokens)


def _batches(portions: Iterator[Portion]) -> Iterator[list[Portion]]:
    batch, length = [], 0
    for portion in portions:
        batch.append(portion)
        length += len(portion.text) + 1
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _read_counts(reader: Reader) -> dict:
    return {
        "records": reader.records,
        "rejected": dict(reader.rejected),
        "first_reject": reader.first_reject,
        "seen": sorted(reader.seen),
    }


def _json_line(entry: dict) -> bytes:
    return (json.dumps(entry, sort_keys=True) + "\n").encode("ascii")
