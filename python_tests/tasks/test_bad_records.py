"""Files that `spanbert finetune` cannot use, or only in part: every reader, every kind of fault.

Policy `error` ends with 65 and one line that names the record and the reason; `skip` trains with
the rest and lists what it left out.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from spanbert_ext import cli


@dataclass(frozen=True)
class Format:
    """Files of one task.

    Args:
        record: number -> a good record.
        write: records -> bytes of a file; text in place of a record stands there as it is.
        place: number of a record -> where messages say it is.
        faults: name -> (a good record of the number 7 -> a bad one, what the reason says).
        suffix: of the file.
    """

    record: Callable
    write: Callable
    place: Callable
    faults: dict
    suffix: str


def changed(**fields):
    """A record with other fields; None takes one away."""
    return lambda record: {k: v for k, v in {**record, **fields}.items() if v is not None}


def question(**fields):
    """A paragraph whose question has other fields."""

    def change(paragraph):
        return {**paragraph, "qas": [changed(**fields)(paragraph["qas"][0])]}

    return change


def answer(text="Paris", start=12):
    return question(answers=[{"text": text, "answer_start": start}])


CONTEXT = "Anna was in Paris with Boris ."


def squad_record(number, **more):
    answers = [{"text": "Paris", "answer_start": 12}]
    fields = {"id": f"q{number}", "question": f"was Anna in {number} ?", "answers": answers}
    return {"context": CONTEXT, "qas": [{**fields, **more}]}


def squad_file(records):
    return json.dumps({"data": [{"paragraphs": records}]}).encode()


SQUAD_FAULTS = {
    "answer elsewhere": (answer(start=11), "not at character 11 of a context of 30: ' Pari' is"),
    "answer before": (answer(start=-1), "not at character -1 of a context of 30: no such place"),
    "answer behind": (answer(start=400), "not at character 400 of a context of 30: no such place"),
    "answer cut off": (answer("Boris . ", 23), "not at character 23"),
    "place as text": (answer(start="12"), "answer_start: expected a whole number, got '12'"),
    "empty answer": (answer("", 12), "text: is empty"),
    "same id": (question(id="q0"), "the id occurs before"),
    "no id": (question(id=None), "no field 'id' with text in it"),
    "no question": (question(question=None), "no field 'question'; fields there: 'id', 'answers'"),
    "question of blanks": (question(question=" \t"), "question: is empty"),
    "no answers": (question(answers=None), "no field 'answers'"),
    "no context": (changed(context=None), "context: expected text, got NoneType"),
    "empty context": (changed(context=""), "context: is empty"),
    "half a pair": (changed(context="Anna \ud83d"), "context: half a surrogate pair at char"),
    "no questions": (changed(qas=None), "no list 'qas'"),
    "a list": (lambda _: [1], "no list 'qas'"),
}
SQUAD1_FAULTS = {
    "of version 2": (question(is_impossible=False), "this is SQuAD 2.0: the task squad2 reads it"),
    "answers none": (question(answers=[]), "there is no answer"),
}
SQUAD2_FAULTS = {
    "of version 1": (question(is_impossible=None), "this is no SQuAD 2.0: the task squad reads"),
    "flag as text": (question(is_impossible="no"), "is_impossible (true or false) is missing"),
    "answerable": (question(answers=[]), "there is no answer"),
    "contradiction": (question(is_impossible=True), "is_impossible is true but there are answers"),
}


def mrqa_record(number):
    detected = [{"text": "Paris", "char_spans": [[12, 16]]}]
    fields = {"qid": f"q{number}", "question": f"was Anna in {number} ?", "answers": ["Paris"]}
    return {"context": CONTEXT, "qas": [{**fields, "detected_answers": detected}]}


def mrqa_file(records):
    lines = [{"header": {"dataset": "toy", "split": "train"}}, *records]
    return gzip.compress("\n".join(map(line_of, lines)).encode("utf-8", "surrogateescape"))


def line_of(record):
    return record if isinstance(record, str) else json.dumps(record)


def spans(*found):
    return question(detected_answers=[{"text": "Paris", "char_spans": list(map(list, found))}])


MRQA_FAULTS = {
    "span past the end": (spans((12, 30)), "[12, 30] lies outside a context of 30 characters"),
    "reversed span": (spans((16, 12)), "[16, 12] lies outside"),
    "negative span": (spans((-2, 3)), "[-2, 3] lies outside"),
    "span of one": (spans((12,)), "expected pairs of characters"),
    "span of blanks": (spans((4, 4)), "nothing but white space at [4, 4]"),
    "same id": (question(qid="q0"), "the qid occurs before"),
    "no id": (question(qid=None), "no field 'qid' with text in it"),
    "no question": (question(question=None), "no field 'question'"),
    "no answers": (question(answers=[]), "there is no answer"),
    "empty context": (changed(context=" "), "context: is empty"),
    "no questions": (changed(qas=None), "no list 'qas'"),
    "half a line": (lambda record: json.dumps(record)[:40], "not JSON: Invalid control character"),
    "not UTF-8": (lambda record: json.dumps(record)[:-9] + "\udcff", "can't decode byte 0xff"),
    "a list": (lambda _: [1], "expected an object"),
}


def tacred_record(number):
    fields = {"id": f"r{number}", "token": ["Anna", "was", "in", "Paris", f"{number}"]}
    fields |= {"subj_start": 0, "subj_end": 0, "obj_start": 3, "obj_end": 3}
    fields |= {"subj_type": "PERSON", "obj_type": "CITY"}
    return {**fields, "relation": ("no_relation", "was_in")[number % 2]}


TACRED_FAULTS = {
    "span past the end": (changed(obj_end=5), "obj_end: 5 lies outside the 5 tokens"),
    "negative span": (changed(subj_start=-1), "subj_start: -1 lies outside the 5 tokens"),
    "reversed span": (changed(obj_start=4), "obj_end: 3 comes before obj_start 4"),
    "span as text": (changed(subj_end="0"), "subj_end: expected a token's number"),
    "same id": (changed(id="r0"), "its id is also that of [0]"),
    "no relation": (changed(relation=None), "the field relation is missing"),
    "no type": (changed(subj_type=None), "the field subj_type is missing"),
    "no span": (changed(obj_start=None), "the field obj_start is missing"),
    "no tokens": (changed(token=None), "expected the field token"),
    "empty tokens": (changed(token=[]), "token: the list is empty"),
    "tokens as text": (changed(token="Anna"), "token: expected a list of strings"),
    "a list": (lambda _: [1], "expected an object with fields, found a list"),
}


def ner_record(number):
    return [
        ["Anna", "B-PER"],
        ["was", "O"],
        ["in", "O"],
        ["Paris", "B-LOC"],
        [str(number), "I-LOC"],
    ]


def ner_file(records):
    blocks = ("\n".join("\t".join(row) for row in rows) for rows in records)
    return "\n\n".join(blocks).encode("utf-8", "surrogateescape")


def row(number, *cells):
    """A sentence with another line."""
    return lambda rows: [*rows[:number], list(cells), *rows[number + 1 :]]


NER_FAULTS = {
    "no tag": (row(2, "in"), "1 columns, where most lines of the file have 2"),
    "three columns": (row(1, "was", "X", "O"), "3 columns, where most lines of the file have 2"),
    "no such tag": (row(0, "Anna", "PER"), "'PER' is not a tag of BIO, IOB1, BILOU or BIOES"),
    "I- without B-": (row(0, "Anna", "I-PER"), "the scheme of this file"),
    "I- of another": (row(4, "7", "I-PER"), "the scheme of this file"),
    "no word": (row(1, "", "O"), "the word, column 0, is empty"),
    "not UTF-8": (row(1, "w\udcffs", "O"), "not UTF-8: byte 0xff at column 2"),
}


def tsv_file(header):
    def write(records):
        rows = [header, *records] if header else records
        return "".join("\t".join(row) + "\n" for row in rows).encode("utf-8", "surrogateescape")

    return write


def cells(**places):
    """A row with other cells, by their numbers."""

    def change(row):
        return [places.get(f"c{number}", cell) for number, cell in enumerate(row)]

    return change


def tsv_faults(text, columns, missing):
    place = f"c{text}"
    return {
        "one column less": (lambda row: row[:-1], f"{columns - 1} columns where {columns} are ex"),
        "and its name": (lambda row: row[:-1], missing),
        "a tab in a text": (cells(**{place: "a\tfilm"}), "is there a tab in a text?"),
        "empty text": (cells(**{place: " "}), "the text is empty"),
        "not UTF-8": (cells(**{place: "w\udcffs"}), "not UTF-8 at byte"),
    }


def label_faults(label, *wrong):
    place = f"c{label}"
    return {f"label {x!r}": (cells(**{place: x}), "unknown label; known are") for x in wrong}


PAIR = ["index", "sentence1", "sentence2"]
FORMATS = {
    "squad": Format(
        squad_record,
        squad_file,
        lambda n: f"data[0].paragraphs[{n}]",
        SQUAD_FAULTS | SQUAD1_FAULTS,
        "json",
    ),
    "squad2": Format(
        lambda n: squad_record(n, is_impossible=False),
        squad_file,
        lambda n: f"data[0].paragraphs[{n}]",
        SQUAD_FAULTS | SQUAD2_FAULTS,
        "json",
    ),
    "mrqa": Format(mrqa_record, mrqa_file, lambda n: f":{n + 2}", MRQA_FAULTS, "jsonl.gz"),
    "tacred": Format(
        tacred_record,
        lambda records: json.dumps(records).encode(),
        lambda n: f": [{n}]",
        TACRED_FAULTS,
        "json",
    ),
    "ner": Format(ner_record, ner_file, lambda n: f":{6 * n + 1}", NER_FAULTS, "conll"),
    "cola": Format(
        lambda n: ["x", "01"[n % 2], "", f"a film {n}"],
        tsv_file(None),
        lambda n: f":{n + 1}",
        tsv_faults(3, 4, "column number 4 is missing") | label_faults(1, "2", "", "yes"),
        "tsv",
    ),
    "sst-2": Format(
        lambda n: [f"a film {n}", "01"[n % 2]],
        tsv_file(["sentence", "label"]),
        lambda n: f":{n + 2}",
        tsv_faults(0, 2, "column label is missing") | label_faults(1, "-1", "", "1.0"),
        "tsv",
    ),
    "sts-b": Format(
        lambda n: [str(n), f"a film {n}", "a story", f"{n % 6}.0"],
        tsv_file([*PAIR, "score"]),
        lambda n: f":{n + 2}",
        tsv_faults(2, 4, "column score is missing")
        | {
            f"score {value!r}": (cells(c3=value), "the score is no number from 0 to 5")
            for value in ("5.1", "-1", "nan", "", "high")
        },
        "tsv",
    ),
    "mnli": Format(
        lambda n: [str(n), f"a film {n}", "a story", ("neutral", "entailment")[n % 2]],
        tsv_file([*PAIR, "gold_label"]),
        lambda n: f":{n + 2}",
        tsv_faults(2, 4, "column gold_label is missing") | label_faults(3, "-", "1", "ENTAILMENT"),
        "tsv",
    ),
}
FAULTS = [(task, name) for task, form in FORMATS.items() for name in form.faults]


def write(folder, task, bad=(), good=10, name="train"):
    """A file of good records with bad ones in places 7, 9, ...; its path."""
    form = FORMATS[task]
    records = [form.record(number) for number in range(good)]
    for number, fault in enumerate(bad):
        place = 7 + 2 * number
        records.insert(place, form.faults[fault][0](form.record(good + place)))
    path = folder / f"{name}.{form.suffix}"
    path.write_bytes(form.write(records))
    return path


def finetune(toy_bert, folder, task, *more, train=None, dev=None):
    """Exit code of one step with few examples."""
    words = [f"--model={toy_bert}", f"--train={train}", f"--output={folder}/run", "--device=cpu"]
    words += ["--max_steps=1", "--train_limit=8", "--precision=fp32", *more]
    words += ["--tagging.length=48", "--tagging.overlap=8"] * (
        task == "ner"
    )  # documents fill their windows
    return cli.main(["finetune", task, *words, *([f"--dev={dev}"] if dev else [])])


def the_error(capsys):
    """The one line that says what is wrong."""
    output = capsys.readouterr().err
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("spanbert: error: ")]
    assert len(lines) == 1 and output.endswith(lines[0] + "\n"), output
    return lines[0]


@pytest.mark.parametrize(("task", "fault"), FAULTS)
def test_the_first_fault_is_named(toy_bert, tmp_path, capsys, task, fault):
    train = write(tmp_path, task, [fault])
    assert finetune(toy_bert, tmp_path, task, train=train) == 65
    message = the_error(capsys)
    assert f"{train}" in message and FORMATS[task].faults[fault][1] in message, message
    place = FORMATS[task].place(7)
    # A sentence is named by its first line, its fault by its own.
    assert place in message or f"train.conll{place}" in message, message
    assert "--on_error skip" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", FORMATS)
def test_others_train_and_the_faults_are_listed(toy_bert, tmp_path, task):
    faults = FORMATS[task].faults
    train = write(tmp_path, task, faults, good=100 * len(faults))
    dev = write(tmp_path, task, list(faults)[:1], name="dev")
    assert finetune(toy_bert, tmp_path, task, "--on_error=skip", train=train, dev=dev) == 0
    lines = (tmp_path / "run" / "rejects.jsonl").read_text("utf-8").splitlines()
    rejects = [json.loads(line) for line in lines]
    assert len(rejects) == len(faults) + 1
    for reject, (_, reason) in zip(rejects, faults.values(), strict=False):
        assert reason in reject["reason"]
        assert reject["where"].startswith(f"{train}") and reject["id"]
    assert rejects[-1]["where"].startswith(f"{dev}")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dev"]["examples"] == (1 if task == "ner" else 10)


@pytest.mark.parametrize("task", FORMATS)
def test_too_many_faults_are_another_format(toy_bert, tmp_path, capsys, task):
    train = write(tmp_path, task, list(FORMATS[task].faults)[:3], good=199)
    assert finetune(toy_bert, tmp_path, task, "--on_error=skip", train=train) == 65
    assert "3 of 202 records cannot be used, more than 1%" in the_error(capsys)


CONLL, JSON = b"Anna\tB-PER\n", b'{"version": 1, "items": [1, 2]}'
FILES = [
    *((task, b"", "") for task in FORMATS),
    *((task, b" \n\n \n", "") for task in FORMATS),
    *((task, JSON, "") for task in FORMATS),
    *((task, bytes(range(256)) * 4, "") for task in FORMATS),
    ("squad", b"[" * 100_000, "not JSON (maximum recursion depth"),
    ("tacred", b"[" * 100_000, "is not JSON: maximum recursion depth"),
    ("mrqa", mrqa_file([mrqa_record(0)])[:-30], "truncated or damaged gzip data"),
    ("mrqa", mrqa_file([mrqa_record(0)])[:40] + b"\0" * 40, "truncated or damaged gzip data"),
    ("squad", mrqa_file([mrqa_record(0)]), "not JSON"),
    ("squad", gzip.decompress(mrqa_file([mrqa_record(0)])), "are read by the task mrqa"),
    ("mrqa", squad_file([squad_record(0)]), "the tasks squad and squad2 read SQuAD files"),
    ("squad", json.dumps([tacred_record(0)]).encode(), "no list 'data'"),
    ("tacred", squad_file([squad_record(0)]), "expected a JSON list of records"),
    ("ner", b"Anna was in Paris\n", "'Paris' is not a tag"),
    ("ner", b"Anna\n", "the same one"),
    ("cola", b"sentence\nAnna\n", "no gold label"),
    ("sst-2", CONLL, "the header names no columns sentence"),
    ("mnli", b"index\tsentence1\tgold_label\n0\ta\tneutral\n", "names no columns sentence1"),
]


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize(("task", "content", "message"), FILES, ids=map(str, range(len(FILES))))
def test_files_of_another_format(toy_bert, tmp_path, capsys, task, content, message, policy):
    train = tmp_path / "train"
    train.write_bytes(content)
    assert finetune(toy_bert, tmp_path, task, f"--on_error={policy}", train=train) == 65
    assert message in the_error(capsys)


def test_versions_of_squad(toy_bert, tmp_path, capsys):
    """A whole file of the other version is refused, whatever the policy."""
    for task, other in (("squad", "squad2"), ("squad2", "squad")):
        train = write(tmp_path, other, good=300)
        for policy in ("error", "skip"):
            code = finetune(toy_bert, tmp_path, task, f"--on_error={policy}", train=train)
            assert code == 65
            assert f"the task {other} reads" in the_error(capsys)


def test_a_missing_header_of_mrqa(toy_bert, tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps(mrqa_record(number)) for number in range(100)))
    assert finetune(toy_bert, tmp_path, "mrqa", train=train) == 65
    assert f"{train}:1: record header: the first line is not" in the_error(capsys)
    assert finetune(toy_bert, tmp_path, "mrqa", "--on_error=skip", train=train) == 0
    (reject,) = (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["id"] == "header"


@pytest.mark.parametrize("task", ["tacred", "ner"])
def test_labels_that_training_has_not_seen(toy_bert, tmp_path, capsys, task):
    """In the development file; a sample of the training file knows all its labels."""
    train, dev = write(tmp_path, task, good=100), write(tmp_path, task, name="dev")
    dev.write_bytes(dev.read_bytes().replace(b"was_in", b"loves", 1).replace(b"-LOC", b"-GPE", 2))
    assert finetune(toy_bert, tmp_path, task, train=train, dev=dev) == 65
    message = the_error(capsys)
    assert f"{dev}" in message and "training" in message
    assert ("'GPE' was not in" if task == "ner" else "'loves' was not seen in") in message
    assert finetune(toy_bert, tmp_path, task, "--on_error=skip", train=train, dev=dev) == 0
    assert len((tmp_path / "run" / "rejects.jsonl").read_text().splitlines()) == 1
    words = ["--max_steps=2", "--train_limit=1", f"--output={tmp_path}/few"]
    assert finetune(toy_bert, tmp_path, task, *words, train=train, dev=train) == 0


def test_a_test_set_cannot_choose(toy_bert, tmp_path, capsys):
    train, dev = write(tmp_path, "sst-2"), tmp_path / "test.tsv"
    dev.write_text("index\tsentence\n0\ta film\n")
    assert finetune(toy_bert, tmp_path, "sst-2", train=train, dev=dev) == 65
    assert f"{dev}: examples without a gold answer cannot choose" in the_error(capsys)


@pytest.mark.parametrize("task", ["cola", "sst-2", "mnli", "sts-b", "ner"])
def test_quotes_are_characters(toy_bert, tmp_path, task):
    """One that opens and never closes swallows no line."""
    train = write(tmp_path, task, good=20)
    train.write_bytes(train.read_bytes().replace(b"film 3", b'"film 3').replace(b"was", b'"was'))
    assert finetune(toy_bert, tmp_path, task, "--train_limit=null", train=train) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"]["examples"] == (1 if task == "ner" else 20)


def test_hostile_names_stay_in_one_line(toy_bert, tmp_path, capsys):
    hostile = "q\n\x1b[2J\u2028\u202e" + "x" * 500
    for task, change in (
        ("squad", question(id=hostile, answers=[])),
        ("squad", question(question=None, **{hostile: 1})),
        ("mrqa", question(qid=hostile, answers=[])),
        ("tacred", changed(id=hostile, obj_end=9)),
        ("tacred", changed(obj_end=None, **{hostile: 1})),
        ("tacred", changed(token=None, **{hostile: 1})),
    ):
        form = FORMATS[task]
        train = tmp_path / f"train.{form.suffix}"
        train.write_bytes(form.write([form.record(0), change(form.record(7))]))
        assert finetune(toy_bert, tmp_path, task, train=train) == 65
        message = the_error(capsys)
        assert message.isprintable() and len(message) < 1000
