"""CoNLL-2012 files: OntoNotes' columns, LitBank's, and any others with the coreference last.

One word a line; columns separated by tabs, or by blanks where a line has no tab; a tab at the end
of all lines begins no column. Column 3 (from 0) is the word, column 9 the speaker where there are
at least 11, the last one the coreference: `(7` a mention of cluster 7 begins, `7)` one ends, `(7)`
is the word alone, several are joined by `|`, and `-`, `_`, `*` or nothing say that there are none.
An empty line ends a sentence.

In one cell the mentions of one word are taken first, then those that begin, then those that end,
each from left to right; an end closes the mention of its cluster that began last. So does the
reference scorer v8.01. It follows that two mentions of one cluster may nest but cannot overlap in
part: the format has no way to say so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_ext.errors import DataError
from spanbert_ext.files import write_text
from spanbert_ext.records import UnreadableLine, read_lines, used_columns, without_empty_end
from spanbert_ext.tasks.coref.data import Document, Shared, Span, genre_of, sorted_clusters
from spanbert_ext.tasks.rejects import Rejects

logger = logging.getLogger("spanbert_ext")

_WORD, _SPEAKER, _FEWEST = 3, 9, 5
_BLANKS = re.compile(" +")
_CONTROL = re.compile("[\t\r\n]")
_NOTHING = ("", "-", "_", "*")
_BEGIN = re.compile(r"#\s*begin document ?(.*)$")
_END = re.compile(r"#\s*end document")
_NAME = re.compile(r"\s*\((.*)\);\s*(?:part\s+(\d+))?\s*$")
_NUMBERED = re.compile(r"(.+)_(0|[1-9]\d*)$", re.DOTALL)
_BRACKET = re.compile(r"\((?P<alone>[^()|]+)\)|\((?P<begin>[^()|]+)|(?P<end>[^()|]+)\)|\|")
_NUMBERED_BRACKETS = re.compile(r"[()|\d]+")
_UNESCAPED = {"/.": ".", "/?": "?"}


class _Fault(Exception):
    """What is wrong with a line; its document cannot be used."""

    def __init__(self, reason: str, line: int = 0):
        super().__init__(reason)
        self.line = line


@dataclass
class _Draft:
    """A document while its lines are read."""

    header: str
    words: list[str] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)
    speakers: list[str | None] = field(default_factory=list)
    clusters: dict[str, list[Span]] = field(default_factory=dict)
    begun: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # words, lines
    breaks: bool = True

    @property
    def id(self) -> str:
        name = _NAME.match(self.header)
        if name is None:
            return self.header.strip()
        return name[1] if name[2] is None else f"{name[1]}_{int(name[2])}"

    def add(self, columns: list[str], number: int) -> None:
        if len(columns) < _FEWEST:
            raise _Fault(f"{len(columns)} columns where at least {_FEWEST} are needed")
        if not columns[_WORD]:
            raise _Fault("the word, column 3 from 0, is empty")
        speaker = columns[_SPEAKER] if len(columns) > _SPEAKER + 1 else ""
        sentence = self.sentences[-1] + self.breaks if self.sentences else 0
        self.breaks = False
        self.words.append(_UNESCAPED.get(columns[_WORD], columns[_WORD]))
        self.sentences.append(sentence)
        self.speakers.append(None if speaker in _NOTHING else speaker)
        cell = columns[-1].strip()
        if cell not in _NOTHING:
            self._brackets(cell, number)

    def _brackets(self, cell: str, number: int) -> None:
        if _BRACKET.sub("", cell):
            raise _Fault(f"no coreference brackets: {cell!r}")
        place = len(self.words) - 1
        found = list(_BRACKET.finditer(cell))
        for match in found:
            if label := match["alone"]:
                self.clusters.setdefault(label, []).append((place, place))
        for match in found:
            if label := match["begin"]:
                self.clusters.setdefault(label, [])  # in the order of the reference scorer
                self.begun.setdefault(label, []).append((place, number))
        for match in found:
            if label := match["end"]:
                if not self.begun.get(label):
                    raise _Fault(f"a mention of cluster {label} ends that never began")
                span = (self.begun[label].pop()[0], place)
                self.clusters.setdefault(label, []).append(span)

    def document(self, shared: Shared) -> tuple[Document, int]:
        open_ones = sorted(label for label, places in self.begun.items() if places)
        if open_ones:
            place, line = self.begun[open_ones[0]][0]
            word = self.words[place]
            raise _Fault(f"a mention of cluster {open_ones[0]} begins ({word!r}), never ends", line)
        try:
            clusters, repeated = sorted_clusters(self.clusters.values(), shared)
            document = Document(
                self.id,
                tuple(self.words),
                tuple(self.sentences),
                tuple(self.speakers) if any(self.speakers) else None,
                genre_of(self.id),
                clusters,
                header=self.header,
            )
        except DataError as error:
            raise _Fault(str(error).removeprefix(f"document {self.id}: ")) from error
        return document, repeated


def read(path: str | Path, rejects: Rejects, shared: Shared = "keep") -> list[Document]:
    """Documents of a CoNLL-2012 file, or of all `*conll` files in a folder, in order.

    A document's id is its name and the number of its part ("bc/cctv/00/cctv_0000_0"), its genre the
    first part of the name where that is one of OntoNotes'. A whole document is rejected where one
    of its lines cannot be used.

    Args:
        shared: what to do with a mention in two clusters, see `documents.sorted_clusters`; `error`
            rejects the document. A mention repeated in its cluster is warned of.

    Raises:
        DataError: as `rejects` says; a file that is not UTF-8, or a folder without files.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*conll") if file.is_file())
        if not files:
            raise DataError(f"{path}: the folder holds no file whose name ends in conll")
    documents: list[Document] = []
    seen: set[str] = set()
    repeated = 0
    for file in files:
        for draft, line, fault, excerpt in _drafts(file):
            try:
                if fault:
                    raise _Fault(fault)
                document, dropped = draft.document(shared)
                if document.id in seen:
                    raise _Fault("a document of this name came before")
            except _Fault as error:
                rejects.add(draft.id, f"{file}:{error.line or line}", str(error), excerpt)
                continue
            seen.add(document.id)
            documents.append(document)
            repeated += dropped
    if repeated:
        logger.warning("%s: %d mentions stand twice in their cluster", path, repeated)
    rejects.check(path, len(documents))
    return documents


def _drafts(file: Path) -> Iterator[tuple[_Draft, int, str, str]]:
    """Each document, what is wrong with it ("": nothing), with the line's number and text."""
    lines = list(read_lines(file))
    columns = _columns([_cells_of(line) for line in lines if _is_row(line)])
    draft, fault, place, excerpt = None, "", 0, ""
    number = 0
    for number, line in enumerate(lines, 1):
        unreadable = isinstance(line, UnreadableLine)
        begin = None if unreadable else _BEGIN.match(line)
        end = draft is not None and not unreadable and _END.match(line)
        if begin or end:
            if draft is not None:
                if begin and not fault:
                    fault, excerpt = "no #end document before the next begins", line
                yield draft, place or number, fault, excerpt
            draft, fault, place, excerpt = _Draft(begin[1]) if begin else None, "", 0, ""
        elif unreadable:
            if not fault:
                draft, place = draft or _Draft("(no name)"), number
                fault, excerpt = line.reason, line.excerpt
        elif not line.strip(" \t"):
            if draft is not None:
                draft.breaks = True
        elif not _is_row(line):
            continue  # a comment
        elif draft is None:
            draft, place, excerpt = _Draft("(no name)"), number, line
            fault = (
                "a word outside #begin document ... #end document. Expected CoNLL-2012: #begin "
                "document (NAME); part 000, lines of columns with the word in column 3 from 0 and "
                "the coreference in the last, #end document; or JSON lines in a file that ends in "
                ".jsonl"
            )
        elif not fault:
            try:
                draft.add(without_empty_end(_cells_of(line), columns), number)
            except _Fault as error:
                fault, place, excerpt = str(error), number, line
    if draft is not None:
        fault = fault or "the file ends before #end document"
        yield draft, place or number, fault, excerpt


def _columns(rows: list[list[str]]) -> int:
    """Columns of a file; the last is the coreference, which may be empty in all rows."""
    used = used_columns(rows)
    last = (row[used - 1].strip() for row in rows if len(row) >= used > 0)
    if all(cell in _NOTHING or _NUMBERED_BRACKETS.fullmatch(cell) for cell in last):
        return used
    return max(map(len, rows), default=0)  # what stands there last is another annotation


def _cells_of(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))


def _is_row(line: str | UnreadableLine) -> bool:
    """Whether a word stands in the line, which may be a `#`."""
    if isinstance(line, UnreadableLine) or not line.strip(" \t"):
        return False
    return not line.startswith("#") or len(line.split("\t")) >= _FEWEST


def write(path: str | Path, documents: Iterable[Document], crossing: str = "error") -> int:
    """Write documents with their clusters, in twelve tab-separated columns.

    To write predictions, put them into the documents: `dataclasses.replace(document, clusters=..)`.
    The reference scorer reads the file; names are those the documents were read under. One without
    gets `(id); part 000`, or its number where the id ends in one, as in "name_3".

    Args:
        crossing: what to do with a mention that overlaps an earlier one of its cluster in part,
            which the format cannot express: `error`, or `drop` it.

    Returns:
        How many mentions were dropped.

    Raises:
        DataError: such a mention, or a word with a tab or line end in it.
        StorageError: the file cannot be written.
    """
    lines: list[str] = []
    dropped = 0
    for document in documents:
        dropped += _document_lines(document, crossing, lines)
    write_text(Path(path), "".join(f"{line}\n" for line in lines))
    return dropped


def _document_lines(document: Document, crossing: str, lines: list[str]) -> int:
    header = document.header
    if header is None:
        name, part = document.id, 0
        if numbered := _NUMBERED.match(document.id):
            name, part = numbered[1], int(numbered[2])
        header = f"({name}); part {part:03d}"
    header = _CONTROL.sub(" ", header)
    name = _NAME.match(header)
    first = [name[1], str(int(name[2] or 0))] if name else [_CONTROL.sub(" ", document.id), "0"]
    spans, dropped = _writable(document, crossing)
    cells = _cells(spans, len(document.words))
    lines.append(f"#begin document {header}")
    before, count = 0, 0
    for place, word in enumerate(document.words):
        sentence = document.sentence_of_word[place]
        if sentence != before:
            lines.append("")
            before, count = sentence, 0
        speaker = (document.speakers[place] if document.speakers else None) or "-"
        columns = [*first, str(count), word, "-", "*", "-", "-", "-", speaker, "*", cells[place]]
        if any(_CONTROL.search(column) for column in columns):
            raise DataError(f"document {document.id}: a tab or line end in word {place}")
        lines.append("\t".join(columns))
        count += 1
    lines += ["", "#end document"]
    return dropped


def _writable(document: Document, crossing: str) -> tuple[list[tuple[Span, int]], int]:
    """Mentions with the number of their cluster, without those that cross one of it."""
    kept, dropped = [], 0
    for label, cluster in enumerate(document.clusters):
        around: list[Span] = []
        for first, last in sorted(cluster, key=lambda span: (span[0], -span[1])):
            while around and around[-1][1] < first:
                around.pop()
            if around and around[-1][1] < last:
                if crossing == "error":
                    raise DataError(
                        f"document {document.id}: the mentions {around[-1]} and {(first, last)} of "
                        "one cluster overlap in part, which CoNLL files cannot express; drop one, "
                        "or write with crossing=drop"
                    )
                dropped += 1
                continue
            around.append((first, last))
            kept.append(((first, last), label))
    return kept, dropped


def _cells(spans: list[tuple[Span, int]], words: int) -> list[str]:
    begins: list[list[str]] = [[] for _ in range(words)]
    alone: list[list[str]] = [[] for _ in range(words)]
    ends: list[list[str]] = [[] for _ in range(words)]
    # The outer mention begins first and ends last.
    for (first, last), label in sorted(spans, key=lambda item: (item[0][0], -item[0][1])):
        if first == last:
            alone[first].append(f"({label})")
        else:
            begins[first].append(f"({label}")
    for (first, last), label in sorted(spans, key=lambda item: (item[0][1], -item[0][0])):
        if first != last:
            ends[last].append(f"{label})")
    return ["|".join(b + a + e) or "-" for b, a, e in zip(begins, alone, ends, strict=True)]
