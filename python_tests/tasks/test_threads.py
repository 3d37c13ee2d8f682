"""Pipelines that several threads share: each call gives what it gives alone."""

import copy
import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from coref_runs import coref_words
from record_formats import write
from test_finetune import config_of
from toy_tasks import sentiment_words

from spanbert_ext.cli import command
from spanbert_ext.errors import DataError
from spanbert_ext.tasks import CorefResolver, ExtractiveQA, RelationClassifier, SpanTagger
from spanbert_ext.tasks.finetune import finetune

TEXTS = ["Anna was in Paris with David ." * n for n in range(1, 7)]
LONG = [" ".join(f"Anna was in Paris {n} {i} ." for i in range(120)) for n in range(3)]
# Class -> the settings of its fine-tuning, and a question about a text.
KINDS = {
    SpanTagger: (["ner", "--tagging.length=32", "--tagging.overlap=8"], lambda p, text: p(text)),
    ExtractiveQA: (["squad", "--qa.length=48"], lambda p, text: p("was Anna in ?", text)),
    RelationClassifier: (
        ["tacred", "--relation.length=40"],
        lambda p, text: p(text, (0, 4), (12, 17), "PERSON", "CITY", top_k=2),
    ),
    CorefResolver: (["coref"], lambda p, text: p(text)),
}


@pytest.fixture(scope="module")
def folders(toy_bert, tmp_path_factory):
    """Class -> a model of its task, hardly trained."""
    home = tmp_path_factory.mktemp("threads")
    found = {}
    for kind, (settings, _) in KINDS.items():
        run = found[kind] = home / settings[0]
        if kind is CorefResolver:
            words = coref_words(toy_bert, home, run, max_steps=2)
        else:
            data = write(home, settings[0], name=settings[0])
            words = ["finetune", settings[0], f"--model={toy_bert}", f"--train={data}"]
            words += [f"--output={run}", "--max_steps=2", "--device=cpu", *settings[1:]]
        assert command.main(words) == 0
    return found


def asked_at_once(calls, threads=6, times=4):
    """The results of calls that threads make in orders of their own, by the call's number."""
    numbers = range(len(calls))

    def work(first):
        order = [(first + n) % len(calls) for n in range(len(calls))] * times
        return [(n, calls[n]()) for n in order]

    with ThreadPoolExecutor(threads) as pool:
        done = list(itertools.chain(*pool.map(work, range(threads))))
    return {n: [result for number, result in done if number == n] for n in numbers}


def compare(calls, times=3):
    expected = [call() for call in calls]
    for number, results in asked_at_once(calls, times=times).items():
        assert all(result == expected[number] for result in results)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_pipeline(folders, kind):
    pipeline, ask = kind(folders[kind], device="cpu"), KINDS[kind][1]
    compare([lambda text=text: ask(pipeline, text) for text in TEXTS])


def test_long_texts(folders):
    """Parameters are prepared once for all windows of a call."""
    pipeline = SpanTagger(folders[SpanTagger], device="cpu")
    compare([lambda text=text: pipeline(text) for text in LONG], times=1)


def test_several_pipelines_at_once(folders):
    """Also two of the same model, and loaded while others compute."""
    calls = []
    for kind in (*KINDS, SpanTagger):
        pipeline, ask = kind(folders[kind], device="cpu"), KINDS[kind][1]
        calls += [lambda p=pipeline, a=ask, t=text: a(p, t) for text in TEXTS[:2]]
    calls.append(lambda: SpanTagger(folders[SpanTagger], device="cpu")(TEXTS[2]))
    compare(calls, times=1)


def test_a_call_that_fails_leaves_the_others_their_turn(folders):
    qa = ExtractiveQA(folders[ExtractiveQA], device="cpu")
    expected = qa("was Anna in ?", TEXTS[0])

    def broken():
        with pytest.raises(RuntimeError, match="no pieces"):
            qa.predictor.stream(iter([None])).__next__()
        return expected

    def refused():
        with pytest.raises(DataError):
            qa("", TEXTS[0])
        return expected

    features = qa.task.features
    qa.task.features = lambda examples, tokenizer: (
        features(examples, tokenizer) if examples[0] else no_pieces()
    )
    calls = [broken, refused, lambda: qa("was Anna in ?", TEXTS[0])]
    assert all(r == expected for rs in asked_at_once(calls).values() for r in rs)


def no_pieces():
    raise RuntimeError("no pieces")


def test_a_pipeline_that_is_used_inside_a_call(folders):
    """By the function that splits texts; the same thread never waits for itself."""
    inner = SpanTagger(folders[SpanTagger], device="cpu")
    expected = inner(TEXTS[0])

    def split(text):
        inner(text)
        return [(0, 4), (12, 17)]

    outer = SpanTagger(inner._predictor, split=split)
    outer(TEXTS[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(outer, TEXTS[:4]))
    stream = inner._predictor.stream(iter(inner._examples(TEXTS[:2], None)[0]))
    next(stream)  # a consumer that stops here keeps nobody waiting
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inner, TEXTS[0]).result(timeout=60) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_pipeline_is_copied_and_pickled(folders, kind):
    pipeline, ask = kind(folders[kind], device="cpu"), KINDS[kind][1]
    expected = ask(pipeline, TEXTS[0])
    assert ask(copy.deepcopy(pipeline), TEXTS[0]) == expected
    assert ask(pickle.loads(pickle.dumps(pipeline)), TEXTS[0]) == expected


def test_a_fine_tuning_in_a_thread(toy_bert, tmp_path):
    words = sentiment_words(toy_bert, tmp_path, tmp_path / "run", max_steps=2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(finetune, config_of(words)).result()
    assert result.state.step == 2
    assert json.loads((tmp_path / "run/metrics.json").read_text())["steps"] == 2
