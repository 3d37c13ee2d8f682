"""Text files to documents, streaming: at most one line or one parquet batch is held in memory.

A document comes as portions of text, the last of which says so. Portions are cut at white space,
which no pre-tokenizer joins across; those after the first begin with the space, as byte-level
vocabularies need it.

A faulty record is a line of .txt or .jsonl, or a row of .parquet. Kinds of fault, as counted:
not_utf8, nul, long_line, bad_json, no_text, truncated_gzip, bad_parquet.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.sources import Source
from spanbert_ext.errors import ConfigError, DataError

# Characters of a portion: large enough to amortise a call, small enough to share out to threads.
_PORTION = 1 << 16
_MAX_REJECTED_SHARE = 0.01
_PARQUET_ROWS = 256
_BOM = b"\xef\xbb\xbf"


class Portion(NamedTuple):
    """Part of a document's text."""

    text: str
    ends_document: bool


@dataclasses.dataclass(frozen=True)
class _Fault:
    """A record that cannot be used; `unread` if the rest of its line is still in the stream."""

    kind: str
    reason: str
    number: int
    unread: bool = False


class Reader:
    """Reads sources by the rules of a `PrepareConfig` and counts what it meets.

    Args:
        config: which field, what a document is, what to do with faults.
        log: receives a dict for each skipped record.
        progress: receives the number of bytes read since it was called last.
    """

    def __init__(
        self,
        config: PrepareConfig,
        log: Callable[[dict], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ):
        self.config = config
        self.records = 0
        self.empty_files = 0
        self.rejected = collections.Counter()
        self._log = log or (lambda entry: None)
        self._progress = progress or (lambda count: None)
        self._first_reject = ""

    def portions(self, sources: list[Source]) -> Iterator[Portion]:
        """The documents of all sources. Portions without visible text occur; empty documents too.

        Raises:
            DataError: a faulty record where `on_error` is `error`; more than 1 % of them where it
                is `skip`.
        """
        readers = {"txt": self._read_txt, "jsonl": self._read_jsonl, "parquet": self._read_parquet}
        for source in sources:
            if source.size == 0:
                self.empty_files += 1
                continue
            before = os.stat(source.path)
            try:
                yield from readers[source.kind](source)
            except OSError as error:
                raise DataError(
                    f"{source.path}: cannot be read: {error.strerror or error}"
                ) from None
            after = os.stat(source.path)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DataError(
                    f"{source.path}: changed while it was read; start again when it is finished"
                )
        total = sum(self.rejected.values())
        if total > _MAX_REJECTED_SHARE * self.records:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.rejected.items()))
            raise DataError(
                f"{total} of {self.records} records are faulty ({kinds}), more than 1 %; the first "
                f"is {self._first_reject}"
            )

    def _reject(self, source: Source, fault: _Fault) -> None:
        where = f"{source.path}:{fault.number}"
        if self.config.on_error == "error":
            raise DataError(
                f"{where}: {fault.reason}; mend it, or pass over such records with on_error=skip"
            )
        self.rejected[fault.kind] += 1
        self._first_reject = self._first_reject or f"{where}: {fault.reason}"
        entry = {
            "file": source.name,
            "line": fault.number,
            "kind": fault.kind,
            "reason": fault.reason,
        }
        self._log(entry)

    def _read_txt(self, source: Source) -> Iterator[Portion]:
        whole_file = self.config.documents == "file"
        document, seen = _Document(), False
        for line in self._lines(source):
            if isinstance(line, _Fault):
                self._reject(source, line)
                yield from document.end()
            elif line and not line.isspace():
                seen = True
                yield from document.add(line)
            elif not whole_file:
                yield from document.end()
        yield from document.end()
        self.empty_files += not seen

    def _read_jsonl(self, source: Source) -> Iterator[Portion]:
        for number, line in enumerate(self._lines(source), 1):
            if isinstance(line, str):
                if not line or line.isspace():
                    continue
                line = _json_text(line, self.config.text_field, number)
            if isinstance(line, _Fault):
                self._reject(source, line)
            else:
                yield from _split(line)

    def _read_parquet(self, source: Source) -> Iterator[Portion]:
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
                            self._reject(source, text)
                        else:
                            yield from _split(text)
                    self._progress(source.size * len(batch) // rows)
        except (pyarrow.ArrowException, OSError) as error:
            reason = f"not a readable parquet file: {str(error).splitlines()[0]}"
            self._reject(source, _Fault("bad_parquet", reason, number + 1))

    def _lines(self, source: Source) -> Iterator[str | _Fault]:
        """Lines without their ends, or what is wrong with them."""
        with open(source.path, "rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if source.compressed else raw
            number, told, unread = 0, 0, False
            while True:
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
                yield _decode(line, number) if isinstance(line, bytes) else line
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


def _decode(line: bytes, number: int) -> str | _Fault:
    if number == 1:
        line = line.removeprefix(_BOM)
    if b"\0" in line:
        hint = " (is it UTF-16?)" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
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


class _Document:
    """Joins lines by spaces into portions."""

    def __init__(self):
        self._lines: list[str] = []
        self._length = 0
        self._begun = False

    def add(self, line: str) -> Iterator[Portion]:
        self._lines.append(line.strip())
        self._length += len(line)
        if self._length >= _PORTION:
            yield from self._flush(ends_document=False)

    def end(self) -> Iterator[Portion]:
        if self._begun or self._lines:
            yield from self._flush(ends_document=True)
        self._begun = False

    def _flush(self, ends_document: bool) -> Iterator[Portion]:
        text = " ".join(self._lines)
        if self._begun and text:
            text = " " + text
        self._lines, self._length, self._begun = [], 0, True
        yield from _split(text, ends_document)


def _split(text: str, ends_document: bool = True) -> Iterator[Portion]:
    """Portions of a text, cut in front of single spaces between visible characters."""
    start = 0
    while len(text) - start > _PORTION:
        cut = text.find(" ", start + _PORTION)
        while 0 <= cut < len(text) - 1 and (text[cut - 1].isspace() or text[cut + 1].isspace()):
            cut = text.find(" ", cut + 1)
        if not 0 <= cut < len(text) - 1:
            break
        yield Portion(text[start:cut], False)
        start = cut
    yield Portion(text[start:], ends_document)
