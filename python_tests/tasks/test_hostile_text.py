"""Text of any kind through `spanbert predict` and the pipelines: an answer or a named refusal,
never a crash, and places that are right to the character.

SPANBERT_EXT_EXAMPLES sets the number of examples of each property.
"""

import html.parser
import json
import math
import os
import re
from pathlib import Path

import pytest
from coref_runs import coref_words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tasks import NAMES, PLAIN, sentiment_file

from spanbert_ext import ExtractiveQA, RelationClassifier, SpanTagger
from spanbert_ext.cli import command
from spanbert_ext.errors import DataError

EXAMPLES = settings(
    max_examples=int(os.environ.get("SPANBERT_EXT_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCRIPT = "<script>alert(1)</script> & <b onclick='x'>\"Paris\"</b> </div><!-- ]]>"
HOSTILE = {
    "empty": "",
    "blanks": " \t\n\r\x0b\u3000\u2028 ",
    "nul": "Anna\0was\0\0in Paris\0",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f Anna",
    "only controls": "\x01\x02\x7f\x80",
    "emoji": "Anna \U0001f600\U0001f468\u200d\U0001f469 in \U0001f1eb\U0001f1f7 Paris",
    "right to left": "\u05e9\u05b8\u05c1\u05dc \u202eAnna\u202c \u0645\u0631\u062d Paris",
    "marks": "A\u0301nna wa\u0308s \u0301\u0302 in P\u0327aris e" + "\u0301" * 500,
    "only marks": "\u0301\u0302\u0303",
    "half a pair": "Anna was \ud83d in \udc00 Paris",
    "only half a pair": "\ud83d",
    "joiners": "\u200b\u200c\u200d\ufeff Anna \u2060",
    "private": "\ue000\U0010ffff\ufffe\uffff\ufdd0 Anna",
    "no blanks": "a" * 3000,
    "specials": "[CLS] Anna [SEP] [PAD] [MASK] was [UNK] in [SEP] Paris",
    "script": SCRIPT,
    "lengths": "\u0130\u0131\u00df\ufb01\ufb03 \u1e9e \u01c4 Anna",
    "scripts": "\u4e2d\u6587 \u0e44\u0e21\u0e48 \uac01 \u1112\u1161\u11ab \u0938\u094d Anna",
    "lines": "Anna\r\nwas\rin\n\n\nParis\u2028and\u2029Rome\x85",
    "long": "Anna was in Paris with Boris , and the film was very good . " * 40,
}


def characters():
    return st.one_of(
        st.sampled_from([*(word + " " for word in [*PLAIN, *NAMES])]),
        st.sampled_from(list("".join(HOSTILE.values()))),
        st.characters(),
        st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Me", "Co", "Cn"]),
    )


def texts(most=60):
    return st.lists(characters(), max_size=most).map("".join)


def train(toy_bert, home, task, content, *more):
    path = home / f"{task}-data"
    if content is not None:
        path.write_text(content, "utf-8")
    words = [f"--model={toy_bert}", f"--train={path}", f"--output={home}/{task}", "--max_steps=2"]
    words += ["--precision=fp32", "--device=cpu", "--batch.examples=4", *more]
    assert command.main(["finetune", task, *words]) == 0


@pytest.fixture(scope="module")
def models(toy_bert, tmp_path_factory):
    """A folder with a run of each of squad2, tacred, ner, sst-2 and coref, of two steps each."""
    home = tmp_path_factory.mktemp("models")
    context, answer = "Anna was in Paris .", {"text": "Paris", "answer_start": 12}
    questions = [
        {
            "id": f"q{n}",
            "question": "was Anna in ?",
            "answers": [answer] * n,
            "is_impossible": not n,
        }
        for n in range(2)
    ]
    squad = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    train(toy_bert, home, "squad2", json.dumps(squad), "--qa.length=48")
    relation = {"token": context.split(), "subj_start": 0, "subj_end": 0, "obj_start": 3}
    relation |= {"obj_end": 3, "subj_type": "PER", "obj_type": "LOC"}
    pairs = [{**relation, "id": x, "relation": x} for x in ("no_relation", "was_in")]
    train(toy_bert, home, "tacred", json.dumps(pairs), "--relation.length=48")
    tags = ["B-PER", "O", "O", "B-LOC", "O"]
    rows = "\n".join(f"{word}\t{tag}" for word, tag in zip(context.split(), tags, strict=True))
    train(toy_bert, home, "ner", rows, "--tagging.length=32", "--tagging.overlap=8")
    sentiment_file(home / "sst-2-data", 8)
    train(toy_bert, home, "sst-2", None, "--glue.length=48")
    assert command.main(coref_words(toy_bert, home, home / "coref", max_steps=2)) == 0
    return home


def test_the_example_of_the_readme(models, toy_bert, tmp_path, monkeypatch):
    """The README's calls, on these models under its names."""
    readme = Path(__file__).resolve().parents[2] / "README.md"
    examples = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.S)
    (example,) = [text for text in examples if "ExtractiveQA" in text]
    for name, task in (("qa", "squad2"), ("ner", "ner"), ("tacred", "tacred"), ("coref", "coref")):
        (tmp_path / name).symlink_to(models / task)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, str(readme), "exec"), names)
    assert names["found"].text.startswith("Ada met Charles")


@pytest.fixture(scope="module")
def qa(models):
    return ExtractiveQA(models / "squad2", device="cpu")


@pytest.fixture(scope="module")
def relations(models):
    return RelationClassifier(models / "tacred", device="cpu")


@pytest.fixture(scope="module")
def tagger(models):
    return SpanTagger(models / "ner", device="cpu")


def check_answer(context, found):
    assert context[found["start"] : found["end"]] == found["answer"]
    assert 0 <= found["score"] <= 1
    assert found["answer"] or found["start"] == found["end"] == 0


def check_entities(text, entities):
    for entity in entities:
        assert text[entity.start : entity.end] == entity.text and entity.text.strip()
        assert entity.type in ("LOC", "PER") and 0 <= entity.score <= 1 + 1e-6


@EXAMPLES
@given(question=texts(), context=texts(), top_k=st.integers(1, 3), whole=st.booleans())
def test_question_answering(qa, question, context, top_k, whole):
    options = {"top_k": top_k, "align_to_words": whole}
    if not question.strip() or not context.strip():
        with pytest.raises(DataError, match="expected text that is not empty"):
            qa(question, context, **options)
        return
    found = qa(question, context, **options)
    for answer in [found] if top_k == 1 else found:
        check_answer(context, answer)


@EXAMPLES
@given(text=texts())
def test_tagging(tagger, text):
    entities = tagger(text)
    check_entities(text, entities)
    places = [place for entity in entities for place in (entity.start, entity.end)]
    assert places == sorted(places)
    check_entities(text, tagger.spans(text, top_k=3))


@EXAMPLES
@given(data=st.data(), text=texts(), types=st.lists(texts(3), min_size=2, max_size=2))
def test_relations(relations, data, text, types):
    places = st.integers(-1, len(text) + 1)
    subject, object = (sorted(data.draw(st.tuples(places, places))) for _ in range(2))
    usable = all(
        start >= 0 and end <= len(text) and text[start:end].strip()
        for start, end in (subject, object)
    )
    if not usable or not all(map(str.strip, types)):
        with pytest.raises(DataError):
            relations(text, subject, object, *types)
        return
    found = relations(text, subject, object, *types, top_k=2)
    assert {answer["label"] for answer in found} == {"no_relation", "was_in"}
    assert math.isclose(sum(answer["score"] for answer in found), 1, rel_tol=1e-5)


RECORDS = {
    "squad2": lambda text: [
        {"question": text, "context": "Anna was in Paris ."},
        {"question": "was Anna in ?", "context": text},
        {"question": text * 100, "context": text * 3, "top_k": 2},
    ],
    "tacred": lambda text: [
        {"token": [text, "was", text, text], "subj_start": 0, "subj_end": 0, "obj_start": 2}
        | {"obj_end": 3, "subj_type": "PER", "obj_type": text},
        {"text": f"Anna {text} Paris", "subject": [0, 4], "object": [4, 5 + len(text) + 6]}
        | {"subject_type": "PER", "object_type": "LOC"},
    ],
    "ner": lambda text: [{"text": text}, {"words": [text, "in", text]}, {"words": []}],
    "sst-2": lambda text: [{"sentence": text}],
    "coref": lambda text: [
        {"text": text},
        {"text": f"Anna saw {text}. She left."},
        {"words": ["Anna", "saw", text or "it", "."]},
        {"sentences": [["Anna", text or "it"], ["She", text or "it", "."]]},
    ],
}


class Visible(html.parser.HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text = set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("task", RECORDS)
def test_predict(models, tmp_path, task):
    """A line for every record, right places or a reason, and a page without foreign elements."""
    records = [
        record | {"id": f"{name} {number} {SCRIPT}"}
        for name, text in HOSTILE.items()
        for number, record in enumerate(RECORDS[task](text))
    ]
    source, output, page = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "page.html"))
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [f"--model={models}/{task}", f"--html={page}", "--device=cpu", "--on_error=skip"]
    assert command.main(["predict", task, str(source), str(output), *words]) == 0
    rows = [json.loads(line) for line in output.read_text("utf-8").split("\n")[:-1]]
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    refused = {row["id"].split()[0] for row in rows if "error" in row}
    assert refused <= {"empty", "blanks", "half", "only"}
    for record, row in zip(records, rows, strict=True):
        if "error" in row:
            assert row["error"].startswith("in.jsonl:")
        elif task == "squad2":
            for answer in [row, *row.get("n_best", ())]:
                check_answer(record["context"], answer)
        elif task == "ner" and "text" in record:
            for entity in row["entities"]:
                assert record["text"][entity["start"] : entity["end"]] == entity["text"]
        elif task == "coref" and "text" in record:
            for mention in (mention for cluster in row["clusters"] for mention in cluster):
                assert record["text"][mention["start"] : mention["end"]] == mention["text"]
    text = page.read_text("utf-8")
    seen = Visible(text)
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    own = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "div", "mark"}
    own |= {"details", "summary", "span", "dl", "dt", "dd", "p", "i"}
    assert seen.elements <= own
    names = {"lang", "charset", "name", "content", "http-equiv", "class", "style", "title", "dir"}
    assert seen.attributes <= names | {"data-label", "data-code", "open"}
    assert "\0" not in text and "<script>alert(1)</script> & " in "".join(seen.text)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_lines_that_are_no_records(models, tmp_path, capsys, policy):
    lines = [b'{"text": "Anna \xff"}', b'{"text": 7}', b"null", b"[" * 100_000, b'{"text": "a" 1}']
    lines += [b'{"text": "\0"}', b'{"id": {"a": [1]}, "txt": 1}', b"1" * 5000, b"\xff"]
    lines += [b'{"words": ["a", null]}', b'{"text": "a", "words": ["a"]}']
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for line in lines:
        source.write_bytes(b'{"text": "Anna"}\n' + line + b"\n")
        words = [f"--model={models}/ner", "--device=cpu", f"--on_error={policy}"]
        words.append("--overwrite=true")
        code = command.main(["predict", "ner", str(source), str(output), *words])
        error = capsys.readouterr().err
        if policy == "error":
            assert code == 65 and error.startswith("spanbert: error: in.jsonl:2: "), error
            assert error.count("\n") == 1 and len(error) < 600 and not output.exists()
        else:
            rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
            assert code == 0 and [("error" in row) for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("piece", "size"),
    [
        ("Anna was in Paris with the film , ", 200_000),
        ("a", 1_000_000),
        ("e\u0301\u0302 ", 50_000),
        ("\U0001f468\u200d\U0001f469 ", 50_000),
    ],
)
def test_long_texts(qa, tagger, relations, piece, size):
    """A megabyte of words takes seconds; a fifth of that here."""
    text = (piece * size)[:size]
    check_answer(text, qa("was Anna in ?", text))
    check_answer("Anna was in Paris", qa(text, "Anna was in Paris"))
    check_entities(text, tagger(text))
    found = relations(text, (0, 1), (size - 2, size), "PER", "LOC")
    assert found["label"] in relations.labels
