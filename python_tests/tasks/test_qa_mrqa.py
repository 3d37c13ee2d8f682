"""MRQA files and the halves of their development sets."""

import gzip
import json

import pytest

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.mrqa import mrqa_half, read_mrqa
from spanbert_ext.tasks.rejects import Rejects

HEADER = {"header": {"dataset": "HotpotQA", "split": "dev"}}
CONTEXT = "[PAR] [TLE] Paris [SEP] Paris has a tower."
WHERE = {
    "qid": "q1",
    "question": "Where?",
    "answers": ["Paris", "the city of Paris"],
    "detected_answers": [
        {"text": "Paris has", "char_spans": [[24, 32]]},
        {"text": "Paris", "char_spans": [[24, 28], [12, 16]]},
    ],
}


def record(*questions, context=CONTEXT):
    return {"id": "", "context": context, "context_tokens": [], "qas": list(questions)}


def written(tmp_path, *records, name="dev.jsonl.gz"):
    path = tmp_path / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return path


@pytest.mark.parametrize("name", ["dev.jsonl.gz", "dev.jsonl"])
def test_a_file(tmp_path, name):
    path = written(tmp_path, HEADER, "", record(WHERE), name=name)
    assert read_mrqa(path, Rejects()) == [
        QAExample(
            "q1",
            "Where?",
            CONTEXT,
            # The first place is what training uses, whichever answer it belongs to.
            (("Paris", 12), ("Paris", 24), ("Paris has", 24)),
            golds=("Paris", "the city of Paris"),
        )
    ]


def test_answers_may_be_only_detected_or_only_written(tmp_path):
    detected = {k: v for k, v in WHERE.items() if k != "answers"}
    only = {"qid": "q2", "question": "Where?", "answers": ["Rome"]}
    one, other = read_mrqa(written(tmp_path, HEADER, record(detected, only)), Rejects())
    assert one.golds == ("Paris has", "Paris")
    assert (other.golds, other.answers) == (("Rome",), ())


def spans(*pairs):
    return {**WHERE, "qid": "q2", "detected_answers": [{"text": "Paris", "char_spans": [*pairs]}]}


@pytest.mark.parametrize(
    ("question", "name", "reason"),
    [
        (spans([12, 42]), "q2", "[12, 42] lies outside a context of 42 characters"),
        (spans([-1, 4]), "q2", "lies outside"),
        (spans([16, 12]), "q2", "lies outside"),
        (spans([17, 17]), "q2", "nothing but white space"),
        (spans([12]), "q2", "expected pairs"),
        (spans([12.0, 16.0]), "q2", "expected pairs"),
        ({**WHERE, "qid": "q2", "detected_answers": [7]}, "q2", "char_spans"),
        ({**WHERE, "qid": "q2", "detected_answers": 7}, "q2", "expected a list"),
        ({**WHERE, "qid": "q2", "answers": "Paris"}, "q2", "expected a list of texts"),
        ({"qid": "q2", "question": "Where?"}, "q2", "there is no answer"),
        ({**WHERE, "qid": "q2", "question": ""}, "q2", "question: is empty"),
        (WHERE, "q1", "the qid occurs before"),
        ({"question": "Where?"}, "qas[1]", "no field 'qid'"),
        (7, "qas[1]", "expected an object"),
    ],
)
def test_spoiled_questions(tmp_path, question, name, reason):
    path = written(tmp_path, HEADER, record(WHERE, question))
    with pytest.raises(DataError) as error:
        read_mrqa(path, Rejects())
    assert str(error.value).startswith(f"{path}:2: record {name}: ") and reason in str(error.value)
    rejects = Rejects("skip")
    assert [e.id for e in read_mrqa(path, rejects)] == ["q1"]
    assert [r.id for r in rejects.found] == [name]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"context": "x"}', "\ud800".encode(errors="surrogatepass")]
)
def test_spoiled_lines(tmp_path, line):
    path = tmp_path / "dev.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    good = json.dumps(record(WHERE)).encode()
    path.write_bytes(b"\n".join([json.dumps(HEADER).encode(), line, good]))
    with pytest.raises(DataError, match="dev.jsonl:2: "):
        read_mrqa(path, Rejects())
    assert len(read_mrqa(path, Rejects("skip"))) == 1


def test_a_missing_header_is_named(tmp_path):
    path = written(tmp_path, record(WHERE))
    with pytest.raises(DataError, match="record header: the first line is not .*squad"):
        read_mrqa(path, Rejects())
    rejects = Rejects("skip")
    assert [e.id for e in read_mrqa(path, rejects)] == ["q1"]
    assert [r.id for r in rejects.found] == ["header"]


def test_damaged_files(tmp_path):
    whole = written(tmp_path, HEADER, record(WHERE)).read_bytes()
    path = tmp_path / "short.gz"
    for content in (whole[:-12], whole[:5], whole[:20] + b"\0" + whole[21:], whole[:-4] + b"xxxx"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="truncated or damaged gzip"):
            read_mrqa(path, Rejects("skip"))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no record"):
        read_mrqa(path, Rejects())
    with pytest.raises(DataError, match="No such file"):
        read_mrqa(tmp_path / "none.gz", Rejects())


def test_halves_are_what_was_published():
    # Written down once: every reader of these sets must find the same halves.
    cases = {("Who?", "Ada."): 0, ("Where?", "Bob."): 0, ("Où ?", "À Paris."): 1, ("a", "b\nc"): 1}
    found = {pair: mrqa_half(*pair) for pair in cases}
    assert found == cases
    shares = [mrqa_half(f"question {n}", "context") for n in range(2000)]
    assert 900 < sum(shares) < 1100
    assert mrqa_half("a", "b\ud800") in (0, 1)


def test_halves_of_files(tmp_path):
    questions = [{**WHERE, "qid": f"q{n}", "question": f"Where {n}?"} for n in range(20)]
    path = written(tmp_path, HEADER, record(*questions))
    parts = [read_mrqa(path, Rejects(), half) for half in ("dev", "test", "all")]
    dev, test, both = ([e.id for e in part] for part in parts)
    assert dev and test and sorted(dev + test) == sorted(both) and len(both) == 20
    assert all(mrqa_half(e.question, CONTEXT) == 0 for e in parts[0])
    train = {"header": {"dataset": "HotpotQA", "split": "train"}}
    path = written(tmp_path, train, record(*questions))
    assert len(read_mrqa(path, Rejects(), "dev")) == 20
    path = written(tmp_path, HEADER, record(WHERE))
    empty = ["dev", "test"][1 - mrqa_half("Where?", CONTEXT)]
    with pytest.raises(DataError, match="another qa.half"):
        read_mrqa(path, Rejects(), empty)
