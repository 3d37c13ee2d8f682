"""Files that `spanbert finetune` cannot use, or only in part: every reader, every kind of fault.

Policy `error` ends with 65 and one line that names the record and the reason; `skip` trains with
the rest and lists what it left out.
"""

import gzip
import json

import pytest
from record_formats import (
    FORMATS,
    changed,
    mrqa_file,
    mrqa_record,
    question,
    squad_file,
    squad_record,
    tacred_record,
    write,
)

from spanbert_ext.cli import command

FAULTS = [(task, name) for task, form in FORMATS.items() for name in form.faults]


def finetune(toy_bert, folder, task, *more, train=None, dev=None):
    """Exit code of one step with few examples."""
    words = [f"--model={toy_bert}", f"--train={train}", f"--output={folder}/run", "--device=cpu"]
    words += ["--max_steps=1", "--train_limit=8", "--precision=fp32", *more]
    words += ["--tagging.length=48", "--tagging.overlap=8"] * (
        task == "ner"
    )  # documents fill their windows
    return command.main(["finetune", task, *words, *([f"--dev={dev}"] if dev else [])])


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
    ("squad", b"[" * 100_000, "it is not valid JSON (maximum recursion depth"),
    ("tacred", b"[" * 100_000, "it is not valid JSON (maximum recursion depth"),
    ("mrqa", mrqa_file([mrqa_record(0)])[:-30], "truncated or damaged gzip data"),
    ("mrqa", mrqa_file([mrqa_record(0)])[:40] + b"\0" * 40, "truncated or damaged gzip data"),
    ("squad", mrqa_file([mrqa_record(0)]), "it is JSON lines, an object with the fields 'header'"),
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
    """A whole file of the other version is refused, whatever the policy; questions that all have an
    answer are of version 1.1, whether they say so or not."""
    assert finetune(toy_bert, tmp_path, "squad", train=write(tmp_path, "squad2")) == 0
    for task, other in (("squad", "squad2"), ("squad2", "squad")):
        train = write(tmp_path, other, good=300)
        if other == "squad2":
            impossible = {"is_impossible": True, "answers": []}
            records = [squad_record(n, **impossible if n % 9 == 0 else {}) for n in range(300)]
            train.write_bytes(squad_file(records))
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
