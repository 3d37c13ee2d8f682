"""The words of finetune, evaluate and predict, and the files of predict."""

import json

import pytest
from toy_tasks import sentiment_words

from spanbert_ext.cli import command
from spanbert_ext.tasks import predict as predict_module


@pytest.fixture(scope="module")
def model(toy_bert, tmp_path_factory):
    """A fine-tuned model's folder."""
    home = tmp_path_factory.mktemp("model")
    assert command.main(sentiment_words(toy_bert, home, home / "run", max_steps=10)) == 0
    return home / "run"


@pytest.fixture
def records(tmp_path):
    """A file of 23 records, some without an id, one blank line."""
    lines = []
    for number in range(23):
        record = {"sentence": f"the film was {'good' if number % 3 else 'bad'} {number}"}
        lines.append(json.dumps(record | ({"id": f"r{number}"} if number % 2 else {})))
    lines.insert(5, "")
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def predict_words(model, records, output, *more):
    words = [f"--model={model}", "--precision=fp32", "--device=cpu"]
    return ["predict", "sst-2", str(records), str(output), *words, *more]


def test_tasks_are_listed(capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["finetune", "--help"])
    assert left.value.code == 0
    assert "squad2" in capsys.readouterr().out
    assert command.main(["evaluate"]) == 2
    assert "a task is required" in capsys.readouterr().err
    assert command.main(["predict", "sqaud", "a", "b"]) == 2
    assert "did you mean squad" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "predict"])
def test_help_explains_every_setting(verb, capsys):
    with pytest.raises(SystemExit):
        command.main([verb, "sst-2", "--help"])
    text = capsys.readouterr().out
    assert "--glue.length" in text and "--model MODEL" in text.replace("\n", " ")


def test_every_fault_of_the_settings_at_once(tmp_path, capsys):
    words = ["finetune", "sst-2", "--model=m", f"--train={tmp_path}/none.tsv", "--epochs=0"]
    assert command.main([*words, "--optimizer.warmup=1.5", "--glue.length=0"]) == 2
    message = capsys.readouterr().err
    for fault in ("none.tsv: there is no such file", "epochs: must be greater than 0"):
        assert fault in message
    assert "optimizer.warmup: must lie in [0, 1)" in message and "glue.length" in message


def test_a_model_of_another_task(model, records, tmp_path, capsys):
    words = predict_words(model, records, tmp_path / "out.jsonl")
    assert command.main([words[0], "tacred", *words[2:]]) == 2
    assert "fine-tuned for sst-2, not for tacred" in capsys.readouterr().err
    assert command.main([words[0], "cola", *words[2:]]) == 2
    assert "fine-tuned for sst-2, not for cola" in capsys.readouterr().err


def test_a_folder_without_a_task(toy_bert, records, tmp_path, capsys):
    assert command.main(predict_words(toy_bert, records, tmp_path / "out.jsonl")) == 2
    assert "no spanbert_task.json" in capsys.readouterr().err


def test_one_line_for_every_record_in_order(model, records, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert command.main(predict_words(model, records, output)) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 23
    assert [row["id"] for row in rows][:4] == ["in.jsonl:1", "r1", "in.jsonl:3", "r3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".out.jsonl.state",
        "in.jsonl",
        output.name,
    ]
    before = output.stat().st_mtime_ns
    assert command.main(predict_words(model, records, output)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == before


def test_other_settings_do_not_write_over(model, records, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert command.main(predict_words(model, records, output)) == 0
    first = output.read_text()
    assert command.main(predict_words(model, records, output, "--glue.length=6")) == 2
    assert "of another model, other records or other settings" in capsys.readouterr().err
    assert output.read_text() == first
    words = predict_words(model, records, output, "--glue.length=6", "--overwrite=true")
    assert command.main(words) == 0
    assert output.read_text() != first


@pytest.mark.parametrize("lost", ["a half line", "nothing", "a whole chunk"])
def test_an_interrupted_command_goes_on(model, records, tmp_path, monkeypatch, lost):
    monkeypatch.setattr(predict_module, "CHUNK", 4)
    clean, output, page = tmp_path / "clean.jsonl", tmp_path / "out.jsonl", tmp_path / "page.html"
    assert command.main(predict_words(model, records, clean, f"--html={page}")) == 0
    expected_page = page.read_text()
    page.unlink()
    chunks = iter(range(3))

    def stop(_name):
        if next(chunks, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "fail_point", stop)
        assert command.main(predict_words(model, records, output, f"--html={page}")) == 130
    part = tmp_path / "out.jsonl.part"
    assert not output.exists() and len(part.read_text().splitlines()) == 16
    if lost == "a half line":
        part.write_bytes(part.read_bytes()[:-5])
    elif lost == "a whole chunk":
        part.write_text("".join(line + "\n" for line in part.read_text().splitlines()[:12]))
    assert command.main(predict_words(model, records, output, f"--html={page}")) == 0
    assert output.read_bytes() == clean.read_bytes()
    assert page.read_text() == expected_page and not part.exists()


def test_bad_records_by_policy(model, tmp_path, capsys):
    lines = [
        '{"id": "a", "sentence": "good"}',
        "{not json",
        '["a list"]',
        '{"id": "b"}',
        '{"id": "c", "sentence": ""}',
        '{"id": "d", "sentence": "bad \\ud83d\\ude00 \\u0000"}',
    ]
    records, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records.write_text("\n".join(lines))
    assert command.main(predict_words(model, records, output)) == 65
    message = capsys.readouterr().err
    assert "in.jsonl:2" in message and "--on_error skip" in message and not output.exists()
    assert command.main(predict_words(model, records, output, "--on_error=skip")) == 0
    assert "4 with a reason" in capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [("error" in row) for row in rows] == [False, True, True, True, True, False]
    assert [row["id"] for row in rows] == ["a", "in.jsonl:2", "in.jsonl:3", "b", "c", "d"]


def test_no_records(model, tmp_path):
    records, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records.write_text("\n")
    assert command.main(predict_words(model, records, output)) == 0
    assert output.read_text() == ""


def test_evaluate_writes_what_is_asked_for(model, tmp_path, capsys):
    data = model.parent / "dev.tsv"
    names = {"metrics": "m.json", "predictions": "p.tsv", "html": "p.html", "plot": "p.png"}
    words = [f"--{name}={tmp_path / file}" for name, file in names.items()]
    words += [f"--model={model}", f"--data={data}", "--precision=fp32", "--device=cpu"]
    assert command.main(["evaluate", "sst-2", *words, "--limit=50"]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["examples"] == 50 and 0 <= metrics["metrics"]["accuracy"] <= 100
    assert f"{metrics['metrics']['accuracy']:.2f}" in capsys.readouterr().out
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 51
    assert (tmp_path / "p.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_names_bad_records(model, tmp_path, capsys):
    data = tmp_path / "data.tsv"
    data.write_text((model.parent / "dev.tsv").read_text() + "x\tmaybe\n")
    words = ["evaluate", "sst-2", f"--model={model}", f"--data={data}", "--device=cpu"]
    assert command.main(words) == 65
    assert "data.tsv:62" in capsys.readouterr().err
    assert command.main([*words, "--on_error=skip"]) == 0
    assert "left out: " in capsys.readouterr().out
