"""Token files in datatrove's layout.

`NNNNN.ds` holds the pieces of documents laid end to end, little-endian uint16, or uint32 for
vocabularies beyond 65536 ids; `.ds.index` the document ends, in pieces, little-endian uint64;
`.ds.metadata` three lines of text: tokenizer name, `|`, bytes per piece; number of pieces; the
number for people.
"""

from __future__ import annotations

import array
import dataclasses
import sys
from pathlib import Path

import numpy as np

from spanbert_ext.data.storage import check_size, new_digest
from spanbert_ext.errors import DataError

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
    """Appends documents to token files; a document never crosses from one file to the next.

    Args:
        directory: existing directory.
        vocab_size: decides the bytes per piece.
        tokenizer_name: first line of the metadata.
        shard_tokens: a file is closed after the document that reaches this many pieces.
    """

    def __init__(self, directory: Path, vocab_size: int, tokenizer_name: str, shard_tokens: int):
        self.directory = directory
        self.dtype = token_dtype(vocab_size)
        self.tokenizer_name = tokenizer_name
        self.shard_tokens = shard_tokens
        self.shards: list[ShardInfo] = []
        self.empty_documents = 0
        self._stream = None

    def append(self, ids: np.ndarray, ends_document: bool) -> None:
        """Write pieces ([n] integers) of the current document and, perhaps, end it.

        A document without pieces is counted in `empty_documents` and not written.
        """
        if self._stream is None:
            self._open()
        if ids.size:
            data = ids.astype(self.dtype, copy=False).tobytes()
            self._stream.write(data)
            self._digest.update(data)
            self._tokens += ids.size
        if not ends_document:
            return
        if self._tokens == self._document_start:
            self.empty_documents += 1
            return
        self._ends.append(self._tokens)
        self._document_start = self._tokens
        if self._tokens >= self.shard_tokens:
            self._finish_shard()

    def finish(self) -> None:
        """Write the index and metadata of the last file."""
        if self._stream is None:
            return
        if self._tokens > self._document_start:
            raise ValueError(
                "finish() inside a document: its last piece must come with ends_document=True"
            )
        if self._tokens:
            self._finish_shard()
        else:
            self._stream.close()
            Path(self._stream.name).unlink()
            self._stream = None

    def close(self) -> None:
        """Close the open file, if any, without finishing it, as after a failure."""
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> None:
        self._name = f"{len(self.shards):05d}.ds"
        # Open across calls; `close` and `_finish_shard` close it.
        self._stream = open(self.directory / self._name, "wb", buffering=1 << 20)  # noqa: SIM115
        self._digest = new_digest()
        self._ends = array.array("Q")
        self._tokens = 0
        self._document_start = 0

    def _finish_shard(self) -> None:
        self._stream.close()
        self._stream = None
        if sys.byteorder == "big":
            self._ends.byteswap()
        index = self._ends.tobytes()
        index_digest = new_digest()
        index_digest.update(index)
        (self.directory / f"{self._name}.index").write_bytes(index)
        (self.directory / f"{self._name}.metadata").write_text(
            f"{self.tokenizer_name}|{self.dtype.itemsize}\n"
            f"{self._tokens}\n{_for_people(self._tokens)}",
            encoding="utf-8",
        )
        self.shards.append(
            ShardInfo(
                self._name,
                len(self._ends),
                self._tokens,
                self._digest.hexdigest(),
                index_digest.hexdigest(),
            )
        )


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
