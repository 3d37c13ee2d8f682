"""Training files of every reader, and every fault that a record of them can have."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass


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
    "of version 2": (question(is_impossible=True), "this is SQuAD 2.0: the task squad2 reads it"),
    "answers none": (question(answers=[]), "there is no answer"),
}
SQUAD2_FAULTS = {
    "of version 1": (question(is_impossible=None), "this is no SQuAD 2.0: the task squad reads"),
    "flag as text": (
        question(is_impossible="no"),
        "is_impossible: expected true or false, got 'no'",
    ),
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
    "half a line": (lambda record: json.dumps(record)[:40], "not valid JSON (Unterminated string"),
    "not UTF-8": (lambda record: json.dumps(record)[:-9] + "\udcff", "not UTF-8: byte 0xff"),
    "a list": (lambda _: [1], "expected a JSON object, found a list"),
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
    "no relation": (changed(relation=None), "no field 'relation'; fields there: 'id', 'token'"),
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
        "not UTF-8": (cells(**{place: "w\udcffs"}), "not UTF-8: byte 0xff at column"),
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
