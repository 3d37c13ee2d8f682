"""The page of marked texts: read back with a parser, it is the texts and the marks again."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spanbert_ext.errors import StorageError
from spanbert_ext.tasks.html import Colours, page, write_page
from spanbert_ext.tasks.marked_text import Mark, MarkedText

VOID = {"meta"}


class Page(HTMLParser):
    """Everything a page shows; fails where elements do not nest.

    texts: of each text its characters and the parts of its marks, (start, end, title, label).
    shown: element -> what stands in it, for each one.
    """

    def __init__(self, source):
        super().__init__()
        self.texts, self.shown, self.tags, self.attributes = [], {}, [], []
        self._open, self._inside = [], None
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append((tag, attributes, len(self._characters()), []))
        if attributes.get("class") == "text":
            self.texts.append(([], []))
            self._inside = len(self._open)
        if "data-code" in attributes:
            self._characters().append(chr(int(attributes["data-code"].removeprefix("U+"), 16)))

    def handle_endtag(self, tag):
        opened, attributes, start, written = self._open.pop()
        assert opened == tag
        self.shown.setdefault(tag, []).append("".join(written))
        if self._inside and tag == "mark":
            part = (start, len(self._characters()), attributes["title"])
            self.texts[-1][1].append((*part, attributes.get("data-label")))
        if self._inside and len(self._open) < self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._open:
            self._open[-1][3].append(data)
        if self._inside:
            self._characters().extend(data)

    def _characters(self):
        return self.texts[-1][0] if self._inside else []

    def text(self, number=0):
        return "".join(self.texts[number][0])


def one(text, *marks, title="", facts=()):
    return Page(page("title", [MarkedText(title, text, marks, facts)]))


@st.composite
def marked_texts(draw):
    alphabet = st.one_of(st.characters(), st.sampled_from("<>&\"'\0\r\n\t\x85\u202e\ud800 ab"))
    text = draw(st.text(alphabet, max_size=30))
    places = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(places, places).map(sorted), max_size=8))
    labels = st.text(alphabet, max_size=3)
    # The note tells marks apart that are alike.
    marks = tuple(Mark(*span, draw(labels), note=f"#{n}#") for n, span in enumerate(spans))
    return MarkedText(draw(labels), text, marks)


@settings(max_examples=400)
@given(st.lists(marked_texts(), max_size=3))
def test_the_page_is_the_texts_again(blocks):
    found = Page(page("<title>", blocks))
    assert [found.text(n) for n in range(len(found.texts))] == [block.text for block in blocks]
    for block, (_, parts) in zip(blocks, found.texts, strict=True):
        for number, mark in enumerate(block.marks):
            own = sorted(part for part in parts if f"#{number}#" in part[2])
            assert own[0][0] == mark.start
            assert own[-1][1] == mark.end
            assert all(a[1] == b[0] for a, b in zip(own, own[1:], strict=False))
            assert [part[3] for part in own[:-1]] == [None] * (len(own) - 1)
            assert own[-1][3] == readable(mark.label)
        assert len(parts) == len({(part[0], part[1], part[2]) for part in parts})


def readable(text):
    """A label as an attribute shows it."""
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef"
                  "\ufffe\uffff]", "\ufffd", text)  # fmt: skip


def test_nested_marks_are_not_split():
    found = one("abcdef", Mark(2, 4, "in"), Mark(0, 6, "out"), Mark(0, 2, "left"))
    assert sorted(found.texts[0][1]) == [
        (0, 2, "left", "left"), (0, 6, "out", "out"), (2, 4, "in", "in"),
    ]  # fmt: skip


def test_crossing_marks_are_split_once():
    found = one("abcdef", Mark(0, 4, "A", note="0.9"), Mark(2, 6, "B"))
    assert sorted(found.texts[0][1], key=str) == [
        (0, 4, "A: 0.9", "A"), (2, 4, "B", None), (4, 6, "B", "B"),
    ]  # fmt: skip


def test_marks_without_text_stand_between_others():
    source = page("", [MarkedText("", "ab", (Mark(0, 1, "A"), Mark(1, 1, "gap"), Mark(1, 2, "B")))])
    labels = re.findall('data-label="([^"]*)"', source)
    assert labels == ["A", "gap", "B"]
    assert 'data-label="gap"></mark>' in source


@pytest.mark.parametrize("span", [(-1, 2), (2, 1), (0, 4), (4, 4)])
def test_a_mark_outside_of_its_text(span):
    with pytest.raises(ValueError, match=rf"'X' from {span[0]} to {span[1]} does not lie within"):
        one("abc", Mark(*span, "X"), title="t")


HOSTILE = "</div></mark><script>alert('1')</script><img src=x onerror=\"alert(2)\">&lt;--><!--"


@pytest.mark.parametrize(
    "attack", [HOSTILE, "\0<b>\x1b[31m\ud800", "]]>\u202etxt.exe", '"\' x=y "']
)
def test_hostile_text_is_escaped_everywhere(attack):
    block = MarkedText(
        attack, attack, (Mark(0, len(attack), attack, attack, attack),), ((attack, attack),)
    )
    source = page(attack, [block, block])
    found = Page(source)
    assert found.text(0) == found.text(1) == attack
    for tag in ("title", "h1", "h2", "dt", "dd"):
        assert set(found.shown[tag]) == {readable(attack)}
    assert {tag for tag in found.tags if "script" in tag or "img" in tag} == set()
    harmless = {"charset", "name", "content", "http-equiv", "class", "style", "title", "dir"}
    assert {name for name, _ in found.attributes} <= harmless | {"data-label", "data-code"}
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", source)
    source.encode("utf-8")


def test_the_page_needs_nothing_else():
    source = page("t", [MarkedText("", "x", (Mark(0, 1, "A"),))])
    assert "default-src 'none'" in source
    assert not re.search(r"https?:|url\(|@import|<script|<link|src=|href=", source)
    assert "prefers-color-scheme: dark" in source


def test_direction_is_found_by_the_text():
    source = page("t", [MarkedText("\u05d0", "\u0627\u0628", (Mark(0, 1, "A"),))])
    assert source.count('dir="auto"') == 3
    assert one("a\u200f\u0627").text() == "a\u200f\u0627"
    assert "\u200f" in page("", [MarkedText("", "a\u200f\u0627")])


def test_a_long_text_is_folded():
    text = "word <b> " * 1000
    source = page("t", [MarkedText("", text, (Mark(0, 4, "A"),)), MarkedText("", "short")])
    found = Page(source)
    assert (found.text(0), found.text(1)) == (text, "short")
    assert found.shown["summary"] == ["(9,000 characters, 1 marked)"]
    (glimpse,) = found.shown["span"]
    assert glimpse.startswith("word <b> word") and glimpse.endswith("\u2026 ")


def test_a_page_is_no_empty_screen():
    """The first text is unfolded however long it is, further ones while the page is short."""
    texts = ["a" * size for size in (10_000, 40_000, 3000, 20_000, 5000)]
    source = page("t", [MarkedText("", text) for text in texts])
    assert re.findall("<details( open)?>", source) == [" open", " open", "", ""]
    source = page("t", [MarkedText("", "a" * 90_000), MarkedText("", "a" * 5000)])
    assert re.findall("<details( open)?>", source) == [" open", ""]


def test_groups_of_a_text_are_named_beside_it():
    """The same number is another cluster in another text; the page's legend leaves them out."""
    own = (("1", "1 Ada (2)"), ("2", "2 <b> (1)"))
    marks = (Mark(0, 1, "1"), Mark(1, 2, "2"), Mark(2, 3, "PER"))
    blocks = [MarkedText("", "abc", marks, names=own), MarkedText("", "abc", marks[:1], names=own)]
    found = Page(page("", blocks))
    assert found.shown["mark"] == [
        "1 Ada (2)", "2 <b> (1)", "a", "b", "c", "1 Ada (2)", "2 <b> (1)", "a", "PER",
    ]  # fmt: skip
    many = tuple((str(n), f"name {n}") for n in range(70))
    found = Page(page("", [MarkedText("", "a", names=many)]))
    assert found.shown["p"] == ["and 10 more", "1 text"]


def test_facts_and_legend():
    marks = (
        Mark(0, 1, "1", "even"),
        Mark(1, 2, "2", "odd"),
        Mark(2, 3, "3"),
        Mark(0, 2, "4", "odd"),
    )
    found = one("abc", *marks, facts=(("score", "0.5"), ("gold", "x")))
    assert (found.shown["dt"], found.shown["dd"]) == (["score", "gold"], ["0.5", "x"])
    assert found.shown["mark"][-3:] == ["odd", "even", "3"]
    assert "1 text" in found.shown["p"]
    many = [MarkedText("", "a", tuple(Mark(0, 1, f"L{n}") for n in range(70)))] * 2
    found = Page(page("", many))
    assert found.shown["p"] == ["2 texts", "and 10 more"]
    assert Page(page("", [])).shown["p"] == ["0 texts"]


def test_colours_are_stable_and_differ():
    names = ["PER", "LOC", "ORG", "answer", "subject", *map(str, range(19))]
    colours = Colours()
    looks = [colours(name) for name in names]
    assert len({hue for _, hue in looks}) == 24
    assert [colours(name) for name in names] == looks
    assert [Colours()(name) for name in names[:5]] == looks[:5]
    further = [colours(f"x{n}") for n in range(72)]
    assert len(set(looks + further)) == 96


@example(["a"] * 30)
@given(st.lists(st.text(max_size=2), max_size=60))
def test_a_group_keeps_its_colour(names):
    colours = Colours()
    looks = {name: colours(name) for name in names}
    assert all(colours(name) == look for name, look in looks.items())
    assert len(set(looks.values())) == len(looks)


def test_many_marks_at_one_place_keep_lines_close():
    source = page("", [MarkedText("", "ab", tuple(Mark(0, 2, str(n)) for n in range(500)))])
    assert max(map(int, re.findall(r"--(?:deep|inside):(\d+)", source))) <= 8


def test_writing_block_by_block(tmp_path):
    path = tmp_path / "x.html"
    blocks = [MarkedText(str(n), f"text {n}\r", (Mark(0, 4, "A"),)) for n in range(3)]
    write_page(path, "t", iter(blocks))
    assert path.read_bytes() == page("t", blocks).encode("utf-8")
    with pytest.raises(ValueError, match="does not lie within"):
        write_page(path, "t", [MarkedText("", "", (Mark(0, 1, "A"),))])
    assert Page(path.read_text("utf-8")).text(2) == "text 2\r"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match=r"cannot write .*absent/x.html: No such file"):
        write_page(tmp_path / "absent" / "x.html", "t", blocks)
