"""What is to be prepared, and which parts are finished, as files in the staging directory.

`job.json` says everything a process needs to do any part of the work, here or on another machine
that sees the same files. A finished part is a set of files and a marker, written last, with their
digests and the job's key; parts of another job, or damaged ones, count as not there.

Parts: `count` and `encode` of each unit, and the tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from spanbert_ext.data.annotators import Annotator, load_annotator
from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.sources import Source
from spanbert_ext.data.storage import DigestedFile, empty, write_whole
from spanbert_ext.data.units import Extent, Unit
from spanbert_ext.errors import DataError
from spanbert_ext.files import digest_bytes, digest_file, temporary
from spanbert_ext.text.vocabulary import VocabularyInfo, read_json

JOB = "job.json"
PARTS = "parts"
TOKENIZER_PART = "tokenizer"
_MARKER = "done"


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A preparation in a staging directory.

    Args:
        directory: the staging directory.
        config: as asked.
        sources, units: what to read, in order.
        origin: what decides the output, as the sidecar records it.
        key: digest of what decides the parts.
    """

    directory: Path
    config: PrepareConfig
    sources: tuple[Source, ...]
    units: tuple[Unit, ...]
    origin: Mapping
    key: str

    @classmethod
    def begin(
        cls,
        directory: Path,
        config: PrepareConfig,
        sources: list[Source],
        units: list[Unit],
        origin: Mapping,
    ) -> Job:
        """Write job.json; what another job left in the directory is removed, and what a killed
        process did not finish, unless Slurm may still be at it."""
        versions = [importlib.metadata.version("tokenizers"), config.unit_bytes]
        key = digest_bytes(json.dumps([origin, versions], sort_keys=True).encode("ascii"))
        job = cls(directory, config, tuple(sources), tuple(units), origin, key)
        if not job._is_in(directory):
            empty(directory)
        (directory / PARTS).mkdir(exist_ok=True)
        if config.executor != "slurm":
            for left in (directory / PARTS).glob("*/*.part"):
                left.unlink()
        described = {
            "key": key,
            "origin": origin,
            "config": dataclasses.asdict(config),
            "sources": [dataclasses.asdict(s) | {"path": str(s.path)} for s in sources],
            "units": units,
        }
        write_whole(directory / JOB, json.dumps(described).encode("ascii"))
        return job

    def _is_in(self, directory: Path) -> bool:
        try:
            return read_json(directory / JOB).get("key") == self.key
        except (FileNotFoundError, DataError):
            return False

    @classmethod
    def open(cls, directory: Path) -> Job:
        """The job that `begin` wrote."""
        found = read_json(directory / JOB)
        return cls(
            directory,
            PrepareConfig(**found["config"]),
            tuple(Source(**s | {"path": Path(s["path"])}) for s in found["sources"]),
            tuple(tuple(Extent(*extent) for extent in unit) for unit in found["units"]),
            found["origin"],
            found["key"],
        )

    def path(self, part: str, name: str) -> Path:
        """A file of a finished part."""
        return self.directory / PARTS / part / name

    def finished(self, part: str) -> dict | None:
        """The result of a part; None where it is missing, damaged or of another job."""
        try:
            marker = read_json(self.path(part, _MARKER))
            if marker["key"] != self.key:
                return None
            for name, digest in marker["files"].items():
                if digest_file(self.path(part, name)) != digest:
                    return None
            return marker["result"]
        except (OSError, DataError, KeyError):
            return None

    @contextlib.contextmanager
    def writing(self, part: str, names: Iterable[str]) -> Iterator[tuple[dict, dict]]:
        """(name -> DigestedFile to write, dict to put the result in); the part is finished when the
        block ends well."""
        self.path(part, "").mkdir(exist_ok=True)
        result: dict = {}
        unfinished = {name: temporary(self.path(part, name)) for name in names}
        with contextlib.ExitStack() as stack:
            files = {name: DigestedFile(path) for name, path in unfinished.items()}
            for file in files.values():
                stack.callback(file.close)
            yield files, result
        for name, path in unfinished.items():
            os.replace(path, self.path(part, name))
        digests = {name: file.digest for name, file in files.items()}
        marker = {"key": self.key, "files": digests, "result": result}
        write_whole(self.path(part, _MARKER), json.dumps(marker).encode("ascii"))

    def write_tokenizer(self, contents: Mapping[str, bytes]) -> None:
        """Finish the tokenizer's part."""
        with self.writing(TOKENIZER_PART, contents) as (files, _):
            for name, content in contents.items():
                files[name].write(content)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Name -> content of the finished tokenizer directory."""
        folder = self.path(TOKENIZER_PART, "")
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != _MARKER}

    @functools.cached_property
    def tokenizer(self):
        """The finished tokenizer, a `tokenizers.Tokenizer`."""
        from spanbert_ext.data.tokenizer import load_tokenizer

        tokenizer, _ = load_tokenizer(self.path(TOKENIZER_PART, ""), self.config.lowercase)
        # Text that happens to spell "[MASK]" must stay text.
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def vocabulary(self) -> VocabularyInfo:
        """Ids and word boundaries of the finished tokenizer."""
        return VocabularyInfo.from_tokenizer(self.path(TOKENIZER_PART, ""))

    @functools.cached_property
    def annotate(self) -> Annotator:
        """What finds candidate spans."""
        return load_annotator(self.config)


def unit_part(stage: str, number: int) -> str:
    """Name of a unit's part; stage is `count` or `encode`."""
    return f"{number:05d}.{stage}"


def finished_parts(directory: Path) -> bool:
    """Whether a staging directory holds a finished part."""
    return any((directory / PARTS).glob(f"*/{_MARKER}"))
