"""Every reader takes the same lines and columns from the same file, however its lines end."""

import gzip
import json

import pytest

from spanbert_ext.tasks import registry
from spanbert_ext.tasks.predict_records import items_of
from spanbert_ext.tasks.rejects import Rejects

# Vertical tab, form feed, NEL, a line and a no-break blank of Unicode: characters of a word.
ODD = "a\vb\fc\x85d\u2028e\u00a0f\u3000g"


def rows(*lines):
    return "".join("\t".join(line) + "\n" for line in lines)


def conll_2012(*cells):
    words = (ODD, "she", ODD + "z")
    lines = (
        ("d", "0", str(n), word, "-", "*", "-", "-", "-", "-", "*", cell)
        for n, (word, cell) in enumerate(zip(words, cells, strict=True))
    )
    return f"#begin document (d); part 000\n{rows(*lines)}\n#end document\n"


QUESTION = {"qid": "q", "question": "who ?", "answers": [ODD]} | {
    "detected_answers": [{"text": ODD, "char_spans": [[0, len(ODD) - 1]]}]
}
FILES = {
    "ner": rows((ODD, "B-PER"), ("left", "O"), ("",), ("Rome", "B-LOC")),
    "cola": rows(("x", "1", "", ODD), ("x", "0", "*", "a film")),
    "sst-2": rows(("sentence", "label"), (ODD, "1"), ("a film", "0")),
    "mrpc": rows(
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), ("1", "1", "2", ODD, "it")
    ),
    "coref": conll_2012("(1)", "(1)", "-"),
    "mrqa": json.dumps({"header": {"split": "train"}})
    + "\n"
    + json.dumps({"context": ODD, "qas": [QUESTION]}, ensure_ascii=False),
}
ENDS = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "mixed": lambda text: text.replace("\n", "\r", 1).replace("\n", "\r\n", 1),
    "no last end": lambda text: text.rstrip("\n"),
    "byte order mark": lambda text: "\ufeff" + text,
}


def read(tmp_path, name, data):
    """The examples of a file; their ids hold its name."""
    path = tmp_path / ("file.jsonl" if data[:1] == b"{" else "file")
    path.write_bytes(data)
    entry = registry.entry_of(name)
    return entry.make(entry.options_class()()).read(path, Rejects())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", FILES)
def test_however_lines_end(tmp_path, name, end):
    text = FILES[name]
    expected = read(tmp_path, name, text.encode())
    assert read(tmp_path, name, ENDS[end](text).encode()) == expected
    assert read(tmp_path, name, gzip.compress(ENDS[end](text).encode())) == expected


def test_odd_blanks_stay_in_a_word(tmp_path):
    (tagged,) = read(tmp_path, "ner", FILES["ner"].encode())
    assert tagged.words == (ODD, "left", "Rome")
    (document,) = read(tmp_path, "coref", FILES["coref"].encode())
    assert document.words == (ODD, "she", ODD + "z")
    blanks = FILES["coref"].replace("\t", "  ")
    assert read(tmp_path, "coref", blanks.encode()) == [document]
    assert read(tmp_path, "sst-2", FILES["sst-2"].encode())[0].texts == (ODD,)


@pytest.mark.parametrize("tabs", [1, 3])
@pytest.mark.parametrize("where", ["everywhere", "in one line"])
@pytest.mark.parametrize("name", ["ner", "cola", "sst-2", "mrpc", "coref"])
def test_tabs_at_the_end_begin_no_column(tmp_path, name, where, tabs):
    text = FILES[name]
    lines = text.rstrip("\n").split("\n")
    rows_there = [n for n, line in enumerate(lines) if "\t" in line]
    for n in rows_there if where == "everywhere" else rows_there[-1:]:
        lines[n] += "\t" * tabs
    assert read(tmp_path, name, "\n".join(lines).encode()) == read(tmp_path, name, text.encode())


def test_an_empty_coreference_column_is_still_the_last(tmp_path):
    """Where another annotation stands before it, that is not taken for clusters."""
    text = conll_2012("", "", "").replace("\t*\t\n", "\t(PERSON)\t\n", 2)
    assert read(tmp_path, "coref", text.encode())[0].clusters == ()
    some = conll_2012("(1)", "", "(1)")
    assert read(tmp_path, "coref", some.encode())[0].clusters == (((0, 0), (2, 2)),)


@pytest.mark.parametrize("end", ENDS)
def test_records_of_predict(tmp_path, end):
    path = tmp_path / "in.jsonl"
    text = "".join(json.dumps({"text": ODD, "id": n}, ensure_ascii=False) + "\n" for n in range(3))
    path.write_bytes(ENDS[end](text).encode())
    found = [(item.where, item.record) for item in items_of(path, task=None)]
    assert found == [(f"in.jsonl:{n + 1}", {"text": ODD, "id": n}) for n in range(3)]
