"""Coreference through the verbs: learns, resumes exactly, and what it says of files of any kind."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from coref_cases import TOKENIZER
from coref_runs import config_of, coref_words, story, story_file
from safetensors.torch import load_file
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from spanbert_ext.cli import command
from spanbert_ext.errors import ConfigError, DataError, Preempted
from spanbert_ext.tasks.coref import conll
from spanbert_ext.tasks.coref.data import from_words, without_singletons
from spanbert_ext.tasks.coref.metrics import CorefScorer
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.coref.options import CorefOptions
from spanbert_ext.tasks.coref.task import CorefPrediction, CorefTask, LinkedSpans
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.training import checkpoint, loop


@pytest.fixture(scope="module")
def finished(toy_bert, tmp_path_factory):
    """(words, run) of a run of 160 steps."""
    home = tmp_path_factory.mktemp("coref")
    words = coref_words(toy_bert, home, home / "run")
    finetune(config_of(words))
    return words, home / "run"


def weights(run):
    return load_file(checkpoint.newest(run) / "model.safetensors")


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def evaluate_words(run, data, *more):
    return [
        "evaluate",
        "coref",
        f"--model={run}",
        f"--data={data}",
        "--device=cpu",
        "--precision=fp32",
        *more,
    ]


def predict(run, folder, records, *more):
    """(exit code, lines) of `spanbert predict coref`."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [f"--model={run}", "--device=cpu", "--precision=fp32", *more]
    code = command.main(["predict", "coref", str(source), str(output), *words])
    lines = output.read_text().splitlines() if output.exists() else []
    return code, [json.loads(line) for line in lines]


def test_it_learns_and_keeps_the_best(finished):
    _, run = finished
    metrics = metrics_of(run)
    assert metrics["untrained"]["f1"] < 10 and metrics["best"]["f1"] > 80
    assert metrics["best"]["with_singletons.f1"] > 80
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {row["step"]: row["with_singletons.f1"] for row in logged if row["event"][0] == "v"}
    assert sorted(seen) == [0, *range(20, 161, 20)]
    assert metrics["best"]["with_singletons.f1"] == max(seen.values())
    model, info = SpanBertForCoreference.from_pretrained(run / "best", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.options.ffnn_size == 24 and model.options.singletons
    stored = json.loads((run / "best/spanbert_task.json").read_text())
    assert stored["task"] == "coref" and stored["facts"] == {"genres": None}


def test_two_runs_are_equal_and_so_is_a_resumed_one(finished, tmp_path, monkeypatch):
    """With dropout, and with windows that are drawn anew in every epoch."""
    words, run = finished
    other = dataclasses.replace(config_of(words), output=str(tmp_path / "other"))
    train, stopped = loop.train, []

    def stop_after_67(model, step, names, numbers, progress, log, stop, inspect, after):
        def then(number):
            after(number)
            if number == 67 and not stopped:
                stopped.append(number)
                stop.signal = signal.SIGTERM

        train(model, step, names, numbers, progress, log, stop, inspect, then)

    monkeypatch.setattr("spanbert_ext.training.run.train", stop_after_67)
    with pytest.raises(Preempted, match="after step 67 of 160"):
        finetune(other)
    result = finetune(other)
    assert not result.was_finished and stopped == [67]
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(tmp_path / "other")[name]), name
    for name in ("best", "last"):
        assert metrics_of(tmp_path / "other")[name] == metrics_of(run)[name]
    assert finetune(other).was_finished


def test_a_fine_tuned_model_is_a_start(finished, tmp_path, capsys):
    """Its head too."""
    words, run = finished
    again = [w for w in words if not w.startswith(("--model=", "--output=", "--epochs="))]
    finetune(config_of([*again, f"--model={run}", f"--output={tmp_path}/run", "--max_steps=1"]))
    best = metrics_of(run)["best"]
    best.pop("step")
    assert metrics_of(tmp_path / "run")["untrained"] == best
    assert "random weights" not in capsys.readouterr().out


def test_starts_and_data_that_cannot_be_used(toy_bert, tmp_path, capsys):
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    AutoTokenizer.from_pretrained(toy_bert).save_pretrained(tmp_path / "roberta")
    words = coref_words(tmp_path / "roberta", tmp_path, tmp_path / "run")
    assert command.main(words) == ConfigError.exit_code
    assert "a coreference model is a BERT, not roberta" in capsys.readouterr().err
    words = coref_words(toy_bert, tmp_path, tmp_path / "run")
    story_file(tmp_path / "train.conll", 2, sentences=20)
    assert command.main([*words, "--coref.max_segment_len=100"]) == DataError.exit_code
    assert "positions for 64: lower --coref.max_segment_len" in capsys.readouterr().err
    conll.write(tmp_path / "train.conll", [from_words("none", [["Anna", "was"]], [[(0, 0)]])])
    assert command.main([*words, "--coref.singletons=false"]) == DataError.exit_code
    assert "has two mentions that corefer: nothing can be learned" in capsys.readouterr().err
    assert (
        command.main(
            [*words, "--coref.max_segment_len=2", "--optimizer.task_lr=0", "--coref.span_ratio=0"]
        )
        == ConfigError.exit_code
    )
    message = capsys.readouterr().err
    for name in ("coref.max_segment_len", "optimizer.task_lr", "coref.span_ratio"):
        assert name in message


def test_genres_are_those_of_the_training_documents(toy_bert, tmp_path):
    documents = [
        dataclasses.replace(story(number), id=f"{genre}/x/story_{number}", genre=genre)
        for number, genre in enumerate(("nw", "bc", "nw"))
    ]
    words = coref_words(toy_bert, tmp_path, tmp_path / "run", max_steps=2)
    conll.write(tmp_path / "train.conll", documents)
    finetune(config_of(words))
    model = SpanBertForCoreference.from_pretrained(tmp_path / "run/best")
    assert model.options.genres == ["bc", "nw"]
    assert model.coref.antecedents.features["genre"].num_embeddings == 3
    code, lines = predict(tmp_path / "run", tmp_path, [{"text": "Anna was.", "genre": "tc"}])
    assert code == 0 and "error" not in lines[0]


def test_evaluate_writes_what_the_scorer_reads(finished, tmp_path, capsys):
    words, run = finished
    dev = run.parent / "dev.conll"
    files = {"metrics": "m.json", "predictions": "p.conll", "html": "p.html", "plot": "p.svg"}
    options = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    assert command.main(evaluate_words(run, dev, *options)) == 0
    found = json.loads((tmp_path / "m.json").read_text())["metrics"]
    best = metrics_of(run)["best"]
    best.pop("step")
    assert found == best
    gold, predicted = (conll.read(path, Rejects()) for path in (dev, tmp_path / "p.conll"))
    assert [d.header for d in gold] == [d.header for d in predicted]
    assert [d.words for d in gold] == [d.words for d in predicted]
    scorers = CorefScorer(), CorefScorer()
    for key, response in zip(gold, predicted, strict=True):
        scorers[0].update(key.clusters, response.clusters)
        scorers[1].update(*(without_singletons(d.clusters) for d in (key, response)))
    assert scorers[0].result()["f1"] == found["with_singletons.f1"]
    assert scorers[1].result()["f1"] == found["f1"]
    assert scorers[1].result()["lea.recall"] == found["lea.recall"]
    assert "right (" in (tmp_path / "p.svg").read_text()
    page = (tmp_path / "p.html").read_text()
    assert page.count("<section>") == 6 and "<mark" in page and "alone" in page


def test_options_of_a_model_may_be_others_later(finished, tmp_path, capsys):
    """Where the weights do not depend on them."""
    words, run = finished
    dev = run.parent / "dev.conll"
    found = []
    for number, more in enumerate(([], ["--coref.singletons=false"], ["--coref.max_spans=1"])):
        path = tmp_path / f"{number}.conll"
        assert command.main(evaluate_words(run, dev, f"--predictions={path}", *more)) == 0
        found.append(conll.read(path, Rejects()))
    sizes = [[len(c) for doc in documents for c in doc.clusters] for documents in found]
    assert min(sizes[0]) == 1 and min(sizes[1]) == 2
    assert sorted(n for n in sizes[0] if n > 1) == sorted(sizes[1])
    assert len(sizes[2]) <= len(found[2])
    assert command.main(evaluate_words(run, dev, "--coref.ffnn_size=9")) == DataError.exit_code
    assert "coref.mentions.network" in capsys.readouterr().err
    story_file(tmp_path / "long.conll", 1, sentences=20)
    code = command.main(evaluate_words(run, tmp_path / "long.conll", "--coref.max_segment_len=90"))
    assert code == ConfigError.exit_code
    assert "coref.max_segment_len: must be at most 64" in capsys.readouterr().err


def test_records_of_every_kind(finished, tmp_path, capsys):
    _, run = finished
    text = "Anna was fine, and\tBoris with \u00e9 \U0001f600.\n\nAnna was bad. Boris is a film."
    records = [
        {"id": "text", "text": text},
        {"id": "one", "words": ["Anna"]},
        {"id": "none", "text": "..."},
        {"words": ["Anna", "was", ".", "Anna", "is", "."], "speakers": ["x"] * 3 + ["y"] * 3},
        {"doc_key": "key", "sentences": [["Anna", "was"], [], ["Anna"]], "genre": "nw"},
        {"id": "bad", "text": " \n"},
        {"id": "bad", "words": ["a", ""]},
        {"id": "bad", "text": "Anna", "speakers": ["x"]},
        {"id": "bad", "sentences": [["a"]], "clusters": [[[0, 1]]]},
        {"id": "bad", "sentences": [["a"]], "speakers": ["x", "y"]},
        {"id": "bad", "note": "nothing to read"},
    ]
    code, lines = predict(run, tmp_path, records, "--on_error=skip", "--coref.resolved=true")
    assert code == 0 and len(lines) == len(records)
    ids = [line["id"] for line in lines]
    assert ids == ["text", "one", "none", "in.jsonl:4", "key"] + ["bad"] * 6
    assert all("error" in line for line in lines[5:])
    assert "out of range" in lines[8]["error"] and "2 speakers for 1 words" in lines[9]["error"]
    mentions = [m for cluster in lines[0]["clusters"] for m in cluster]
    assert mentions and all(text[m["start"] : m["end"]] == m["text"] for m in mentions)
    assert [m["text"] for m in lines[0]["clusters"][0]].count("Anna") == 2
    assert lines[0]["resolved"].endswith("is a film.") and "resolved" in lines[1]
    (anna, again), *_ = lines[3]["clusters"]
    assert set(anna) == {"text", "first", "last", "score"}
    assert (anna["first"], again["last"]) == (0, 3)
    assert predict(run, tmp_path, records[5:], "--overwrite=true")[0] == DataError.exit_code
    assert "in.jsonl:1" in capsys.readouterr().err


def test_a_document_of_ten_thousand_words(finished, tmp_path):
    _, run = finished
    words = [w for n in range(250) for w in story(n, 8, seed=7).words][:10_500]
    assert len(words) > 10_000
    page = f"--html={tmp_path / 'p.html'}"
    code, (line,) = predict(run, tmp_path, [{"words": words}], page)
    assert code == 0
    places = [(m["first"], m["last"]) for cluster in line["clusters"] for m in cluster]
    assert max(places)[1] > 10_400 and len(places) == len(set(places))


def test_files_of_every_kind(finished, tmp_path, capsys):
    """Doubled and crossing mentions and odd brackets; by policy."""
    words, run = finished
    good = (run.parent / "dev.conll").read_text()
    row = "{0}\t0\t{1}\t{2}\t-\t*\t-\t-\t-\t-\t*\t{3}"

    def document(name, *cells):
        rows = [row.format(name, n, "Anna", cell) for n, cell in enumerate(cells)]
        return "\n".join([f"#begin document ({name}); part 000", *rows, "", "#end document", ""])

    fine = document("double", "(1)|(1)", "(1", "(2", "1)", "2)", "-") + document("bare", "-", "-")
    path = tmp_path / "d.conll"
    path.write_text(good + fine)
    assert command.main(evaluate_words(run, path, "--html=" + str(tmp_path / "p.html"))) == 0
    assert "8 examples" in capsys.readouterr().out
    path.write_text(good * 20 + document("open", "(1", "-"))
    path.write_text(good + fine + document("open", "(1", "-"))
    assert command.main(evaluate_words(run, path)) == DataError.exit_code
    assert "open_0: a mention of cluster 1 begins" in capsys.readouterr().err
    assert command.main(evaluate_words(run, path, "--on_error=skip")) == 0
    assert "left out: " in capsys.readouterr().out
    lines = tmp_path / "d.jsonl"
    record = {"doc_key": "x", "sentences": [["Anna", "was", "Anna"]]}
    lines.write_text(json.dumps(record | {"clusters": [[[0, 0], [0, 0], [2, 2]], [[2, 2]]]}))
    assert command.main(evaluate_words(run, lines)) == 0
    assert command.main(evaluate_words(run, lines, "--coref.shared=error")) == DataError.exit_code
    assert "mention 2..2 stands in two clusters" in capsys.readouterr().err
    lines.write_text(json.dumps(record | {"clusters": [[[0, 3]]]}))
    assert command.main(evaluate_words(run, lines)) == DataError.exit_code
    assert "mention [0, 3] is out of range" in capsys.readouterr().err


def test_scores_without_and_with_singletons():
    task = CorefTask("coref", CorefOptions())
    assert task.best_metric == "f1"
    assert CorefTask("coref", CorefOptions(singletons=True)).best_metric == "with_singletons.f1"
    document = from_words("d", [list("abcd")], [[(0, 0), (1, 1)], [(2, 2)]])
    perfect = CorefPrediction((((0, 0), (1, 1)),), {})
    numbers = task.score([document], [perfect])
    assert numbers["f1"] == numbers["lea.f1"] == 100
    # MUC 1; B-cubed recall 2/3; CEAF-e recall 1/2.
    expected = 100 * (1 + 0.8 + 2 / 3) / 3
    assert numbers["with_singletons.f1"] == pytest.approx(expected)


def test_spans_of_the_same_words_count_once():
    tokenizer_free = from_words("d", [["one", "two"]])
    task = CorefTask("coref", CorefOptions())
    feature = dataclasses.replace(
        segment_of_pieces(tokenizer_free), word_of_piece=np.array([-1, 0, 0, 1, -1])
    )
    output = LinkedSpans(
        [[(1, 1), (3, 3)], [(1, 2), (2, 2)]], {(1, 1): 1.0, (3, 3): 2.0, (1, 2): 3.0, (2, 2): 4.0}
    )
    (found,) = task.decode([tokenizer_free], [feature], [output])
    assert found.clusters == (((0, 0), (1, 1)),)
    assert found.scores == {(0, 0): 1.0, (1, 1): 2.0}


def segment_of_pieces(document):
    from spanbert_ext.tasks.coref.features import lay_out

    sizes = np.array([2, 1])
    return lay_out(document, np.array([7, 8, 9]), sizes, [3], (2, 3), True, 20)


def test_a_gold_mention_in_two_clusters_is_scored_as_it_stands_and_joined_for_training(tmp_path):
    task = CorefTask("coref", CorefOptions())
    assert task.options.shared == "merge"
    record = {"doc_key": "x", "sentences": [list("abcdef")]}
    clusters = [[[2, 2], [0, 0]], [[4, 4], [5, 5]], [[3, 3], [0, 0]]]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record | {"clusters": clusters}))
    (document,) = task.read(path, Rejects())
    # By their first mentions, those of the same one as the file has them: so they would be written.
    assert document.clusters == (((0, 0), (2, 2)), ((0, 0), (3, 3)), ((4, 4), (5, 5)))
    found = task.score(
        [document], [CorefPrediction((((0, 0), (2, 2), (3, 3)), ((4, 4), (5, 5))), {})]
    )
    assert found["muc.f1"] == pytest.approx(200 / 3)
    assert found["bcub.f1"] == pytest.approx(100 * 2 * 0.8 / (1 + 0.8 * 6 / 5))
    assert found["ceafe.f1"] == pytest.approx(72)
    (feature,) = task.features([document], TOKENIZER)
    first, *rest = feature.gold_clusters[np.argsort(feature.gold_starts)].tolist()
    assert rest[:2] == [first, first] and rest[2] == rest[3] != first
    strict = CorefTask("coref", CorefOptions(shared="error"))
    with pytest.raises(DataError, match=r"mention 0\.\.0 stands in two clusters"):
        strict.read(path, Rejects())


def test_the_score_plot_draws_no_threshold(monkeypatch, tmp_path):
    """A mention in a cluster is there by its link, whatever its own score."""
    drawn = []
    monkeypatch.setattr("spanbert_ext.tasks.plots.score_plot", lambda *a, **k: drawn.append((a, k)))
    gold = from_words("d", [["Ada", "saw", "Ada"]], [[(0, 0), (2, 2)]])
    found = CorefPrediction((((0, 0), (1, 1)),), {(0, 0): -3.0, (1, 1): -4.0})
    CorefTask("coref", CorefOptions(singletons=True)).plot(tmp_path / "s.png", [gold], [found])
    (((right, wrong, *_), names),) = drawn
    assert (right, wrong) == ([-3.0], [-4.0])
    assert "threshold" not in names and names["quantity"] == "mention score"


def test_the_page_names_the_clusters():
    """By their most telling mention, the largest first; nothing is said of what is not there."""
    task = CorefTask("coref", CorefOptions(singletons=True))
    words = [["He", "saw", "Ada", "Byron", "."], ["Ada", "saw", "him", ",", "she", "said", "."]]
    document = from_words("d", words)
    he, ada = ((0, 0), (7, 7)), ((2, 3), (5, 5), (9, 9))
    scores = dict.fromkeys((*he, *ada, (10, 10)), 1.0)
    block = task.marked(document, CorefPrediction((he, ada), scores))
    assert block.names == (("2", "2 Ada Byron (3)"), ("1", "1 He (2)"))
    assert block.facts == (("clusters", "2"), ("mentions", "5"))
    block = task.marked(document, CorefPrediction((he, ((10, 10),)), scores))
    assert block.names == (("1", "1 He (2)"), ("alone", "alone, in no cluster (1)"))
    assert [(mark.label, mark.group) for mark in block.marks][-1] == ("", "alone")
