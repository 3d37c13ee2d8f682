"""Text files to documents, streaming: at most one line or one parquet batch is held in memory.

A faulty record is a line of .txt or .jsonl, or a row of .parquet. Kinds of fault, as counted:
not_utf8, nul, long_line, bad_json, no_text, truncated_gzip, bad_parquet.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.portions import Document, Portion, split_text
from spanbert_ext.data.sources import Source
from spanbert_ext.data.units import Extent
from spanbert_ext.errors import ConfigError, DataError

_PARQUET_ROWS = 256
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class _Fault:
    """A record that cannot be used; `unread` if the rest of its line is still in the stream."""

    kind: str
    reason: str
    number: int
    unread: bool = False


class Reader:
    """Reads extents of sources by the rules of a `PrepareConfig` and counts what it meets.

    Args:
        config: which field, what a document is, what to do with faults.
        sources: what extents refer to.
        log: receives a dict for each skipped record.
        progress: receives the number of bytes read since it was called last.

    Attributes:
        records: lines of .txt and .jsonl, rows of .parquet.
        rejected: kind of fault -> records skipped for it.
        seen: numbers of the sources that hold text or are not .txt.
        first_reject: where and why, "" without any.
    """

    def __init__(
        self,
        config: PrepareConfig,
        sources: Sequence[Source],
        log: Callable[[dict], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ):
        self.config = config
        self.records = 0
        self.rejected = collections.Counter()
        self.seen: set[int] = set()
        self.first_reject = ""
        self._sources = sources
        self._log = log or (lambda entry: None)
        self._progress = progress or (lambda count: None)

    def portions(self, extents: Iterable[Extent]) -> Iterator[Portion]:
        """The documents of some extents. Portions without visible text occur; empty documents too.

        Raises:
            DataError: a file cannot be read or was changed, or a record is faulty where `on_error`
                is `error`.
        """
        readers = {"txt": self._read_txt, "jsonl": self._read_jsonl, "parquet": self._read_parquet}
        for extent in extents:
            source = self._sources[extent.source]
            if source.size == 0:
                continue
            try:
                yield from readers[source.kind](source, extent)
                unchanged = source.is_unchanged()
            except OSError as error:
                raise DataError(
                    f"{source.path}: cannot be read: {error.strerror or error}"
                ) from None
            if not unchanged:
                raise DataError(
                    f"{source.path}: changed while it was read; start again when it is finished"
                )

    def _reject(self, source: Source, extent: Extent, fault: _Fault) -> None:
        line = fault.number + source.lines_before(extent.start)
        where = f"{source.path}:{line}"
        if self.config.on_error == "error":
            raise DataError(
                f"{where}: {fault.reason}; mend it, or pass over such records with on_error=skip"
            )
        self.rejected[fault.kind] += 1
        self.first_reject = self.first_reject or f"{where}: {fault.reason}"
        entry = {"file": source.name, "line": line, "kind": fault.kind, "reason": fault.reason}
        self._log(entry)

    def _read_txt(self, source: Source, extent: Extent) -> Iterator[Portion]:
        whole_file = self.config.documents == "file"
        document = Document()
        for line in self._lines(source, extent):
            if isinstance(line, _Fault):
                self._reject(source, extent, line)
                yield from document.end()
            elif line and not line.isspace():
                self.seen.add(extent.source)
                yield from document.add(line)
            elif not whole_file:
                yield from document.end()
        yield from document.end()

    def _read_jsonl(self, source: Source, extent: Extent) -> Iterator[Portion]:
        self.seen.add(extent.source)
        for number, line in enumerate(self._lines(source, extent), 1):
            if isinstance(line, str):
                if not line or line.isspace():
                    continue
                line = _json_text(line, self.config.text_field, number)
            if isinstance(line, _Fault):
                self._reject(source, extent, line)
            else:
                yield from split_text(line)

    def _read_parquet(self, source: Source, extent: Extent) -> Iterator[Portion]:
        self.seen.add(extent.source)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(
                f"{source.path}: reading .parquet needs pyarrow; install it with `pip install "
                "pyarrow`"
            ) from None
        number, field = 0, self.config.text_field
        try:
            with pyarrow.parquet.ParquetFile(source.path) as file:
                _check_column(source, file.schema_arrow, field)
                rows = max(1, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                    for value in batch.column(0):
                        number += 1
                        self.records += 1
                        text = _parquet_text(value, number, self.config.max_line_bytes)
                        if isinstance(text, _Fault):
                            self._reject(source, extent, text)
                        else:
                            yield from split_text(text)
                    self._progress(source.size * len(batch) // rows)
        except (pyarrow.ArrowException, OSError) as error:
            reason = f"not a readable parquet file: {str(error).splitlines()[0]}"
            self._reject(source, extent, _Fault("bad_parquet", reason, number + 1))

    def _lines(self, source: Source, extent: Extent) -> Iterator[str | _Fault]:
        """Lines without their ends, or what is wrong; numbered from the extent's start."""
        with open(source.path, "rb") as raw:
            raw.seek(extent.start)
            stream = gzip.GzipFile(fileobj=raw) if source.compressed else raw
            number, told, unread = 0, extent.start, False
            # The end of compressed data shows in the data alone.
            while source.compressed or raw.tell() < extent.stop:
                number += 1
                try:
                    if unread:  # behind the yield: where faults stop, nothing more is read
                        _skip_line(stream)
                    line = _next_line(stream, self.config.max_line_bytes, number)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    self.records += 1
                    yield _Fault(
                        "truncated_gzip", f"truncated or damaged gzip data ({error})", number
                    )
                    return
                if line is None:
                    return
                self.records += 1
                first = number == 1 and extent.start == 0
                yield _decode(line, number, first) if isinstance(line, bytes) else line
                unread = isinstance(line, _Fault) and line.unread
                if raw.tell() - told >= 1 << 20:
                    self._progress(raw.tell() - told)
                    told = raw.tell()


def _next_line(stream: BinaryIO, limit: int, number: int) -> bytes | _Fault | None:
    line = stream.readline(limit + 2)  # room for a line end of two bytes
    if not line:
        return None
    content = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(content) <= limit:
        return content
    reason = f"a line of more than max_line_bytes = {limit} bytes"
    return _Fault("long_line", reason, number, unread=not line.endswith(b"\n"))


def _skip_line(stream: BinaryIO) -> None:
    while (part := stream.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _decode(line: bytes, number: int, first: bool) -> str | _Fault:
    if first:
        line = line.removeprefix(_BOM)
    if b"\0" in line:
        hint = " (is it UTF-16?)" if first and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return _Fault("nul", f"a NUL byte in the text{hint}", number)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return _Fault("not_utf8", reason, number)


def _json_text(line: str, field: str, number: int) -> str | _Fault:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _Fault("bad_json", f"not JSON: {error}", number)
    if not isinstance(record, dict):
        return _Fault("bad_json", f"expected a JSON object, got {type(record).__name__}", number)
    if field not in record:
        there = ", ".join(repr(name[:40]) for name in list(record)[:8]) or "none"
        reason = f"no field {field!r}, fields there: {there}; choose with text_field"
        return _Fault("no_text", reason, number)
    return _checked_text(record[field], field, number)


def _checked_text(text, field: str, number: int) -> str | _Fault:
    if not isinstance(text, str):
        found = "nothing" if text is None else type(text).__name__
        return _Fault("no_text", f"expected text in {field!r}, got {found}", number)
    if "\0" in text:
        return _Fault("nul", "a NUL character in the text", number)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return _Fault("not_utf8", f"a lone surrogate at character {error.start + 1}", number)
    return text


def _check_column(source: Source, schema, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        raise DataError(
            f"{source.path}: no column {field!r}; it has {', '.join(schema.names)}: choose with "
            "text_field"
        )
    kind = schema.field(field).type
    strings = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if not any(is_string(kind) for is_string in strings):
        raise DataError(f"{source.path}: column {field!r} holds {kind}, expected string")


def _parquet_text(value, number: int, limit: int) -> str | _Fault:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return _Fault("not_utf8", f"not UTF-8: {error.reason} at byte {error.start + 1}", number)
    if isinstance(text, str) and len(text) > limit:
        return _Fault("long_line", f"a value of more than max_line_bytes = {limit} bytes", number)
    return _checked_text(text, "the text column", number)
