"""Which files an input stands for, and what identifies each of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.files import digest_file

_SUFFIXES = {
    ".txt": ("txt", False),
    ".txt.gz": ("txt", True),
    ".jsonl": ("jsonl", False),
    ".jsonl.gz": ("jsonl", True),
    ".parquet": ("parquet", False),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """One input file; `name` identifies it independently of where it lies.

    Args:
        kind: txt, jsonl or parquet.
        size, mtime_ns: when it was found, to notice a change while it is read.
    """

    path: Path
    name: str
    kind: str
    compressed: bool
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, name: str) -> Source | None:
        """None where the suffix is not one that is read."""
        for suffix, (kind, compressed) in _SUFFIXES.items():
            if path.name.endswith(suffix):
                found = path.stat()
                return cls(path, name, kind, compressed, found.st_size, found.st_mtime_ns)
        return None

    def identity(self) -> dict:
        """Name, size and digest, as the sidecar records them."""
        try:
            return {"name": self.name, "bytes": self.size, "digest": digest_file(self.path)}
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def is_unchanged(self) -> bool:
        """Whether size and time of the last change are those found."""
        found = self.path.stat()
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)

    def lines_before(self, offset: int) -> int:
        """Lines that end in the first `offset` bytes; reads them."""
        count = 0
        with open(self.path, "rb") as stream:
            while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
                count += block.count(b"\n")
                offset -= len(block)
        return count


def find_sources(inputs: list[str], output: Path) -> list[Source]:
    """The files to read, in order; whatever lies in `output` is passed over.

    Raises:
        DataError: an input is missing or of an unknown kind, or a directory holds nothing to read.
        ConfigError: a file is named twice.
    """
    sources: list[Source] = []
    for given in inputs:
        path = Path(given)
        if not path.exists():
            raise DataError(f"{path}: no such file or directory")
        if path.is_dir():
            found = list(_walk(path, Path(os.path.abspath(output))))
            if not found:
                raise DataError(f"{path}: no {', '.join(_SUFFIXES)} file in this directory")
            sources += found
        elif source := Source.of(path, path.name):
            sources.append(source)
        else:
            raise DataError(f"{path}: unknown kind of file; expected {', '.join(_SUFFIXES)}")
    seen: set[Path] = set()
    for source in sources:
        real = source.path.resolve()
        if real in seen:
            raise ConfigError(f"inputs: {source.path} is named twice; its text would count twice")
        seen.add(real)
    return sources


def _walk(directory: Path, output: Path) -> Iterator[Source]:
    for parent, folders, files in os.walk(directory):
        folders[:] = sorted(
            f for f in folders if f[0] != "." and Path(os.path.abspath(parent), f) != output
        )
        for file in sorted(f for f in files if f[0] != "."):
            path = Path(parent, file)
            if source := Source.of(path, path.relative_to(directory).as_posix()):
                yield source
