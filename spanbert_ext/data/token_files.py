"""Token files in datatrove's layout.

`NNNNN.ds` holds the pieces of documents laid end to end, little-endian uint16, or uint32 for
vocabularies beyond 65536 ids; `.ds.index` the document ends, in pieces, little-endian uint64;
`.ds.metadata` three lines of text: tokenizer name, `|`, bytes per piece; number of pieces; the
number for people. Where candidate spans were asked for, `NNNNN.ds.entity` and `NNNNN.ds.phrase`
hold one byte for each piece: 0 outside, 1 begins a span, 2 continues it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spanbert_ext.data.storage import DigestedFile, check_size
from spanbert_ext.errors import DataError
from spanbert_ext.files import digest_bytes

INDEX_DTYPE = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian dtype that holds every id of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """Counts and digests of one token file, as the sidecar records them."""

    name: str
    documents: int
    tokens: int
    digest: str
    index_digest: str


class TokenWriter:
    """Lays documents end to end in token files; a document never crosses from one to the next.

    Args:
        directory: existing directory.
        vocab_size: decides the bytes per piece.
        tokenizer_name: first line of the metadata.
        shard_tokens: a file is closed after the document that reaches this many pieces.
        kinds: of candidate spans, written as one byte a piece beside each token file.

    Attributes:
        shards: the finished token files.
        annotations: kind -> name and digest of the finished files of candidate spans.
    """

    def __init__(
        self,
        directory: Path,
        vocab_size: int,
        tokenizer_name: str,
        shard_tokens: int,
        kinds: Sequence[str] = (),
    ):
        self.directory = directory
        self.dtype = token_dtype(vocab_size)
        self.tokenizer_name = tokenizer_name
        self.shard_tokens = shard_tokens
        self.shards: list[ShardInfo] = []
        self.annotations: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
        self._files: dict[str, DigestedFile] = {}

    def extend(self, tokens: BinaryIO, ends: np.ndarray, candidates: Mapping[str, BinaryIO]):
        """Append documents.

        Args:
            tokens: stream of their pieces in this writer's dtype.
            ends: [D] uint64 document ends in `tokens`, rising strictly.
            candidates: kind -> stream of one byte for each piece.
        """
        done, base = 0, 0
        while done < ends.size:
            if not self._files:
                self._open()
            room = max(0, self.shard_tokens - self._tokens)
            stop = min(int(np.searchsorted(ends, np.uint64(base + room))) + 1, ends.size)
            count = int(ends[stop - 1]) - base
            self._files[""].copy(tokens, count * self.dtype.itemsize)
            for kind, stream in candidates.items():
                self._files[kind].copy(stream, count)
            self._ends.append(ends[done:stop] - np.uint64(base) + np.uint64(self._tokens))
            self._tokens += count
            done, base = stop, base + count
            if self._tokens >= self.shard_tokens:
                self.finish()

    def finish(self) -> None:
        """Write the index and metadata of the last file."""
        if not self._files:
            return
        self.close()
        ends = np.concatenate(self._ends).astype(INDEX_DTYPE)
        (self.directory / f"{self._name}.index").write_bytes(ends.tobytes())
        (self.directory / f"{self._name}.metadata").write_text(
            f"{self.tokenizer_name}|{self.dtype.itemsize}\n"
            f"{self._tokens}\n{_for_people(self._tokens)}",
            encoding="utf-8",
        )
        self.shards.append(
            ShardInfo(
                self._name,
                ends.size,
                self._tokens,
                self._files[""].digest,
                digest_bytes(ends.tobytes()),
            )
        )
        for kind, files in self.annotations.items():
            files[annotation_name(self._name, kind)] = self._files[kind].digest
        self._files = {}

    def close(self) -> None:
        """Close the open files, if any, without finishing them, as after a failure."""
        for file in self._files.values():
            file.close()

    def _open(self) -> None:
        self._name = f"{len(self.shards):05d}.ds"
        self._files[""] = DigestedFile(self.directory / self._name)
        for kind in self.annotations:
            self._files[kind] = DigestedFile(self.directory / annotation_name(self._name, kind))
        self._ends: list[np.ndarray] = []
        self._tokens = 0


def annotation_name(shard_name: str, kind: str) -> str:
    """File of a kind's candidate spans beside a token file."""
    return f"{shard_name}.{kind}"


def _for_people(count: int) -> str:
    value, units = float(count), ["T", "kT", "MT", "GT"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """One token file, mapped: tokens [T] uint16 or uint32, ends [D] uint64, both read-only."""

    path: Path
    tokens: np.ndarray
    ends: np.ndarray

    @classmethod
    def open(cls, path: Path, dtype: np.dtype, documents: int, tokens: int) -> Shard:
        """Map a token file after checking sizes and index against what the sidecar recorded.

        Raises:
            DataError: a file is missing, has another size, or the index does not rise to the number
                of pieces.
        """
        index_path = path.with_name(path.name + ".index")
        check_size(path, tokens * dtype.itemsize)
        check_size(index_path, documents * INDEX_DTYPE.itemsize)
        ends = np.memmap(index_path, INDEX_DTYPE, mode="r")
        if ends[-1] != tokens or ends[0] == 0 or not (ends[1:] > ends[:-1]).all():
            raise DataError(
                f"{index_path}: document ends must rise strictly to {tokens}; the index is "
                "damaged, prepare or copy it again"
            )
        return cls(path, np.memmap(path, dtype, mode="r"), ends)
