"""A short fine-tuning is logged and evaluated often enough, and warned of where it cannot work."""

import json
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from toy_tasks import sentiment_words

from spanbert_ext.cli import command
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.coref.data import from_words
from spanbert_ext.tasks.finetune_warnings import few_updates, no_better_than_chance
from spanbert_ext.tasks.tagging.example import TaggedExample
from spanbert_ext.training import checkpoint


def defaults(words, *names):
    """The words without some settings."""
    return [word for word in words if word.split("=")[0] not in {f"--{name}" for name in names}]


def steps_of(run, event):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if row["event"] == event]


@pytest.mark.parametrize(
    ("changes", "logged", "evaluated"),
    [
        ({"max_steps": 15}, list(range(1, 16)), [0, 8, 15]),  # less than an epoch of 20
        ({"max_steps": 30}, list(range(3, 31, 3)), [0, 10, 20, 30]),
        ({"max_steps": 15, "log_every": 7}, [7, 14, 15], [0, 8, 15]),
        ({"max_steps": 15, "evals_per_epoch": 2}, list(range(1, 16)), [0, 10, 15]),
        ({"max_steps": 15, "evals_per_epoch": 0}, list(range(1, 16)), [0, 15]),
    ],
)
def test_a_short_run_is_logged_by_its_share(toy_bert, tmp_path, capsys, changes, logged, evaluated):
    """What is given is obeyed; and a run is warned of its few updates."""
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", **changes)
    own = {"log_every", "evals_per_epoch"} - set(changes)
    assert command.main(defaults(words, *own)) == 0
    assert steps_of(tmp_path / "run", "train") == logged
    assert steps_of(tmp_path / "run", "validation") == evaluated
    warned = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    few = changes["max_steps"]
    assert warned[0] == (
        f"spanbert: WARNING: only {few} updates in all, which seldom train a new head: try a "
        f"larger --max_steps ({few} now), a smaller --batch.examples (8 now) or another "
        "--optimizer.peak_lr (0.01 now)"
    )


def test_logging_and_evaluating_change_no_update(toy_bert, tmp_path):
    """With dropout: neither draws a random number."""
    found = []
    for name, changes in {
        "often": {"log_every": 1, "evals_per_epoch": 20},
        "seldom": {"log_every": 50, "evals_per_epoch": 0},
    }.items():
        words = sentiment_words(toy_bert, tmp_path, tmp_path / name, max_steps=12, **changes)
        assert command.main(words) == 0
        path = checkpoint.newest(tmp_path / name) / "model.safetensors"
        found.append({key: value.tolist() for key, value in load_file(path).items()})
    assert found[0] == found[1]


def test_a_run_with_two_evaluations_an_epoch_goes_on_without_saying_so(toy_bert, tmp_path, capsys):
    """What null means is what a run stores: those from before null existed continue."""
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", evals_per_epoch=2, epochs=1)
    assert command.main(words) == 0
    assert command.main(defaults(words, "evals_per_epoch")) == 0
    assert "is finished" in capsys.readouterr().out
    stored = json.loads((checkpoint.newest(tmp_path / "run") / "state.json").read_text())
    assert stored["settings"]["evals_per_epoch"] == 2


def test_a_run_that_learns_nothing_is_told_so(toy_bert, tmp_path, capsys):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=2)
    assert command.main([*words, "--optimizer.peak_lr=1e-9"]) == 0
    error = capsys.readouterr().err
    assert "the best accuracy on dev is" in error and "everywhere gives" in error
    assert "The model has not learned the task: try a larger --max_steps (2 now)" in error


def test_a_run_that_learns_is_not(toy_bert, tmp_path, capsys):
    assert command.main(sentiment_words(toy_bert, tmp_path, tmp_path / "run", epochs=5)) == 0
    assert "WARNING" not in capsys.readouterr().err


def question(answer):
    answers = {"text": [answer] * bool(answer), "answer_start": [0] * bool(answer)}
    return {"question": "Who?", "context": "Ada wrote.", "answers": answers}


def pair(relation):
    return {
        "text": "Ada met Bob.", "subject": [0, 3], "object": [8, 11], "relation": relation
    }  # fmt: skip


# Task, gold records, what the trivial prediction scores by the task's best metric.
TRIVIAL = [
    ("squad", [question("Ada")], 0.0),
    ("squad2", [question("Ada"), question(""), question("")], 200 / 3),
    ("tacred", [pair("no_relation")] * 2 + [pair("met")], 0.0),
    # Three right of three guessed, three of four there: with a "met" for the one without.
    ("tacred", [pair("met")] * 3 + [pair("no_relation")], 600 / 7),
    ("sst-2", [{"sentence": "fine", "label": n} for n in (1, 1, 1, 0)], 75.0),
    ("cola", [{"sentence": "fine", "label": n} for n in (1, 1, 1, 0)], 0.0),
]


def example_of(task, record):
    fields = dict(record)
    if task.name == "squad2":
        fields["is_impossible"] = not record["answers"]["text"]
        fields["answers"] = [
            {"text": text, "answer_start": 0} for text in record["answers"]["text"]
        ]
    if task.name == "squad":
        fields["answers"] = [{"text": "Ada", "answer_start": 0}]
    return task.parse(fields, "here")


@pytest.mark.parametrize(("name", "records", "score"), TRIVIAL)
def test_what_needs_no_model(name, records, score):
    entry = registry.entry_of(name)
    facts = {"labels": ["no_relation", "met"]} if name == "tacred" else {}
    options = entry.options_class()(**({"input": "marker"} if name == "tacred" else {}))
    task = entry.make(options, facts)
    examples = [example_of(task, record) for record in records]
    what, predictions = task.trivial_predictions(examples)
    assert task.score(examples, predictions)[task.best_metric] == pytest.approx(score)
    config = SimpleNamespace(
        batch=SimpleNamespace(examples=32), optimizer=SimpleNamespace(peak_lr=2e-5), max_steps=None
    )

    def warned(best, untrained):
        return no_better_than_chance(
            task, config, examples, {task.best_metric: best}, {task.best_metric: untrained}, 4
        )

    exact = task.score(examples, predictions)[task.best_metric]
    assert warned(exact, 0.0).startswith(
        f"the best {task.best_metric} on dev is {exact:.2f}; {what}"
    )
    assert "no better than before training (90.00): try more --epochs (4 now), a " in warned(89, 90)
    assert warned(exact + 1, 0.0) is None
    assert no_better_than_chance(task, config, [], {}, {}, 4) is None  # without dev


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("ner", TaggedExample("d", ("Ada",), tags=("B-PER",))),
        ("coref", from_words("d", [["Ada", "saw", "Ada"]], [[(0, 0), (2, 2)]])),
    ],
)
def test_no_entity_and_no_cluster_score_nothing(name, example):
    entry = registry.entry_of(name)
    task = entry.make(entry.options_class()())
    _, predictions = task.trivial_predictions([example])
    assert task.score([example], predictions)[task.best_metric] == 0.0


def test_many_updates_are_not_few():
    config = SimpleNamespace(
        batch=SimpleNamespace(examples=1), optimizer=SimpleNamespace(peak_lr=2e-5), max_steps=None
    )
    assert few_updates(config, 100, 4.0) is None
    assert few_updates(config, 99, 1.5) == (
        "only 99 updates in all, which seldom train a new head: try more --epochs (1.5 now) or "
        "another --optimizer.peak_lr (2e-05 now)"
    )
