"""GLUE's files: the layouts of all nine tasks, and what becomes of faulty lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.classification.config import GlueOptions
from spanbert_ext.tasks.classification.data import GlueExample
from spanbert_ext.tasks.classification.layouts import LAYOUTS
from spanbert_ext.tasks.classification.task import GlueTask
from spanbert_ext.tasks.rejects import Rejects

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse"
    "\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)
STS_B = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
# Task, file, the example in it. Labelled files first, then test sets.
FILES = [
    ("cola", "gj04\t0\t*\tThe a cat.", ("1", ("The a cat.",), "0")),
    ("cola", "index\tsentence\n0\tA cat.", ("0", ("A cat.",), None)),
    ("cola", "Id\tSentence\n0\tA cat.", ("0", ("A cat.",), None)),
    ("sst-2", "sentence\tlabel\nfine \t1", ("2", ("fine ",), "1")),
    ("sst-2", "index\tsentence\n0\tfine", ("0", ("fine",), None)),
    (
        "mrpc",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tone\tother",
        ("2", ("one", "other"), "1"),
    ),
    (
        "mrpc",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t70\t71\tone\tother",
        ("0", ("one", "other"), None),
    ),
    ("mrpc", "sentence1\tsentence2\tlabel\tidx\none\tother\t0\t7", ("7", ("one", "other"), "0")),
    ("sts-b", f"{STS_B}\tscore\n3\tg\tf\t2012\t9\ts\ts\ta\tb\t4.250", ("3", ("a", "b"), 4.25)),
    ("sts-b", f"{STS_B}\n3\tg\tf\t2012\t9\ts\ts\ta\tb", ("3", ("a", "b"), None)),
    (
        "qqp",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\twhy\thow\t0",
        ("5", ("why", "how"), "0"),
    ),
    ("qqp", "id\tquestion1\tquestion2\n5\twhy\thow", ("5", ("why", "how"), None)),
    (
        "mnli",
        f"{MNLI}\tlabel1\tgold_label\n0\t1\t1c\tg\t(\t(\t(\t(\ta\tb\tneutral\tentailment",
        ("0", ("a", "b"), "entailment"),
    ),
    (
        "mnli",
        f"{MNLI}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        "0\t1\t1c\tg\t(\t(\t(\t(\ta\tb" + "\tneutral" * 5 + "\tcontradiction",
        ("0", ("a", "b"), "contradiction"),
    ),
    ("mnli", f"{MNLI}\n0\t1\t1c\tg\t(\t(\t(\t(\ta\tb", ("0", ("a", "b"), None)),
    ("mnli", "index\tsentence1\tsentence2\n0\ta\tb", ("0", ("a", "b"), None)),
    (
        "mnli",
        "Logic\tPremise\tHypothesis\tLabel\nNegation\ta\tb\tneutral",
        ("2", ("a", "b"), "neutral"),
    ),
    (
        "qnli",
        "index\tquestion\tsentence\tlabel\n0\tq\ts\tnot_entailment",
        ("0", ("q", "s"), "not_entailment"),
    ),
    ("qnli", "index\tquestion\tsentence\n0\tq\ts", ("0", ("q", "s"), None)),
    (
        "rte",
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment",
        ("0", ("a", "b"), "entailment"),
    ),
    ("rte", "index\tsentence1\tsentence2\n0\ta\tb", ("0", ("a", "b"), None)),
    ("wnli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1", ("0", ("a", "b"), "1")),
    ("wnli", "index\tsentence1\tsentence2\n0\ta\tb", ("0", ("a", "b"), None)),
]
CHOSEN = ["matthews", "accuracy", "accuracy_and_f1", "pearson_and_spearman", "accuracy_and_f1"]


def read(folder, name, content, policy="error", **settings):
    path = folder / "x.tsv"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    rejects = Rejects(policy, **settings)
    return GlueTask(name, GlueOptions()).read(path, rejects), rejects.found


@pytest.mark.parametrize(("name", "content", "example"), FILES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_layouts(tmp_path, name, content, example, end, bom):
    found, _ = read(tmp_path, name, bom + content.replace("\n", end) + end)
    assert found == [GlueExample(*example)]


def test_the_nine_tasks():
    assert list(LAYOUTS) == ["cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli"]
    tasks = [GlueTask(name, GlueOptions()) for name in LAYOUTS]
    assert [task.best_metric for task in tasks] == [*CHOSEN, *["accuracy"] * 4]
    assert [len(task.labels()) for task in tasks] == [2, 2, 2, 1, 2, 3, 2, 2, 2]
    assert {name for name, _, _ in FILES} == set(LAYOUTS)


def test_a_quotation_mark_is_a_character(tmp_path):
    content = 'sentence\tlabel\n"never closed\t1\nsaid "so" \'\t0\n"\t1\n""doubled""\t0\n'
    found, _ = read(tmp_path, "sst-2", content)
    texts = [example.texts[0] for example in found]
    assert texts == ['"never closed', 'said "so" \'', '"', '""doubled""']
    assert [example.gold for example in found] == ["1", "0", "1", "0"]


@given(st.lists(st.text(st.characters(exclude_characters="\t\n\r", codec="utf-8")), min_size=1))
def test_any_text_is_read_as_it_is(tmp_path_factory, texts):
    """Nothing but tab and line feed ends a field: no other separator of Unicode does."""
    folder = tmp_path_factory.mktemp("any")
    content = "sentence\tlabel\nfirst\t0\n" + "".join(f"{text}\t1\n" for text in texts)
    found, rejected = read(folder, "sst-2", content, "skip", limit=1.0)
    assert [example.texts[0] for example in found[1:]] == [text for text in texts if text.strip()]
    assert len(rejected) == sum(not text.strip() for text in texts)


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
# Task, the header and a good line, a faulty line, what is said of it.
GOOD = {
    "cola": "a\t1\t\tfine\n",
    "sst-2": "sentence\tlabel\nfine\t1\n",
    "qqp": QQP + "5\t1\t2\twhy\thow\t0\n",
    "mnli": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n",
    "sts-b": "index\tsentence1\tsentence2\tscore\n0\ta\tb\t5\n",
}
FAULTS = [
    ("cola", "a\t1\tno mark column", "3 columns where 4 are expected, column number 4 is missing"),
    ("sst-2", "no tab", "1 columns where 2 are expected, column label is missing"),
    ("sst-2", "with\ttab\t1", "3 columns where 2 are expected: is there a tab in a text?"),
    ("sst-2", "fine\tgood", "unknown label; known are 0, 1 ('good')"),
    ("sst-2", "fine\t", "unknown label; known are 0, 1"),
    ("sst-2", " \u3000\t1", "the text is empty"),
    ("sst-2", b"caf\xe9 \t1", "not UTF-8: byte 0xe9 at column 4"),
    ("qqp", "\tWas it? What?\t0", "3 columns where 6 are expected, column question1 is missing"),
    ("qqp", "5\t1\t2\twhy\t\t0", "the text is empty"),
    ("mnli", "0\ta\tb\t-", "unknown label; known are contradiction, entailment, neutral ('-')"),
    ("sts-b", "0\ta\tb\tmuch", "the score is no number from 0 to 5 ('much')"),
    ("sts-b", "0\ta\tb\t5.01", "the score is no number from 0 to 5 ('5.01')"),
    ("sts-b", "0\ta\tb\t-0.1", "the score is no number from 0 to 5"),
    ("sts-b", "0\ta\tb\tnan", "the score is no number from 0 to 5"),
    ("sts-b", "0\ta\tb\tinf", "the score is no number from 0 to 5"),
]


@pytest.mark.parametrize(("name", "line", "said"), FAULTS)
def test_a_faulty_line_goes_by_the_policy(tmp_path, name, line, said):
    line = line if isinstance(line, bytes) else line.encode("utf-8")
    good = GOOD[name].encode("utf-8")
    number = good.count(b"\n") + 1
    content = good + line + b"\n" + good.splitlines(keepends=True)[-1]
    with pytest.raises(DataError) as raised:
        read(tmp_path, name, content)
    assert f"x.tsv:{number}: " in str(raised.value)
    assert said in str(raised.value)
    assert "--on_error skip" in str(raised.value)
    found, (reject,) = read(tmp_path, name, content, "skip")
    assert len(found) == 2
    assert reject.where.endswith(f"x.tsv:{number}")
    assert said.startswith(reject.reason)


def test_the_first_line_of_a_file_without_a_header_goes_by_the_policy_too(tmp_path):
    found, (reject,) = read(tmp_path, "cola", b"a\t1\t\tcaf\xe9\na\t0\t*\tfine\n", "skip")
    assert [example.id for example in found] == ["2"]
    assert reject.reason == "not UTF-8: byte 0xe9 at column 9"


def test_blank_lines_are_passed_over(tmp_path):
    found, _ = read(tmp_path, "sst-2", "sentence\tlabel\n\nfine\t1\n\r\nbad\t0\n\n")
    assert [example.id for example in found] == ["3", "5"]


def test_an_empty_text_of_a_test_set_stays(tmp_path):
    """A submission lacks no line."""
    found, _ = read(tmp_path, "qqp", "id\tquestion1\tquestion2\n0\twhy\t\n1\t\thow\n")
    assert [example.texts for example in found] == [("why", ""), ("", "how")]


def test_another_kind_of_file(tmp_path):
    with pytest.raises(DataError, match=r"x.tsv:1: the header names no columns sentence1 and sent"):
        read(tmp_path, "rte", "sentence\tlabel\nfine\t1\n")
    with pytest.raises(DataError, match=r"has not the 4 columns without one; it is 'a', '1'\."):
        read(tmp_path, "cola", "a\t1\n")
    with pytest.raises(DataError, match="the header names no columns"):
        read(tmp_path, "sst-2", "sentence\tlabel\nfine\t1\n".encode("utf-16"))
    for content in ("", "\n", "sentence\tlabel\n"):
        with pytest.raises(DataError, match="there is no record in it"):
            read(tmp_path, "sst-2", content)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        GlueTask("sst-2", GlueOptions()).read(tmp_path / "absent.tsv", Rejects())
    labels_elsewhere = "sentence\tlabel\n" + "fine\tgood\n" * 9 + "fine\t1\n"
    with pytest.raises(DataError, match="9 of 10 records cannot be used"):
        read(tmp_path, "sst-2", labels_elsewhere, "skip")


def test_a_missing_label_column_is_said(tmp_path, caplog):
    read(tmp_path, "mnli", "index\tsentence1\tsentence2\n0\ta\tb\n")
    assert "no column gold_label or label, so there is nothing to score" in caplog.text


def parse(name, **record):
    return GlueTask(name, GlueOptions()).parse(record, "in.jsonl:3")


def test_records_of_predict():
    assert parse("cola", sentence="a b") == GlueExample("in.jsonl:3", ("a b",))
    assert parse("sst-2", id=7, text="x", label=1) == GlueExample("7", ("x",), "1")
    pair = GlueExample("q", ("a", "b"))
    for names in ("sentence1 sentence2", "premise hypothesis", "question1 question2"):
        assert parse("mnli", id="q", **dict(zip(names.split(), "ab", strict=True))) == pair
    assert parse("qnli", idx="q", question="a", sentence="b") == pair
    assert parse("sts-b", sentence1="a", sentence2="b", score=5).gold == 5.0
    assert parse("sts-b", sentence1="a", sentence2="b", label=None).gold is None


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("cola", {}, "the record needs sentence or text; it has nothing"),
        ("cola", {"sentence": None}, "the record needs sentence or text; it has 'sentence'"),
        ("cola", {"sentence": ""}, "the text is empty"),
        ("cola", {"sentence": "a\ud800"}, "half a surrogate pair at character 1 of the text"),
        ("cola", {"sentence": 5}, "the text is not a string ('5')"),
        ("rte", {"sentence1": "a"}, "the record needs sentence1 and sentence2 or question1 and"),
        ("rte", {"sentence1": "a", "sentence2": ["b"]}, "the text is not a string"),
        ("mnli", {"premise": "a", "hypothesis": "b", "label": 0}, "unknown label; known are contr"),
        ("wnli", {"sentence1": "a", "sentence2": "b", "label": True}, "unknown label"),
        ("sts-b", {"sentence1": "a", "sentence2": "b", "score": True}, "the score is no number"),
        ("sts-b", {"sentence1": "a", "sentence2": "b", "score": [1]}, "the score is no number"),
    ],
)
def test_impossible_records(name, record, said):
    with pytest.raises(DataError) as raised:
        parse(name, **record)
    assert str(raised.value).startswith("in.jsonl:3: ")
    assert said in str(raised.value)
