"""Texts with marked spans as one web page that needs nothing else: no script, no network.

Every mark is an element around its text, with its label as an attribute that the style sheet shows
behind it, so that what is copied from the page is the text. A mark that crosses the end of another
is split there; only its last part carries the label. All that comes from outside is escaped:
characters that HTML cannot hold (controls, unpaired surrogates) or that would reorder what stands
around them become an empty element that shows their number.
"""

from __future__ import annotations

import html
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spanbert_ext.files import staged
from spanbert_ext.tasks.marked_text import Mark, MarkedText

# Longer texts are folded, but for the first ones of the page.
_LONG = 4000  # characters
_UNFOLDED = 60_000  # characters in all
_GLIMPSE = 160
# Hues of groups, 15 degrees apart. Neighbours differ in the kind of their line; a further round
# through the hues takes other lines again.
_HUES = 24
_LINES = ("solid", "dashed", "double", "dotted")
# Coprime to _HUES: one group after the other gets hues far apart, and all before any twice.
_STRIDE = 7
# With this one the usual labels (PER, LOC, ORG, GPE, answer, ...) get different hues by themselves.
_CRC_START = 4908
_MOST_LEGEND = 60
# Marks in marks with a line of their own each; further ones share it.
_MOST_LEVELS = 8

# C0 but tab and line feed, DEL, C1; embeddings, overrides and isolates of direction; surrogates;
# noncharacters.
_UNSHOWN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)

_STYLE = """
:root { color-scheme: light dark; --back: #fdfdfc; --ink: #1d2125; --soft: #68707a;
  --edge: #dfe2e6; --tint: 82% 90%; --line: 60% 45%; }
@media (prefers-color-scheme: dark) { :root { --back: #16191d; --ink: #e4e7ea; --soft: #98a1ab;
  --edge: #33393f; --tint: 38% 24%; --line: 60% 62%; } }
body { display: flex; flex-direction: column; gap: 1.2rem; max-width: 54rem; margin: 2rem auto;
  padding: 0 1rem; background: var(--back); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; }
h1, h2 { margin: 0; line-height: 1.3; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; order: -2; }
h2 { font-size: 1rem; }
.legend { order: -1; position: sticky; top: 0; padding: .5rem 0; background: var(--back);
  border-bottom: 1px solid var(--edge); display: flex; flex-wrap: wrap; gap: .3rem .8rem;
  max-height: 20vh; overflow: auto; }
.names { display: flex; flex-wrap: wrap; gap: .2rem .6rem; margin-top: .3rem; font-size: .88rem;
  max-height: 9rem; overflow: auto; }
.legend p, .names p { margin: 0; color: var(--soft); }
section { border: 1px solid var(--edge); border-radius: .5rem; padding: .8rem 1rem; }
.text { margin-top: .4rem; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  line-height: calc(1.7em + var(--deep, 0) * .35em); }
mark { background: hsl(var(--hue) var(--tint)); color: inherit; border-radius: .2em;
  border-bottom: 3px solid hsl(var(--hue) var(--line));
  padding: .1em .1em calc(.05em + var(--inside, 0) * .3em); box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
mark[data-label]::after { content: attr(data-label); unicode-bidi: isolate;
  margin-inline: .4em .2em; font-size: .68em; font-weight: 700; opacity: .8;
  vertical-align: .1em; }
.dashed { border-bottom-style: dashed; } .dotted { border-bottom-style: dotted; }
.double { border-bottom-style: double; }
i[data-code]::before { content: attr(data-code); font: 700 .6em monospace; color: var(--soft);
  border: 1px solid; border-radius: .2em; padding: 0 .2em; margin: 0 .1em; vertical-align: .2em; }
summary { cursor: pointer; color: var(--soft); overflow-wrap: anywhere; }
[open] > summary span { display: none; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .6rem 0 0; font-size: .88rem; }
dl div { display: flex; gap: .4rem; } dt { color: var(--soft); }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
""".strip()

_HEAD = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1 dir="auto">{title}</h1>
"""


def page(title: str, blocks: Iterable[MarkedText]) -> str:
    """The whole page.

    Args:
        title: of the page.
        blocks: shown one below the other; of texts of more than 4000 characters the first is
            unfolded, and further ones while the page is short.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        ValueError: a mark does not lie within its text.
    """
    return "".join(_pieces(title, blocks))


def write_page(path: str | Path, title: str, blocks: Iterable[MarkedText]) -> None:
    """Write the page block by block, so that a file of any size needs the memory of one block.

    Raises:
        ValueError: a mark does not lie within its text.
        StorageError: the file cannot be written; none is left, or the one that was there.
    """
    path = Path(path)
    with staged(path) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(_pieces(title, blocks))


def _pieces(title: str, blocks: Iterable[MarkedText]) -> Iterator[str]:
    """The legend comes last, when all groups are known; the style sheet puts it on top."""
    yield _HEAD.format(title=_plain(title), style=_STYLE)
    colours = Colours()
    groups: dict[str, None] = {}
    count = shown = 0
    for block in blocks:
        count += 1
        shown += len(block.text)
        yield "".join(_block(block, colours, is_open=count == 1 or shown <= _UNFOLDED))
        own = {group for group, _ in block.names}
        groups |= {name: None for mark in block.marks if (name := _group(mark)) not in own}
    yield f'<div class="legend"><p>{count:,} {"text" if count == 1 else "texts"}</p>\n'
    yield from _legend([(group, group) for group in colours.looks if group in groups], colours)
    yield "</div>\n"
    yield "</body>\n</html>\n"


class Colours:
    """The look of each group of marks: a hue by its name, so that it has the same one on every page
    where that is free, and a kind of line."""

    def __init__(self):
        self.looks: dict[str, tuple[str, int]] = {}
        self._taken: set[int] = set()

    def __call__(self, group: str) -> tuple[str, int]:
        """Kind of line, and hue in degrees."""
        if group not in self.looks:
            self.looks[group] = self._look(group)
        return self.looks[group]

    def _look(self, group: str) -> tuple[str, int]:
        if len(self._taken) == _HUES:
            self._taken.clear()
        # Numbers of clusters follow each other: the stride alone keeps them apart.
        known = re.fullmatch("[0-9]{1,9}", group)
        name = group.encode("utf-8", "surrogatepass")
        number = int(group) if known else zlib.crc32(name, _CRC_START)
        hue = number * _STRIDE % _HUES
        while hue in self._taken:
            hue = (hue + _STRIDE) % _HUES
        self._taken.add(hue)
        line = _LINES[(hue + len(self.looks) // _HUES) % len(_LINES)]
        return line, hue * 360 // _HUES


def _group(mark: Mark) -> str:
    return mark.group or mark.label


def _block(block: MarkedText, colours: Colours, is_open: bool) -> Iterator[str]:
    yield "<section>\n"
    if block.title:
        yield f'<h2 dir="auto">{_plain(block.title)}</h2>\n'
    if block.names:
        yield '<div class="names">'
        yield from _legend(block.names, colours)
        yield "</div>\n"
    folded = len(block.text) > _LONG
    if folded:
        glimpse = _plain(" ".join(block.text[:_GLIMPSE].split()))
        marks = f", {len(block.marks):,} marked" if block.marks else ""
        state = " open" if is_open else ""
        yield f'<details{state}><summary dir="auto"><span>{glimpse} &hellip; </span>'
        yield f"({len(block.text):,} characters{marks})</summary>\n"
    yield from _marked(block, colours)
    if folded:
        yield "</details>\n"
    if block.facts:
        yield "<dl>"
        for name, value in block.facts:
            yield f'<div><dt>{_plain(name)}</dt><dd dir="auto">{_plain(value)}</dd></div>'
        yield "</dl>\n"
    yield "</section>\n"


def _marked(block: MarkedText, colours: Colours) -> Iterator[str]:
    """The text with its marks as elements, which must nest where marks may cross.

    A mark that outlasts one it stands in is closed with that one and opened again behind it.
    """
    text = block.text
    beginning, empty = _by_start(block)
    deepest = min(_deepest(block.marks), _MOST_LEVELS)
    deep = f' style="--deep:{deepest - 1}"' if deepest > 1 else ""
    yield f'<div class="text" dir="auto"{deep}>'
    ends = (place for mark in block.marks for place in (mark.start, mark.end))
    places = sorted({0, len(text), *ends})
    open_marks: list[Mark] = []  # from the outermost
    for place, following in itertools.pairwise([*places, len(text)]):
        lowest = next((n for n, m in enumerate(open_marks) if m.end == place), len(open_marks))
        closed = open_marks[lowest:]
        del open_marks[lowest:]
        yield "</mark>" * len(closed)
        for mark in empty.get(place, ()):
            yield _tag(mark, colours, True, 0) + "</mark>"
        again = [mark for mark in closed if mark.end > place]
        for mark in sorted(again + beginning.get(place, []), key=lambda mark: -mark.end):
            last_part = all(mark.end <= outer.end for outer in open_marks)
            open_marks.append(mark)
            yield _tag(mark, colours, last_part, deepest - len(open_marks))
        yield _shown(text[place:following])
    yield "</div>\n"


def _by_start(block: MarkedText) -> tuple[dict[int, list[Mark]], dict[int, list[Mark]]]:
    """Place -> the marks that begin there, those with text in them and those without."""
    beginning, empty = defaultdict(list), defaultdict(list)
    for mark in block.marks:
        if not 0 <= mark.start <= mark.end <= len(block.text):
            raise ValueError(
                f"mark {mark.label!r} from {mark.start} to {mark.end} does not lie within the text "
                f"of {block.title!r}, {len(block.text)} characters"
            )
        (empty if mark.start == mark.end else beginning)[mark.start].append(mark)
    return beginning, empty


def _deepest(marks: Iterable[Mark]) -> int:
    """Most marks that share a character."""
    # Ends come before starts at the same place.
    changes = sorted(change for mark in marks for change in ((mark.start, 1), (mark.end, 0)))
    return max(itertools.accumulate(2 * step - 1 for _, step in changes), default=0)


def _tag(mark: Mark, colours: Colours, last_part: bool, inside: int) -> str:
    """The opening tag of a part of a mark; `inside`: how many more could nest in it."""
    line, hue = colours(_group(mark))
    label = f' data-label="{_plain(mark.label)}"' if last_part else ""
    tip = _plain(": ".join(filter(None, (mark.label, mark.note))))
    style = f"--hue:{hue};--inside:{max(0, inside)}"
    return f'<mark class="{line}" style="{style}" title="{tip}"{label}>'


def _legend(groups: Sequence[tuple[str, str]], colours: Colours) -> Iterator[str]:
    """The first groups with what they stand for."""
    for group, meaning in groups[:_MOST_LEGEND]:
        line, hue = colours(group)
        yield f'<mark class="{line}" style="--hue:{hue}">{_plain(meaning)}</mark>\n'
    if len(groups) > _MOST_LEGEND:
        yield f"<p>and {len(groups) - _MOST_LEGEND:,} more</p>\n"


def _shown(text: str) -> str:
    """Text within an element; what cannot be shown becomes an element with its number."""
    escaped = html.escape(text, quote=False)
    return _UNSHOWN.sub(lambda m: f'<i data-code="U+{ord(m[0]):04X}"></i>', escaped)


def _plain(text: str) -> str:
    """Text anywhere, also within an attribute; what cannot be shown becomes U+FFFD."""
    return html.escape(_UNSHOWN.sub("\ufffd", text))
