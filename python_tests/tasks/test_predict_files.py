"""What `spanbert predict` and `evaluate` do with files that are there, lost, damaged or not to be
written.
"""

import json
import shutil

import pytest
from record_formats import FORMATS
from safetensors.torch import load_file, save_file
from toy_tasks import sentiment_words

from spanbert_ext.cli import command
from spanbert_ext.tasks import predict as predict_module
from spanbert_ext.tasks.classification.task import GlueTask
from spanbert_ext.tasks.predict_records import Item, chunks
from spanbert_ext.tasks.task_file import TASK_FILE


@pytest.fixture(scope="module")
def trained(toy_bert, tmp_path_factory):
    """Folders of fine-tuned models by task, and of data."""
    home = tmp_path_factory.mktemp("trained")
    found = {}
    assert command.main(sentiment_words(toy_bert, home, home / "run", max_steps=2)) == 0
    found["sst-2"] = (home / "run" / "best", home / "dev.tsv")
    for task, section in (("squad2", "qa"), ("tacred", "relation"), ("ner", "tagging")):
        form, data = FORMATS[task], home / f"{task}.{FORMATS[task].suffix}"
        data.write_bytes(form.write([form.record(number) for number in range(6)]))
        words = [f"--model={toy_bert}", f"--train={data}", f"--output={home}/{task}"]
        words += ["--max_steps=1", "--precision=fp32", "--device=cpu", f"--{section}.length=32"]
        words += ["--tagging.overlap=8"] if task == "ner" else []
        assert command.main(["finetune", task, *words]) == 0
        found[task] = (home / task / "best", data)
    return found


@pytest.fixture
def model(trained, tmp_path):
    """A copy of the sentiment model."""
    return shutil.copytree(trained["sst-2"][0], tmp_path / "model")


@pytest.fixture
def predict(model, tmp_path, capsys):
    """Run the command on ten records: (exit code, what it said)."""
    lines = [json.dumps({"sentence": f"a good film {number}"}) for number in range(10)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")

    def run(*words):
        capsys.readouterr()
        names = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), f"--model={model}"]
        code = command.main(["predict", "sst-2", *names, "--device=cpu", *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return run


def test_other_weights_are_another_model(model, predict):
    """Also of the same size, and where no manifest tells them apart."""
    (model / "MANIFEST.json").unlink()
    assert predict()[0] == 0
    assert "nothing to do" in predict()[1]
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    code, said = predict()
    assert code == 2 and "of another model, other records or other settings" in said


def test_a_lost_page_is_written_again(predict, tmp_path):
    page, output = tmp_path / "page.html", tmp_path / "out.jsonl"
    assert predict(f"--html={page}")[0] == 0
    shown, lines = page.read_bytes(), output.read_bytes()
    assert "nothing to do" in predict(f"--html={page}")[1]
    page.unlink()
    code, said = predict(f"--html={page}")
    assert code == 0 and "nothing to do" not in said
    assert (page.read_bytes(), output.read_bytes()) == (shown, lines)
    other = tmp_path / "other.html"
    assert predict(f"--html={other}")[0] == 0
    assert other.read_bytes() == shown


def test_writing_over_goes_on_too(predict, tmp_path, monkeypatch):
    """Killed while it writes over, the same command does not begin anew."""
    monkeypatch.setattr(predict_module, "CHUNK", 4)
    assert predict()[0] == 0
    lines = (tmp_path / "out.jsonl").read_bytes()
    words = ("--overwrite=true", "--batch_tokens=4096")

    def stop(_name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "fail_point", stop)
        assert predict(*words)[0] == 130
    assert not (tmp_path / "out.jsonl").exists()
    code, said = predict(*words)
    assert code == 0 and "10 lines, 4 of them by an earlier command" in said
    assert (tmp_path / "out.jsonl").read_bytes() == lines
    assert "by an earlier command" not in predict(*words)[1]  # it is finished: once more


def test_an_interruption_says_what_is_kept(predict, monkeypatch):
    monkeypatch.setattr(predict_module, "CHUNK", 4)
    calls = []

    def stop(_name):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "fail_point", stop)
        code, said = predict()
    assert code == 130
    assert said.splitlines()[-1].startswith("spanbert: interrupted; 8 predictions are kept for")
    assert said.rstrip().endswith("the same command goes on behind them")
    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "_predict_chunk", lambda *_: stop("") or stop(""))
        calls.clear()
        code, said = predict("--overwrite=true", "--batch_tokens=4095")
    assert code == 130 and "no prediction was finished; the same command begins anew" in said


def test_an_interrupted_evaluation_says_that_nothing_is_kept(trained, capsys, monkeypatch):
    model, data = trained["sst-2"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(GlueTask, "decode", stop)
    assert command.main(["evaluate", "sst-2", f"--model={model}", f"--data={data}"]) == 130
    assert "interrupted; nothing was written; an evaluation begins anew" in capsys.readouterr().err


def test_chunks_are_cut_by_records_and_by_bytes():
    """A record that alone is too large is a chunk of its own; the cut depends on nothing else."""
    items = [Item(str(n), {}, size, 0) for n, size in enumerate((3, 3, 4, 1, 50, 2, 2, 2, 2, 2))]
    found = [[item.where for item in chunk] for chunk in chunks(items, records=4, size=10)]
    assert found == [["0", "1", "2"], ["3"], ["4"], ["5", "6", "7", "8"], ["9"]]
    assert list(chunks([], 4, 10)) == []


@pytest.mark.parametrize("task", ["sst-2", "ner"])
def test_a_text_file_is_one_text(trained, tmp_path, task):
    """As a line of JSON with the same text; a BOM is no part of it, line ends are."""
    text = "a good film\r\n\r\nwith  Ada in a \u00e9 \u201cfilm\u201d\n"
    (tmp_path / "in.TXT").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "in.TXT", "text": text}) + "\n")
    for name in ("in.TXT", "in.jsonl"):
        words = ["predict", task, str(tmp_path / name), f"{tmp_path}/{name}.out", "--device=cpu"]
        assert command.main([*words, f"--model={trained[task][0]}"]) == 0
    lines = (tmp_path / "in.TXT.out").read_text()
    assert lines == (tmp_path / "in.jsonl.out").read_text() and json.loads(lines)["id"] == "in.TXT"


@pytest.mark.parametrize(
    ("task", "fields"), [("squad2", ["question", "context"]), ("tacred", ["text", "subject"])]
)
def test_a_text_alone_is_no_record_of_some_tasks(trained, tmp_path, capsys, task, fields):
    (tmp_path / "in.txt").write_text("Ada wrote it.")
    words = ["predict", task, f"{tmp_path}/in.txt", f"{tmp_path}/out", "--device=cpu"]
    assert command.main([*words, f"--model={trained[task][0]}"]) == 65
    error = capsys.readouterr().err
    assert f"in.txt: a text alone is no record of {task}" in error
    shown = json.loads(error[error.index("{") :])
    assert set(fields) <= set(shown)
    (tmp_path / "in.jsonl").write_text(json.dumps(shown))  # what is shown can be given
    words[2] = f"{tmp_path}/in.jsonl"
    assert command.main([*words, f"--model={trained[task][0]}"]) == 0


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("in.txt", b"one\ntwo \xe9\n", "in.txt:2: not UTF-8: byte 0xe9 at column 5"),
        (
            "in.txt",
            "a".encode("utf-16"),
            "in.txt:1: not UTF-8: byte 0xff at column 1; is the file UTF",
        ),
        ("in.jsonl", b'{"text": "\xe9"}', "in.jsonl:1: not UTF-8: byte 0xe9 at column 11"),
        ("in.jsonl", b"Once upon\n", "in.jsonl:1: not valid JSON (Expecting value, column 1); a"),
        ("in.jsonl", b"[1]", "in.jsonl:1: expected a JSON object, found a list"),
        ("in.jsonl", b'\n{"text": }', "in.jsonl:2: not valid JSON (Expecting value, column 10)"),
    ],
)
def test_faults_of_the_input_are_named(trained, tmp_path, capsys, name, data, reason):
    (tmp_path / name).write_bytes(data)
    words = ["predict", "ner", f"{tmp_path}/{name}", f"{tmp_path}/out", "--device=cpu"]
    words.append(f"--model={trained['ner'][0]}")
    assert command.main(words) == 65
    error = capsys.readouterr().err
    assert reason in error and error.count(f"{name}:") == 1
    assert command.main([*words, "--on_error=skip"]) == 0
    assert reason in json.loads((tmp_path / "out").read_text())["error"]


@pytest.mark.parametrize("name", ["out", "html"])
def test_places_that_cannot_be_written(trained, predict, tmp_path, name):
    (tmp_path / "file").write_text("")
    if name == "html":
        code, said = predict(f"--html={tmp_path}/file/page.html")
    else:
        (tmp_path / "out.jsonl").mkdir()
        code, said = predict()
    assert code in (2, 74) and said.count("spanbert: error: ") == 1, said


@pytest.mark.parametrize("what", ["metrics", "predictions", "html", "plot"])
@pytest.mark.parametrize("task", ["sst-2", "squad2", "tacred", "ner"])
def test_evaluations_that_cannot_be_written(trained, tmp_path, capsys, task, what):
    model, data = trained[task]
    (tmp_path / "file").write_text("")
    words = [f"--model={model}", f"--data={data}", f"--{what}={tmp_path}/file/x.png"]
    assert command.main(["evaluate", task, *words, "--device=cpu"]) == 74
    error = capsys.readouterr().err
    assert f"{tmp_path}/file/x" in error and "Traceback" not in error
    assert len(error[error.index("spanbert: error") :].splitlines()) == 1


FACTS = {
    "nothing": lambda facts: facts.clear(),
    "a label more": lambda facts: facts["labels"].append("B-NEW"),
    "no list": lambda facts: facts.update(labels=7),
}


@pytest.mark.parametrize("change", FACTS)
@pytest.mark.parametrize("task", ["tacred", "ner"])
def test_facts_that_are_not_the_model_s(trained, tmp_path, capsys, task, change):
    folder = shutil.copytree(trained[task][0], tmp_path / "model")
    stored = json.loads((folder / TASK_FILE).read_text())
    FACTS[change](stored["facts"])
    (folder / TASK_FILE).write_text(json.dumps(stored))
    words = [f"--model={folder}", f"--data={trained[task][1]}", "--device=cpu"]
    assert command.main(["evaluate", task, *words]) == 74
    error = capsys.readouterr().err
    assert f"{folder}/{TASK_FILE}: " in error and "Traceback" not in error, error


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "task": "sst-2", "options": {}}']
    + ['{"format": 1, "task": "nope", "options": {}, "facts": {}}']
    + ['{"format": 1, "task": "sst-2", "options": {"lenth": 3}, "facts": {}}'],
)
def test_a_damaged_task_file(model, predict, content):
    (model / TASK_FILE).write_text(content)
    code, said = predict()
    assert code == 74 and TASK_FILE in said and said.count("spanbert: error: ") == 1, said


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "nan", "shape"])
def test_damaged_weights(model, predict, damage):
    path = model / "model.safetensors"
    weights = load_file(path)
    if damage == "nan":
        weights["classifier.bias"] *= float("nan")
        save_file(weights, path, metadata={"format": "pt"})
    elif damage == "shape":
        weights["classifier.bias"] = weights["classifier.bias"][:1].contiguous()
        save_file(weights, path, metadata={"format": "pt"})
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 1000 * (damage == "cut")])
    code, said = predict()
    assert code == 65 and said.count("spanbert: error: ") == 1, said
