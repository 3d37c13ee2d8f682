"""SQuAD files and records of `predict`: what is read, and what is said about what cannot be."""

import copy
import json

import pytest

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample, read_squad
from spanbert_ext.tasks.qa.task import QATask
from spanbert_ext.tasks.rejects import Rejects

CONTEXT = "The tower was built in Paris."
TOWER = {"id": "a1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 23}]}
WHAT = {
    "id": "a2",
    "question": "What?",
    "answers": [{"text": "tower", "answer_start": 4}, {"text": "The tower", "answer_start": 0}],
}


def file_of(questions, context=CONTEXT):
    return {"version": "1.1", "data": [{"paragraphs": [{"context": context, "qas": questions}]}]}


def v2(question, impossible=False):
    answers = [] if impossible else question["answers"]
    return {**question, "is_impossible": impossible, "answers": answers}


def written(tmp_path, content):
    path = tmp_path / "squad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_version_1(tmp_path):
    path = written(tmp_path, file_of([TOWER, WHAT]))
    assert read_squad(path, Rejects(), "squad") == [
        QAExample("a1", "Where?", CONTEXT, (("Paris", 23),), None, ("Paris",)),
        QAExample(
            "a2", "What?", CONTEXT, (("tower", 4), ("The tower", 0)), None, ("tower", "The tower")
        ),
    ]


def test_version_2_and_byte_order_mark(tmp_path):
    content = file_of([v2(TOWER), v2(WHAT, impossible=True)])
    path = written(tmp_path, "\ufeff" + json.dumps(content))
    one, other = read_squad(path, Rejects(), "squad2")
    assert (one.is_impossible, one.golds) == (False, ("Paris",))
    assert (other.is_impossible, other.golds, other.answers) == (True, (), ())


def spoiled(**changes):
    question = copy.deepcopy(WHAT)
    answer = {k: changes.pop(k) for k in ("text", "answer_start") if k in changes}
    question["answers"][1] |= answer
    question |= changes
    return {name: value for name, value in question.items() if value != "missing"}


SPOILED = [
    (spoiled(answer_start=1), "a2", "'he tower ' is there"),
    (spoiled(answer_start=-29), "a2", "no such place"),
    (spoiled(answer_start=29), "a2", "no such place"),
    (spoiled(answer_start=400), "a2", "a context of 29"),
    (spoiled(answer_start="0"), "a2", "whole number"),
    (spoiled(answer_start=True), "a2", "whole number"),
    (spoiled(answer_start=None), "a2", "whole number"),
    (spoiled(text=""), "a2", "text: is empty"),
    (spoiled(text=7), "a2", "expected text, got int"),
    (spoiled(answers=[]), "a2", "there is no answer"),
    (spoiled(answers="tower"), "a2", "expected a list"),
    (spoiled(answers={"text": ["tower"]}), "a2", "one length"),
    (spoiled(answers="missing"), "a2", "no field 'answers'"),
    (spoiled(question="missing"), "a2", "no field 'question'; fields there: 'id', 'answers'"),
    (spoiled(question="  "), "a2", "question: is empty"),
    (spoiled(question="\ud800?"), "a2", "half a surrogate pair at character 0"),
    (spoiled(id="missing"), "data[0].paragraphs[0].qas[1]", "no field 'id'"),
    (spoiled(id=""), "data[0].paragraphs[0].qas[1]", "no field 'id'"),
    (spoiled(id="a1"), "a1", "the id occurs before"),
    (spoiled(is_impossible=True), "a2", "the task squad2 reads it"),
    (spoiled(is_impossible="false"), "a2", "is_impossible: expected true or false, got 'false'"),
    (["a2"], "data[0].paragraphs[0].qas[1]", "expected an object"),
]


@pytest.mark.parametrize(("question", "name", "reason"), SPOILED)
def test_spoiled_questions(tmp_path, question, name, reason):
    path = written(tmp_path, file_of([TOWER, question]))
    with pytest.raises(DataError) as error:
        read_squad(path, Rejects(), "squad")
    place = "data[0].paragraphs[0].qas[1]"
    where = f"{path}: {place}: " + (f"record {name}: " if name != place else "")
    assert str(error.value).startswith(where) and reason in str(error.value)
    rejects = Rejects("skip")
    assert [e.id for e in read_squad(path, rejects, "squad")] == ["a1"]
    assert [reject.id for reject in rejects.found] == [name]
    assert reason in rejects.found[0].reason


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (WHAT, "the task squad reads SQuAD 1.1"),
        ({**WHAT, "is_impossible": "no"}, "is_impossible: expected true or false, got 'no'"),
        ({**WHAT, "is_impossible": True}, "is_impossible is true but there are answers"),
        ({**WHAT, "is_impossible": False, "answers": []}, "there is no answer"),
    ],
)
def test_spoiled_version_2(tmp_path, question, reason):
    path = written(tmp_path, file_of([v2(TOWER), question]))
    with pytest.raises(DataError, match="record a2") as error:
        read_squad(path, Rejects(), "squad2")
    assert reason in str(error.value)


@pytest.mark.parametrize("context", [None, "", " \n", 7, "\udc00"])
def test_spoiled_context(tmp_path, context):
    content = file_of([TOWER], context)
    content["data"] += file_of([{**WHAT, "id": "fine"}])["data"]
    rejects = Rejects("skip")
    found = read_squad(written(tmp_path, content), rejects, "squad")
    assert [e.id for e in found] == ["fine"]
    assert rejects.found[0].id == "a1" and rejects.found[0].reason.startswith("context: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ('{"header": {}}\n{"context": ""}', "the task mrqa"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no list 'data'"),
        ({"data": {}}, "no list 'data'"),
        ({"data": []}, "there is no record in it"),
        ({"data": ["x"]}, "no list 'paragraphs'"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "no list 'qas'"),
        ({"data": [{"paragraphs": [7]}]}, "no list 'qas'"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_other_files(tmp_path, content, reason, policy):
    with pytest.raises(DataError) as error:
        read_squad(written(tmp_path, content), Rejects(policy), "squad")
    assert reason in str(error.value)


def test_a_file_of_the_other_version_is_refused_whatever_the_policy(tmp_path):
    path = written(tmp_path, file_of([v2(TOWER, True), v2(WHAT, True)]))
    with pytest.raises(DataError, match="2 of 2 records cannot be used.*task squad2"):
        read_squad(path, Rejects("skip"), "squad")


def test_a_question_that_is_said_to_have_an_answer_is_of_version_1_too(tmp_path):
    plain = read_squad(written(tmp_path, file_of([TOWER, WHAT])), Rejects(), "squad")
    path = written(tmp_path, file_of([v2(TOWER), {**WHAT, "is_impossible": None}]))
    assert read_squad(path, Rejects(), "squad") == plain
    assert plain[0].is_impossible is None


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_squad(tmp_path / "none.json", Rejects(), "squad")


def test_records_of_predict():
    task = QATask("squad", QAOptions())
    bare = task.parse({"question": "Where?", "context": CONTEXT}, "in.jsonl:3")
    assert bare == QAExample("in.jsonl:3", "Where?", CONTEXT)
    full = {"id": 7, "question": "Where?", "context": CONTEXT, "top_k": 3}
    for answers in (TOWER["answers"], {"text": ["Paris"], "answer_start": [23]}):
        found = task.parse({**full, "answers": answers}, "in.jsonl:3")
        assert (found.id, found.answers, found.top_k) == ("7", (("Paris", 23),), 3)
    v2_record = {**full, "answers": [], "is_impossible": True}
    assert task.parse(v2_record, "x").is_impossible is None
    with pytest.raises(DataError, match="is_impossible: expected true or false, got 'false'"):
        task.parse(v2_record | {"is_impossible": "false"}, "x")
    assert QATask("squad2", QAOptions()).parse(v2_record, "x").is_impossible is True


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": ""}, "question: is empty"),
        ({"context": "\n"}, "context: is empty"),
        ({"context": None}, "context: expected text, got NoneType"),
        ({"context": "a\ud800"}, "half a surrogate pair"),
        ({"answers": [{"text": "x", "answer_start": 0}]}, "'T' is there"),
        ({"top_k": 0}, "top_k"),
        ({"id": []}, "'id'"),
    ],
)
def test_spoiled_records_of_predict(changes, reason):
    record = {"question": "Where?", "context": CONTEXT} | changes
    with pytest.raises(DataError, match="^in.jsonl:3: ") as error:
        QATask("squad", QAOptions()).parse(record, "in.jsonl:3")
    assert reason in str(error.value)


def test_impossible_options():
    assert QAOptions().faults() == []
    wrong = QAOptions(
        length=15, stride=0, overlap=-1, max_question=0, max_answer=0, n_best=0, top_k=0
    )
    names = ["length", "stride", "max_question", "max_answer", "n_best", "top_k"]
    assert [fault.split(":")[0] for fault in wrong.faults()] == [f"qa.{name}" for name in names]
    assert QAOptions(overlap=315).faults() == []
    (fault,) = QAOptions(overlap=316).faults()
    assert fault.startswith("qa.overlap: must lie in [0, 315]") and "got 316" in fault
