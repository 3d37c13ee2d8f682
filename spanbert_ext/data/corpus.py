"""A prepared corpus: token files, the tokenizer that made them, and a sidecar that describes both.

* corpus.json: settings, inputs, counts, vocabulary hash, size and digest of every file
* tokenizer/: loads in transformers
* tokens/: *.ds, *.ds.index, *.ds.metadata, with candidate spans *.ds.entity and *.ds.phrase
  (token_files.py)
* rejects.jsonl: what was skipped, where on_error is `skip`
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spanbert_ext.data.storage import check_size
from spanbert_ext.data.token_files import Shard, annotation_name, token_dtype
from spanbert_ext.errors import DataError
from spanbert_ext.files import digest_bytes, digest_file
from spanbert_ext.text.vocabulary import VocabularyInfo, read_json

SIDECAR = "corpus.json"
TOKENIZER = "tokenizer"
TOKENS = "tokens"
FORMAT_VERSION = 1


def vocabulary_hash(pieces: Sequence[str]) -> str:
    """Hash of the pieces in id order: equal for tokenizers whose ids mean the same."""
    return digest_bytes(json.dumps(list(pieces), ensure_ascii=True).encode("ascii"))


class PieceFiles:
    """One value for each piece of a corpus, in files that are mapped.

    Args:
        starts: [F + 1] int64 position of each file's first piece, then the number of pieces.
        files: [F] arrays.
    """

    def __init__(self, starts: np.ndarray, files: Sequence[np.ndarray]):
        self._starts, self._files = starts, files

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values at positions [start, stop) of one file: a read-only view.

        Raises:
            IndexError: the range is empty, outside the corpus or crosses from one file to the next.
        """
        file = int(np.searchsorted(self._starts, start, side="right")) - 1
        if not 0 <= start < stop <= self._starts[-1] or stop > self._starts[file + 1]:
            raise IndexError(
                f"[{start}, {stop}) is not inside one file of {self._starts[-1]} pieces"
            )
        base = int(self._starts[file])
        return self._files[file][start - base : stop - base]

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Values at [n] positions anywhere in the corpus."""
        files = np.searchsorted(self._starts, positions, side="right") - 1
        found = np.empty(positions.size, dtype=self._files[0].dtype)
        for number in np.unique(files):
            own = files == number
            found[own] = self._files[number][positions[own] - self._starts[number]]
        return found


class Corpus:
    """Read access to a prepared directory; files are mapped, never loaded whole. Use `Corpus.open`.

    Pieces are numbered through all files in their order ("positions"), documents likewise.
    """

    def __init__(self, path: Path, sidecar: dict, shards: list[Shard]):
        self.path = path
        self.sidecar = sidecar
        self.shards = shards
        ends = [int(shard.ends[-1]) for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(ends)]).astype(np.int64)
        self._tokens = PieceFiles(self._starts, [shard.tokens for shard in shards])

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a directory written by `prepare`.

        Raises:
            DataError: not a corpus, of another format, or with a missing, resized or inconsistent
                file.
        """
        path = Path(path)
        if not (path / SIDECAR).is_file():
            raise DataError(
                f"{path}: no corpus here ({SIDECAR} is missing); make one with `spanbert prepare`"
            )
        sidecar = read_json(path / SIDECAR)
        if sidecar.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path / SIDECAR}: format version {sidecar.get('format_version')!r} where this "
                f"release reads {FORMAT_VERSION}; prepare the corpus again"
            )
        try:
            for name, entry in sidecar["files"].items():
                check_size(path / name, entry["size"])
            dtype = token_dtype(sidecar["vocab_size"])
            shards = [
                Shard.open(
                    path / TOKENS / entry["name"], dtype, entry["documents"], entry["tokens"]
                )
                for entry in sidecar["shards"]
            ]
            counted = sum(entry["documents"] for entry in sidecar["shards"])
            consistent = shards and counted == sidecar["counts"]["documents"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path / SIDECAR}: damaged ({error!r}); prepare the corpus again"
            ) from None
        if not consistent:
            raise DataError(
                f"{path / SIDECAR}: the counts of its files do not add up; prepare it again"
            )
        return cls(path, sidecar, shards)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.sidecar["vocab_size"]

    @property
    def vocab_hash(self) -> str:
        """Hash of the pieces in id order."""
        return self.sidecar["vocab_hash"]

    @property
    def fingerprint(self) -> str:
        """Hash of vocabulary and pieces: equal exactly for corpora that train alike."""
        return self.sidecar["fingerprint"]

    @property
    def num_tokens(self) -> int:
        """Number of pieces."""
        return int(self._starts[-1])

    @property
    def num_documents(self) -> int:
        """Number of documents; none is empty."""
        return self.sidecar["counts"]["documents"]

    @property
    def validation_fraction(self) -> float:
        """Share held out for validation, as asked when the corpus was prepared."""
        return self.sidecar["settings"]["validation_fraction"]

    @property
    def facts(self) -> dict[str, int | float]:
        """What a model card says about the data a model has seen."""
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "vocab_size": self.vocab_size,
            "validation_fraction": self.validation_fraction,
        }

    @property
    def tokenizer_dir(self) -> Path:
        """Directory that transformers.AutoTokenizer loads."""
        return self.path / TOKENIZER

    @functools.cached_property
    def vocabulary(self) -> VocabularyInfo:
        """Special ids and word boundaries of the tokenizer."""
        return VocabularyInfo.from_tokenizer(self.tokenizer_dir)

    @functools.cached_property
    def document_ends(self) -> np.ndarray:
        """[D] int64 positions where documents end."""
        parts = [
            s.ends.astype(np.int64) + start
            for s, start in zip(self.shards, self._starts[:-1], strict=True)
        ]
        return np.concatenate(parts)

    @property
    def documents(self) -> Documents:
        """The documents as a sequence of id arrays."""
        return Documents(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Pieces at positions [start, stop) of one token file: a read-only view, uint16 or uint32.

        Raises:
            IndexError: the range is empty, outside the corpus or crosses from one file to the next.
        """
        return self._tokens.read(start, stop)

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Pieces at [n] positions anywhere in the corpus: [n] uint16 or uint32."""
        return self._tokens.gather(positions)

    def annotation(self, kind: str) -> PieceFiles:
        """Candidate spans: one uint8 for each piece, 0 outside, 1 begins a span, 2 continues it.

        Args:
            kind: `entity` or `phrase`.

        Raises:
            DataError: the corpus was prepared without them.
        """
        if kind not in self.sidecar.get("annotations", {}):
            raise DataError(
                f"{self.path}: no {kind} spans here; prepare a corpus with annotate={kind}"
            )
        paths = (s.path.with_name(annotation_name(s.path.name, kind)) for s in self.shards)
        return PieceFiles(self._starts, [np.memmap(path, np.uint8, mode="r") for path in paths])

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises DataError, naming the token file, where ids that were read are not in the
        vocabulary."""
        if ids.size == 0 or ids.max() < self.vocab_size:
            return
        for shard in self.shards:
            wrong = np.flatnonzero(shard.tokens >= self.vocab_size)
            if wrong.size:
                raise DataError(
                    f"{shard.path}: id {shard.tokens[wrong[0]]} at piece {wrong[0]} where the "
                    f"vocabulary has {self.vocab_size}; the file is damaged, prepare or copy it "
                    "again"
                )
        raise DataError(f"{self.path}: an id beyond the vocabulary of {self.vocab_size}")

    def verify(self) -> None:
        """Compare every file with its digest; DataError names the first that differs."""
        for name, entry in self.sidecar["files"].items():
            actual = digest_file(self.path / name)
            if actual != entry["digest"]:
                raise DataError(
                    f"{self.path / name}: digest {actual} where {entry['digest']} was written; the "
                    "file is damaged, prepare or copy it again"
                )

    def summary(self) -> str:
        """What the corpus holds and what was passed over, a few lines."""
        counts = self.sidecar["counts"]
        read = sum(entry["bytes"] for entry in self.sidecar["inputs"])
        unknown = counts["unknown_pieces"] / counts["tokens"]
        lines = [
            f"{counts['documents']:,} documents, {counts['tokens']:,} pieces ({unknown:.2%} "
            f"unknown), vocabulary of {self.vocab_size:,}",
            f"read: {len(self.sidecar['inputs']):,} files, {read / 1e6:,.1f} MB, "
            f"{counts['records']:,} lines or records; {counts['empty_files']:,} files and "
            f"{counts['empty_documents']:,} documents were empty",
        ]
        for kind, entry in self.sidecar.get("annotations", {}).items():
            lines.append(f"candidate spans, {kind}: {entry['spans']:,}")
        rejected = counts["rejected"]
        share = sum(rejected.values()) / max(1, counts["records"])
        lines.append(f"faulty records skipped: {sum(rejected.values()):,} ({share:.2%})")
        lines += [f"  {kind}: {count:,}" for kind, count in rejected.items()]
        return "\n".join(lines)


class Documents(Sequence):
    """Documents of a corpus by number: each a read-only [n] array of ids."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus

    def __len__(self) -> int:
        return self._corpus.num_documents

    def __getitem__(self, index: int) -> np.ndarray:
        number = range(len(self))[index]
        ends = self._corpus.document_ends
        return self._corpus.read(int(ends[number - 1]) if number else 0, int(ends[number]))
