"""What an evaluation writes, in which order, and what it refuses to lose."""

import json
import math
import os

import pytest
from toy_tasks import sentiment_words

from spanbert_ext import files
from spanbert_ext.cli import command
from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.classification.task import GlueTask
from spanbert_ext.tasks.config import EvaluateConfig, FinetuneConfig
from spanbert_ext.tasks.evaluate import evaluate
from spanbert_ext.tasks.examples import check_ids, read_examples
from spanbert_ext.tasks.rejects import Rejects, as_lines


@pytest.fixture(scope="module")
def model(toy_bert, tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    assert command.main(sentiment_words(toy_bert, home, home / "run", max_steps=2)) == 0
    return home / "run"


@pytest.fixture
def words(model):
    data = model.parent / "dev.tsv"
    common = [f"--model={model}", "--precision=fp32", "--device=cpu", "--limit=20"]
    return ["evaluate", "sst-2", f"--data={data}", *common]


def spoil(monkeypatch, *names):
    def fail(*_):
        raise StorageError("no room for it")

    for name in names:
        monkeypatch.setattr(GlueTask, name, fail)


@pytest.mark.parametrize(
    "bad", [("plot",), ("write_predictions",), ("marked",), ("plot", "marked")]
)
def test_what_cannot_be_written_loses_nothing_else(words, tmp_path, capsys, monkeypatch, bad):
    files = {"metrics": "m.json", "predictions": "p.tsv", "html": "p.html", "plot": "p.png"}
    asked = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    spoil(monkeypatch, *bad)
    assert command.main([*words, *asked]) == StorageError.exit_code
    said = capsys.readouterr()
    assert "accuracy" in said.out
    assert said.err.count("no room for it") == len(bad) and "Traceback" not in said.err
    lost = {"plot": "p.png", "write_predictions": "p.tsv", "marked": "p.html"}
    there = sorted(set(files.values()) - {lost[name] for name in bad})
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    wrote = [line.split("/")[-1] for line in said.out.splitlines() if line.startswith("wrote")]
    assert sorted(wrote) == there
    assert json.loads((tmp_path / "m.json").read_text())["examples"] == 20


def test_numbers_come_before_any_file(model, tmp_path, monkeypatch):
    cls = registry.settings_class(EvaluateConfig, "sst-2")
    data = str(model.parent / "dev.tsv")
    config = cls(str(model), [data], metrics=str(tmp_path / "absent" / "m.json"), device="cpu")
    order = []
    with pytest.raises(StorageError, match="cannot write .*m.json") as raised:
        evaluate(config, lambda result: order.append(result["metrics"]), order.append)
    assert len(order) == 1 and "accuracy" in order[0]
    assert raised.value.result["metrics"] == order[0]


def test_a_picture_of_another_kind_is_named_at_the_end(words, tmp_path, capsys):
    asked = [f"--metrics={tmp_path}/m.json", f"--plot={tmp_path}/p.gif"]
    assert command.main([*words, *asked]) == 2
    said = capsys.readouterr()
    assert "a picture must end in" in said.err and "accuracy" in said.out
    assert (tmp_path / "m.json").is_file()


def test_files_that_would_be_lost_are_refused(words, model, tmp_path, capsys):
    data = model.parent / "dev.tsv"
    same, link = tmp_path / "same.json", tmp_path / "link.tsv"
    link.symlink_to(data)
    for more, message in (
        ([f"--metrics={same}", f"--predictions={same}"], "is the file of metrics too"),
        ([f"--predictions={data}"], "is a file of this command already"),
        ([f"--html={link}"], "is a file of this command already"),
        ([f"--metrics={tmp_path}"], "is a folder; name a file to write"),
    ):
        assert command.main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    before = data.read_bytes()
    predict = ["predict", "sst-2", str(data), str(tmp_path / "out"), f"--html={tmp_path / 'out'}"]
    assert command.main([*predict, f"--model={model}"]) == 2
    assert "html: " in capsys.readouterr().err and data.read_bytes() == before


def test_devices_are_written_to_and_stay(words, tmp_path):
    assert command.main([*words, f"--metrics={os.devnull}", f"--predictions={os.devnull}"]) == 0
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize("spelling", ["the same", "a detour", "a link", "a hard link"])
def test_a_file_given_twice(model, tmp_path, spelling):
    data = model.parent / "dev.tsv"
    other = tmp_path / "other.tsv"
    if spelling == "a link":
        other.symlink_to(data)
    elif spelling == "a hard link":
        os.link(data, other)
    elif spelling == "a detour":
        other = data.parent / ".." / data.parent.name / data.name
    else:
        other = data
    for field in ("data", "train", "dev"):
        base = EvaluateConfig if field == "data" else FinetuneConfig
        cls = registry.settings_class(base, "sst-2")
        files = {"data": [str(data)], "train": [str(data)]} | {field: [str(data), str(other)]}
        known = cls.__dataclass_fields__
        made = cls(model="m", **{name: paths for name, paths in files.items() if name in known})
        with pytest.raises(ConfigError, match=f"{field}: .* are the same file; name it once"):
            made.validate()


def test_a_development_file_that_trains_is_warned_of(toy_bert, tmp_path, capsys):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=1)
    train = tmp_path / "train.tsv"
    words = [word for word in words if not word.startswith("--dev=")]
    assert command.main([*words, f"--dev={train}"]) == 0
    assert f"dev {train} is the training file {train}" in capsys.readouterr().err


def write(path, *rows):
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def test_ids_that_a_file_of_predictions_would_lose(words, tmp_path, capsys):
    one = write(tmp_path / "one.tsv", "index\tsentence\tlabel", "7\ta film\t1", "8\tno film\t0")
    two = write(tmp_path / "two.tsv", "index\tsentence\tlabel", "8\tbad\t0")
    task = registry.entry_of("sst-2").make(registry.entry_of("sst-2").options_class()())
    both = read_examples(task, [one, two], "error", 0.01, "be scored")
    assert [example.id for example in both.all] == ["7", "8", "8"]
    with pytest.raises(DataError, match=r"the id '8' is in .*one.tsv and .*two.tsv"):
        check_ids(both)
    with pytest.raises(DataError, match=r"the id '8' is twice in .*two.tsv"):
        check_ids(type(both)(both.all[1:], [two, two], []))
    config = registry.settings_class(EvaluateConfig, "sst-2")(
        words[3].partition("=")[2], [one, two], predictions=str(tmp_path / "p.tsv"), device="cpu"
    )
    with pytest.raises(DataError, match="one of the two would be lost"):
        evaluate(config)


def test_files_without_gold_answers(words, tmp_path, capsys):
    test = write(tmp_path / "test.tsv", "index\tsentence", "0\ta film", "1\tbad")
    words = [f"--data={test}" if word.startswith("--data") else word for word in words]
    assert command.main(words) == DataError.exit_code
    said = capsys.readouterr().err
    assert f"{test}: examples without a gold answer cannot be scored" in said
    # A test set of the benchmark becomes a submission.
    assert command.main([*words, f"--predictions={tmp_path}/p.tsv"]) == 0
    assert "no gold answers: nothing was scored" in capsys.readouterr().out
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("task", "content", "hint"),
    [
        ("ner", "Ada\tO\nleft\tO\n", "every tag is O"),
        ("coref", "#begin document (d); part 0\nd 0 0 a -\n#end document\n", "no cluster"),
        ("coref", '{"sentences": [["a", "b"]], "clusters": []}\n', "no cluster"),
    ],
)
def test_gold_that_says_nothing_is_no_gold(tmp_path, task, content, hint):
    path = tmp_path / ("d.jsonl" if content[0] == "{" else "d.conll")
    path.write_text(content)
    entry = registry.entry_of(task)
    made = entry.make(entry.options_class()())
    with pytest.raises(DataError, match=f"without a gold answer cannot be scored; .*{hint}"):
        read_examples(made, [str(path)], "error", 0.01, "be scored")


@pytest.mark.parametrize(
    ("limit", "bad", "total", "fine"),
    [
        (0.01, 1, 10, True),  # one may always go
        (0.01, 2, 199, False),
        (0.01, 2, 200, True),
        (0.0, 1, 1000, False),
        (0.5, 5, 10, True),
        (0.5, 6, 10, False),
        (1.0, 9, 10, True),
        (1.0, 10, 10, False),  # nothing is left
    ],
)
def test_the_limit_of_rejects(limit, bad, total, fine):
    rejects = Rejects("skip", limit)
    for number in range(bad):
        rejects.add(f"r{number}", f"file:{number}", "half a pair", "\ud83d")
    if fine:
        rejects.check("file", total - bad)
        assert as_lines(rejects.found).encode("utf-8").count(b"\n") == bad
        return
    with pytest.raises(DataError, match=f"{bad} of {total} .*--reject_limit {limit:g}"):
        rejects.check("file", total - bad)


@pytest.mark.parametrize("verb", ["evaluate", "finetune", "prepare"])
def test_the_limit_is_a_setting(verb, tmp_path, capsys, words):
    data = write(tmp_path / "d.tsv", "sentence\tlabel", *["good\t1"] * 8, *["bad\t2"] * 2)
    more = ["sst-2", words[3], f"--{'train' if verb == 'finetune' else 'data'}={data}"]
    more = [data, f"--output={tmp_path}/c"] if verb == "prepare" else more
    assert command.main([verb, *more, "--reject_limit=1.5"]) == 2
    assert "reject_limit: " in capsys.readouterr().err
    if verb == "evaluate":
        words = [f"--data={data}" if word.startswith("--data") else word for word in words]
        assert command.main([*words, "--on_error=skip"]) == DataError.exit_code
        assert "more than 1% (--reject_limit 0.01)" in capsys.readouterr().err
        assert command.main([*words, "--on_error=skip", "--reject_limit=0.2"]) == 0


def test_json_is_valid_whatever_the_numbers(tmp_path):
    value = {"a": math.nan, "b": [math.inf, 1.5, (2, -math.inf)], "c": "\ud83d", "d": "é", 1: True}
    text = files.json_text(value)

    def refuse(name):
        raise ValueError(name)

    back = json.loads(text.encode("utf-8"), parse_constant=refuse)
    assert back == {"a": None, "b": [None, 1.5, [2, None]], "c": "\ud83d", "d": "é", "1": True}
    assert files.json_text({"d": "é"}) == '{"d": "é"}'


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "before\n")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(StorageError, match="cannot write .*file: No space"):
        files.write_text(path, "after\n")
    assert path.read_text() == "before\n" and [p.name for p in tmp_path.iterdir()] == ["file"]
