"""Gold answers under another name are told and never read as none; what is seen and accepted."""

import json

import pytest

from spanbert_ext.cli import command
from spanbert_ext.errors import DataError
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.forms import FORMS
from spanbert_ext.tasks.gold_fields import gold_elsewhere
from spanbert_ext.tasks.rejects import Rejects

WORDS = {"sentences": [["Ada", "met", "Bo", "."], ["She", "liked", "him", "."]]}
PAIRS = [[[0, 0], [4, 4]], [[2, 2], [6, 6]]]
QUESTION = {"id": "1", "question": "Who?"}


def make(name):
    entry = registry.entry_of(name)
    return entry.make(entry.options_class()())


def read(tmp_path, task, content, suffix="jsonl"):
    path = tmp_path / f"file.{suffix}"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return make(task).read(path, Rejects())


def squad(**fields):
    return {"data": [{"paragraphs": [{"context": "Ada left.", "qas": [QUESTION | fields]}]}]}


def mrqa(**fields):
    header = json.dumps({"header": {"split": "train"}})
    question = {"qid": "1", "question": "Who?"} | fields
    return f"{header}\n{json.dumps({'context': 'Ada left.', 'qas': [question]})}"


TACRED = {"id": "r", "token": ["Ada", "met", "Bo"], "subj_start": 0, "subj_end": 0}
TACRED |= {"obj_start": 2, "obj_end": 2, "subj_type": "P", "obj_type": "P"}
DISGUISED = [
    ("coref", WORDS | {"coref_clusters": PAIRS}, "coref_clusters"),
    ("coref", WORDS | {"Chains": PAIRS}, "Chains"),
    ("coref", WORDS | {"anything": PAIRS}, "anything"),
    ("coref", WORDS | {"clusters": [], "corefs": PAIRS}, "corefs"),
    ("coref", WORDS | {"clusters": None, "corefs": {"1": PAIRS}}, "corefs"),
    ("squad", squad(answer=[{"text": "Ada", "answer_start": 0}]), "answer"),
    ("squad", squad(spans=[[0, 3]]), "spans"),
    ("mrqa", mrqa(gold_answers=["Ada"]), "gold_answers"),
    ("tacred", [TACRED | {"label": "met"}], "label"),
    ("tacred", [TACRED | {"rel": "met"}], "rel"),
    ("cola", "index\tsentence\ttarget\n0\ta film\t1\n", "target"),
    ("mnli", "sentence1\tsentence2\tclass\na\tb\tneutral\n", "class"),
]


@pytest.mark.parametrize(("task", "content", "field"), DISGUISED, ids=str)
def test_gold_answers_under_another_name_are_told(tmp_path, task, content, field):
    suffix = "jsonl" if task in ("coref", "mrqa") else "json"
    with pytest.raises(DataError) as raised:
        read(tmp_path, task, content, suffix)
    message = str(raised.value)
    assert f"is it '{field}'?" in message and "there: '" in message
    assert "xpected" in message


def test_what_is_known_is_no_gold(tmp_path):
    """Fields of the layout beside gold answers that are there, and files that need none."""
    more = {"speakers": [["A"] * 4, ["B"] * 4], "constituents": [[0, 1]], "ner": [[0, 0]]}
    (document,) = read(tmp_path, "coref", WORDS | more | {"clusters": PAIRS, "pos": ["X"]})
    assert len(document.clusters) == 2
    assert read(tmp_path, "coref", WORDS | {"clusters": [], "pos": ["X"]})[0].clusters == ()
    assert make("coref").parse(WORDS | {"pos": ["X"], "corefs": PAIRS}, "x").clusters == ()
    (test,) = read(tmp_path, "cola", "index\tsentence\tgenre\n0\ta film\tx\n", "tsv")
    assert test.gold is None
    assert gold_elsewhere({"answers": ["x"], "answer": "y"}, "answers", ()) == ""
    assert gold_elsewhere({"answer": ""}, "answers", ()) == ""
    assert gold_elsewhere({"relation": "", "tags": []}, "relation", ()) == ""


def test_preco_is_read(tmp_path):
    """[sentence, first, end] within the sentence, the end exclusive."""
    mentions = [[[0, 0, 1], [1, 0, 1]], [[0, 1, 3], [1, 2, 3]]]
    (document,) = read(tmp_path, "coref", WORDS | {"id": "p", "mention_clusters": mentions})
    assert document.clusters == (((0, 0), (4, 4)), ((1, 2), (6, 6)))
    for wrong in ([[[2, 0, 1]]], [[[0, 0]]], [[0]], 3):
        with pytest.raises(DataError, match="mention_clusters"):
            read(tmp_path, "coref", WORDS | {"mention_clusters": wrong})
    with pytest.raises(DataError, match=r"mention \[6, 9\] is out of range"):
        read(tmp_path, "coref", WORDS | {"mention_clusters": [[[1, 2, 6]]]})


SEEN = [
    ("squad", '{"question": "Who?", "context": "Ada"}\n{"question": "W", "context": "A"}', "json")
    + ("it is JSON lines, an object with the fields 'question', 'context' in the first",),
    ("squad", '{"question": "Who?"}', "json")
    + ("no list 'data' in it, it is an object with the fields 'question'",),
    ("squad", '[{"question": "Who?"}]', "json")
    + ("it is a list of 1, the first an object with the fields 'question'",),
    ("squad", '{"data": [{"id": "1", "question": "Who?"}]}', "json")
    + ("no list 'paragraphs', it is an object with the fields 'id', 'question'",),
    ("squad", "id,question\n1,Who?", "csv", "it is not valid JSON"),
    ("mrqa", '{"question": "Who?"}', "jsonl")
    + ("it is an object with the fields 'question'",),
    ("tacred", '{"token": ["a"]}\n{"token": ["b"]}', "json")
    + ("it is JSON lines, an object with the fields 'token' in the first",),
    ("tacred", '{"data": []}', "json", "found an object with the fields 'data'"),
    ("ner", '{"tokens": ["Ada"], "ner_tags": ["B-PER"]}', "jsonl")
    + ("it is JSON, an object with the fields 'tokens', 'ner_tags'",),
    ("ner", '[\n {"text": "Ada"}]', "json", "it is JSON"),
    ("coref", '{"tokens": ["Ada"], "clusters": []}', "jsonl")
    + ("fields there: 'tokens', 'clusters'",),
    ("coref", "# newdoc id = a\n1\tAda\tAda\tPROPN\t_\tEntity=(e1)\n", "conllu")
    + ("a word outside #begin document",),
    ("sst-2", "text,label\ngood,1\n", "csv", "it is 'text,label'"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "content", "suffix", "seen"), SEEN, ids=str)
def test_what_is_seen_and_what_is_accepted(tmp_path, task, content, suffix, seen):
    with pytest.raises(DataError) as raised:
        read(tmp_path, task, content, suffix)
    message = str(raised.value)
    assert seen in message and message.isprintable()
    assert "xpected" in message or 'is not {"header"' in message


def test_a_word_may_begin_with_a_bracket(tmp_path):
    (example,) = read(tmp_path, "ner", "[ O\nAda B-PER\n] O\n", "conll")
    assert example.words == ("[", "Ada", "]")


@pytest.mark.parametrize("task", registry.TASKS)
def test_help_shows_records_and_files(task, capsys):
    made = make(task)
    for verb in ("predict", "evaluate", "finetune"):
        with pytest.raises(SystemExit):
            command.main([verb, task, "--help"])
        text = capsys.readouterr().out
        assert (made.example_record in text) is (verb == "predict")
        assert (FORMS[task].file.splitlines()[0] in text) is (verb != "predict")
    # What the help shows can be predicted.
    made.parse(json.loads(made.example_record), "in.jsonl:1")
    for field in json.loads(made.example_record):
        assert field in FORMS[task].fields


@pytest.mark.parametrize(
    ("task", "suffix"), [("squad2", "json"), ("tacred", "json"), ("mrqa", "jsonl")]
)
def test_the_file_in_the_help_can_be_read(tmp_path, task, suffix):
    assert len(read(tmp_path, task, FORMS[task].file.replace(", ...]", "]"), suffix)) == 1


def test_a_folder_is_named_with_its_files(tmp_path, capsys):
    for name in "gfedcba":
        (tmp_path / f"{name}.json").write_text("")
    words = ["finetune", "squad", "--model=m", f"--train={tmp_path}"]
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert (
        "is a folder; name files of it (a.json, b.json, c.json, d.json, e.json and 2 more)" in said
    )
    (tmp_path / "empty").mkdir()
    assert command.main([*words[:-1], f"--train={tmp_path}/empty"]) == 2
    assert "name files of it (it is empty)" in capsys.readouterr().err


def test_a_place_is_named_once(tmp_path):
    with pytest.raises(DataError) as raised:
        read(tmp_path, "coref", {"words": ["a"], "clusters": [[[0, 4]]]})
    assert str(raised.value).count("file.jsonl:1") == 1
    with pytest.raises(DataError, match="no field 'answers'; fields there: 'id', 'question'"):
        read(tmp_path, "squad2", squad(), "json")
