"""JSON lines of coreference: the original layout, plain words, plain text."""

import json

import pytest
from coref_cases import TOKENIZER, cut, documents, record_of, text_file
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref import jsonlines
from spanbert_ext.tasks.coref.data import Document
from spanbert_ext.tasks.rejects import Rejects

RECORD = {
    "doc_key": "nw/x_0",
    "sentences": [["[CLS]", "the", "c", "##at", "[SEP]"], ["[CLS]", ".", "it", "sat", "[SEP]"]],
    "speakers": [["[SPL]", "A", "A", "A", "[SPL]"], ["[SPL]", "A", "-", "-", "[SPL]"]],
    "clusters": [[[1, 3], [7, 7]], [[8, 8]]],
    "sentence_map": [0, 0, 0, 0, 0, 0, 0, 1, 1, 2],
    "subtoken_map": [0, 0, 1, 1, 1, 1, 2, 3, 4, 4],
}
DOCUMENT = Document(
    "nw/x_0",
    ("the", "cat", ".", "it", "sat"),
    (0, 0, 0, 1, 1),
    ("A", "A", "A", None, None),
    "nw",
    (((0, 1), (3, 3)), ((4, 4),)),
)


def json_file(folder, *records):
    return text_file(folder, "".join(json.dumps(r) + "\n" for r in records), "x.jsonl")


def test_the_original_layout_is_read(tmp_path):
    assert jsonlines.read(json_file(tmp_path, RECORD), Rejects()) == [DOCUMENT]


def test_plain_words_and_text_are_read(tmp_path):
    record = {
        "doc_key": "nw/x_0",
        "sentences": [["the", "cat", "."], [], ["it", "sat"]],
        "speakers": [["A", "A", "A"], [], ["-", None]],
        "clusters": [[[0, 1], [3, 3]], [[4, 4]]],
    }
    text = {"id": "t", "text": "Ann ran. She fell.", "genre": "own"}
    found = jsonlines.read(json_file(tmp_path, record, text), Rejects())
    assert found[0] == DOCUMENT
    assert found[1].words == ("Ann", "ran", ".", "She", "fell", ".")
    assert (found[1].id, found[1].genre, found[1].sentence_of_word) == (
        "t",
        "own",
        (0,) * 3 + (1,) * 3,
    )
    bare = jsonlines.document_of({"sentences": [["a"]]}, "in.jsonl:4")
    assert bare == Document("in.jsonl:4", ("a",), (0,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sentences": "x"}, "'sentences' must be there, a list of lists of strings"),
        ({"sentences": [[1]]}, "'sentences' must be there"),
        ({"subtoken_map": [0]}, "'subtoken_map' has 1 entries for 10 pieces"),
        ({"sentence_map": ["0"] * 10}, "'sentence_map' must be a list of integers"),
        ({"subtoken_map": [0, 0, 1, 1, 1, 1, 0, 3, 4, 4]}, "numbers fall after piece 2"),
        ({"speakers": ["A"]}, "1 speakers for 10 words or pieces"),
        ({"speakers": 1}, "'speakers' must be a list, got 1"),
        ({"clusters": {"0": []}}, "'clusters' must be a list"),
        ({"clusters": [[[0, 1]]]}, r"mention \[0, 1\] begins or ends at a special"),
        ({"clusters": [[[9, 10]]]}, r"mention \[9, 10\] is out of range 0\.\.9"),
        ({"clusters": [[[3, 1]]]}, r"mention \[3, 1\] is out of range"),
        ({"clusters": [[3]]}, r"a mention must be \[first, last\], got 3"),
        ({"clusters": [[[1.0, 2]]]}, "a mention must be"),
        ({"sentences": [["[CLS]"]]}, "segment 0 lacks"),
        ({"genre": 3}, "'genre' must be a string, got 3"),
    ],
)
def test_a_record_that_cannot_be_used_is_rejected(tmp_path, change, reason):
    bad = {**RECORD, "doc_key": "bad", **change}
    if change == {"sentences": [["[CLS]"]]}:
        bad.update(subtoken_map=[0], sentence_map=[0])
    with pytest.raises(DataError, match=f"x.jsonl:2: record bad: .*{reason}"):
        jsonlines.read(json_file(tmp_path, RECORD, bad), Rejects())
    rejects = Rejects("skip")
    assert jsonlines.read(json_file(tmp_path, RECORD, bad), rejects) == [DOCUMENT]
    assert [r.id for r in rejects.found] == ["bad"]


@pytest.mark.parametrize("line", ["{", "[1]", "1" * 5000])
def test_a_line_that_is_no_record_is_rejected(tmp_path, line):
    path = text_file(tmp_path, json.dumps(RECORD) + "\n\n" + line + "\n", "x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl:3: (not valid|expected a) JSON"):
        jsonlines.read(path, Rejects())


def test_the_writer_of_the_next_test_keeps_the_conventions():
    clusters = (((0, 1), (3, 3)),)
    document = Document("d", ("the", "cab", ".", "it", "sat"), (0, 0, 0, 1, 1), clusters=clusters)
    record = record_of(cut(document, max_segment_len=6), TOKENIZER)
    assert record["sentences"] == [
        ["[CLS]", "the", "c", "##a", "##b", "[SEP]"],
        ["[CLS]", ".", "[SEP]"],
        ["[CLS]", "i", "##t", "[SEP]"],
        ["[CLS]", "s", "##a", "##t", "[SEP]"],
    ]
    assert record["subtoken_map"] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    # Behind the full stop, [SEP] and [CLS] belong to the next sentence already.
    assert record["sentence_map"] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert record["clusters"] == [[[1, 4], [10, 11]]]
    assert record["speakers"][1] == ["[SPL]", "", "[SPL]"]


@settings(max_examples=100)
@given(documents(), st.integers(3, 12))
def test_the_original_layout_survives_writing_and_reading(tmp_path_factory, document, longest):
    path = tmp_path_factory.getbasetemp() / "back.jsonl"
    found = cut(document, max_segment_len=longest)
    path.write_text(json.dumps(record_of(found, TOKENIZER)))
    (back,) = jsonlines.read(path, Rejects())
    assert back.clusters == document.clusters
    assert back.sentence_of_word == document.sentence_of_word
    for own, word in zip(back.words, document.words, strict=True):
        assert own == word or "[UNK]" in own or not word.isprintable()
