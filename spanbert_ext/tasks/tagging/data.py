"""CoNLL files: a word and its tag on a line, a blank line between sentences.

Columns are parted by TABs, or by blanks where most lines have no TAB; there may be others than the
two that are read, but every line has the same number, not counting what is empty at the end of all
lines. Nothing is quoted. `-DOCSTART-` begins a
document. A line that begins with `# ` is a comment, unless it has the file's number of columns and
a tag in its place. The scheme is the one that most sentences of the file keep to (`schemes`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_ext.errors import DataError
from spanbert_ext.records import (
    UnreadableLine,
    parse_object,
    read_lines,
    shown_value,
    used_columns,
    without_empty_end,
)
from spanbert_ext.tasks.forms import CONLL
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample
from spanbert_ext.tasks.tagging.schemes import (
    Tag,
    fault_in,
    parse_tag,
    recognise,
    spans_of,
    tag_text,
    tags_of,
)

_DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile("[ \t]+")
# Words of an example. A document longer than that is cut between two sentences, so that a file
# without documents does not become one example; large, because a window ends there.
_MOST_WORDS = 4096


@dataclass(slots=True)
class _Sentence:
    """Lines as far as they were read; the first fault is kept, with its line."""

    line: int
    document: int
    words: list[str] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    fault: tuple[int, str, str] | None = None  # line, reason, excerpt

    def add(self, line: int, cells: list[str] | UnreadableLine, layout: _Layout) -> None:
        self.lines.append(line)
        if isinstance(cells, UnreadableLine):
            self._note(line, cells.reason, cells.excerpt)
            return
        fault = layout.fault_in(cells)
        if fault:
            self._note(line, fault, layout.shown(cells))
            return
        self.words.append(cells[layout.token])
        self.tags.append(parse_tag(cells[layout.tag]))

    def _note(self, line: int, reason: str, excerpt: str) -> None:
        self.fault = self.fault or (line, reason, excerpt)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the lines of one file are taken apart."""

    tabs: bool
    columns: int
    token: int
    tag: int

    def cells(self, line: str) -> list[str]:
        return without_empty_end(_cells(line, self.tabs), self.columns)

    def shown(self, cells: list[str]) -> str:
        return ("\t" if self.tabs else " ").join(cells)

    def is_comment(self, line: str) -> bool:
        return line.startswith("# ") and self.fault_in(self.cells(line)) is not None

    def fault_in(self, cells: list[str]) -> str | None:
        if len(cells) != self.columns:
            return f"{len(cells)} columns, where most lines of the file have {self.columns}"
        word, tag = cells[self.token], cells[self.tag]
        if not word.strip():
            return f"the word, column {self.token}, is empty"
        if parse_tag(tag) is None:
            return (
                f"{tag!r} is not a tag of BIO, IOB1, BILOU or BIOES; is it another column than "
                f"tagging.tag_column = {self.tag}?"
            )
        return None


def read_conll(
    path: str | Path,
    options: TaggingOptions,
    rejects: Rejects,
    types: Collection[str] | None = None,
) -> list[TaggedExample]:
    """The documents of a file, in its order; long ones in parts.

    Args:
        types: entity types that the model knows; None takes any.

    Raises:
        DataError: the file cannot be read or has no such columns, or `rejects` says so.
    """
    path = Path(path)
    lines = list(read_lines(path))
    texts = [line for line in lines if isinstance(line, str)]
    if seen := _json_in(next((line.strip() for line in texts if line.strip()), "")):
        raise DataError(f"{path}: it is {seen}; expected CoNLL columns, {CONLL}")
    layout = _layout(path, texts, options)
    sentences = list(_sentences(lines, layout))
    scheme = recognise(sentence.tags for sentence in sentences if not sentence.fault)
    accepted = []
    for sentence in sentences:
        fault = sentence.fault or _tag_fault(sentence, scheme, types)
        if fault:
            line, reason, excerpt = fault
            rejects.add(f"{path.name}:{sentence.line}", f"{path}:{line}", reason, excerpt)
        else:
            accepted.append(sentence)
    rejects.check(path, len(accepted))
    return [_example(path.name, part) for part in _documents(accepted)]


def _json_in(line: str) -> str:
    """What JSON begins with this line, in words; "" if none does."""
    found = parse_object(line) if line.startswith("{") else None
    if isinstance(found, dict):
        return f"JSON, {shown_value(found)}"
    return "JSON" if line in ("{", "[") or line.startswith(("[{", "[[", '{"')) else ""


def _cells(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs else _BLANKS.split(line.strip(" \t"))


def _is_blank(line: str) -> bool:
    return not line.strip(" \t")


def _layout(path: Path, lines: list[str], options: TaggingOptions) -> _Layout:
    rows = [x for x in lines if not _is_blank(x) and not x.startswith(("# ", _DOCUMENT))]
    tabs = 2 * sum("\t" in line for line in rows) > len(rows)
    cells = [_cells(line, tabs) for line in rows]
    used = used_columns(cells)
    counts = Counter(len(without_empty_end(row, used)) for row in cells)
    columns = counts.most_common(1)[0][0] if counts else 0
    places = []
    for name in ("token_column", "tag_column"):
        place = getattr(options, name)
        if rows and not -columns <= place < columns:
            raise DataError(
                f"{path}: tagging.{name} = {place}, but most lines have {columns} columns parted "
                f"by {'TABs' if tabs else 'blanks'}, as {rows[0][:80]!r}"
            )
        places.append(place % columns if rows else place)
    if rows and places[0] == places[1]:
        raise DataError(
            f"{path}: expected a word and a tag on a line; most have {columns} columns parted by "
            f"{'TABs' if tabs else 'blanks'}, as {rows[0][:80]!r}, and tagging.token_column and "
            "tagging.tag_column are the same one"
        )
    return _Layout(tabs, columns, *places)


def _sentences(lines: Iterable[str | UnreadableLine], layout: _Layout) -> Iterator[_Sentence]:
    document, sentence = 0, None
    for number, line in enumerate(lines, 1):
        if isinstance(line, str):
            starts = line.startswith(_DOCUMENT)
            if starts or _is_blank(line):
                if sentence:
                    yield sentence
                sentence, document = None, document + starts
                continue
            if layout.is_comment(line):
                continue
            line = layout.cells(line)
        sentence = sentence or _Sentence(number, document)
        sentence.add(number, line, layout)
    if sentence:
        yield sentence


def _tag_fault(sentence: _Sentence, scheme, types) -> tuple[int, str, str] | None:
    broken = fault_in(sentence.tags, scheme)
    if broken:
        place, reason = broken
        return sentence.lines[place], f"{reason}, the scheme of this file", sentence.words[place]
    for place, tag in enumerate(sentence.tags):
        if types is not None and tag.type and tag.type not in types:
            known = ", ".join(sorted(types))
            reason = f"type {tag.type!r} was not in the training data, which had {known}"
            return sentence.lines[place], reason, sentence.words[place]
    return None


def _documents(sentences: list[_Sentence]) -> Iterator[list[_Sentence]]:
    part: list[_Sentence] = []
    words = 0
    for sentence in sentences:
        size = len(sentence.words)
        if part and (sentence.document != part[-1].document or words + size > _MOST_WORDS):
            yield part
            part, words = [], 0
        part.append(sentence)
        words += size
    if part:
        yield part


def _example(name: str, sentences: list[_Sentence]) -> TaggedExample:
    words: list[str] = []
    tags: list[str] = []
    starts = []
    for sentence in sentences:
        starts.append(len(words))
        words += sentence.words
        in_bio = tags_of(spans_of(sentence.tags), len(sentence.tags))
        tags += map(tag_text, in_bio)
    return TaggedExample(f"{name}:{sentences[0].line}", tuple(words), tuple(tags), tuple(starts))
