"""The scorers of the field read the files of an evaluation and find the very figures it reports."""

import math

import numpy as np
import official_scorers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from spanbert_ext.tasks.classification.config import GlueOptions
from spanbert_ext.tasks.classification.data import GlueExample
from spanbert_ext.tasks.classification.task import GlueTask, LabelPrediction, ValuePrediction
from spanbert_ext.tasks.coref import conll
from spanbert_ext.tasks.coref.data import Document, from_words
from spanbert_ext.tasks.coref.options import CorefOptions
from spanbert_ext.tasks.coref.task import CorefPrediction, CorefTask
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.decode import Answer, QAPrediction
from spanbert_ext.tasks.qa.task import QATask
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.relation.config import RelationOptions
from spanbert_ext.tasks.relation.data import RelationExample
from spanbert_ext.tasks.relation.task import RelationPrediction, RelationTask
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample
from spanbert_ext.tasks.tagging.schemes import Span
from spanbert_ext.tasks.tagging.task import Tagging, TaggingTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


_WORDS = st.sampled_from(["the", "a", "Paris", "paris", "in", "of", "U.S.", "!", "Rome"])
_TEXTS = st.lists(_WORDS, min_size=1, max_size=7).map(" ".join)
_DIFFS = st.one_of(st.integers(-2, 2).map(float), st.floats(-20, 20, width=32))
_QUESTIONS = st.lists(
    st.tuples(st.lists(_TEXTS, max_size=3), st.one_of(st.none(), _TEXTS), _DIFFS),
    min_size=1,
    max_size=14,
)


def questions(cases, flag=True):
    examples, predictions = [], []
    for number, (golds, text, diff) in enumerate(cases):
        id, impossible = f"q{number}", not golds if flag else None
        examples.append(QAExample(id, "?", "...", (), impossible, tuple(golds)))
        answers = () if text is None else (Answer(0, len(text), text, 1.0),)
        predictions.append(QAPrediction(answers, 0.5, diff))
    return examples, predictions


@settings(max_examples=60)
@given(_QUESTIONS, _DIFFS)
def test_squad_2(folder, cases, threshold):
    task = QATask("squad2", QAOptions(), {"null_threshold": threshold})
    examples, predictions = questions(cases)
    golds = {example.id: example.golds for example in examples}
    found = task.score(examples, predictions)
    best, na_probs, final = task.write_predictions(folder / "p.json", examples, predictions)
    assert (best.name, na_probs.name, final.name) == (
        "p.json",
        "p_na.json",
        "p_thresholded.json",
    )
    searched = official_scorers.squad2(golds, best, na_probs, threshold)
    assert {name: found[name] for name in searched} == searched
    del searched["best_exact"], searched["best_f1"]
    # Without the differences a blank counts where the only gold answers have no words, and a
    # question without anything to read has no answer, whatever the threshold.
    worded = all(any(set(text.split()) - {"the", "a", "!"} for text in g) for g, *_ in cases if g)
    if worded and all(text is not None for _, text, _ in cases):
        assert official_scorers.squad2(golds, final) == searched


def test_the_search_needs_the_answers_that_the_threshold_blanks(folder):
    cases = [(["Paris"], "Paris", 1.0), (["Rome"], "Rome", -1.0), ([], "Rome", 2.0)]
    task = QATask("squad2", QAOptions(), {"null_threshold": 0.0})
    examples, predictions = questions(cases)
    golds = {example.id: example.golds for example in examples}
    best, na_probs, final = task.write_predictions(folder / "p.json", examples, predictions)
    assert task.score(examples, predictions)["best_f1"] == 100
    assert official_scorers.squad2(golds, best, na_probs)["best_f1"] == 100
    assert official_scorers.squad2(golds, final, na_probs)["best_f1"] == 100 * 2 / 3
    assert official_scorers.squad2(golds, final)["f1"] == 100 * 2 / 3


@pytest.mark.parametrize("name", ["squad", "mrqa"])
@settings(max_examples=60)
@given(_QUESTIONS)
def test_squad_1(folder, name, cases):
    cases = [(golds or ["the"], text or "in", diff) for golds, text, diff in cases]
    task = QATask(name, QAOptions())
    examples, predictions = questions(cases, flag=False)
    (path,) = task.write_predictions(folder / "p.json", examples, predictions)
    golds = {example.id: example.golds for example in examples}
    assert task.score(examples, predictions) == official_scorers.squad1(golds, path)


_WORD = st.one_of(
    st.sampled_from(["a", "New York", "", " ", "-X-", "-DOCSTART-", "a\u2028b", "\t", "O", "\r"]),
    st.text(max_size=3),
)
_SPANS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from("AB ")))


@st.composite
def tagged(draw):
    """Words, and non-overlapping spans of gold and of prediction, in one or two sentences."""
    words = draw(st.lists(_WORD, min_size=1, max_size=8))
    cut = draw(st.integers(0, len(words) - 1))
    sides = []
    for _ in range(2):
        spans, end = [], 0
        for gap, size, kind in draw(_SPANS):
            start = end + gap
            stop = start + size + 1
            if stop <= len(words) and not start < cut < stop:
                spans.append(Span(start, stop, {" ": "a-b c"}.get(kind, kind)))
            end = stop
        sides.append(spans)
    return words, sorted({0, cut}), *sides


def tags(spans, count):
    found = ["O"] * count
    for start, stop, kind in spans:
        found[start:stop] = [f"B-{kind}"] + [f"I-{kind}"] * (stop - start - 1)
    return tuple(found)


@settings(max_examples=60)
@given(st.lists(tagged(), min_size=1, max_size=3))
def test_conlleval(folder, cases):
    task = TaggingTask("ner", TaggingOptions())
    examples, predictions = [], []
    for words, sentences, gold, found in cases:
        own = tags(gold, len(words))
        examples.append(TaggedExample("x", tuple(words), own, tuple(sentences)))
        predictions.append(Tagging(tuple(found), (1.0,) * len(found), np.zeros((len(words), 1))))
    (path,) = task.write_predictions(folder / "p.txt", examples, predictions)
    overall, by_type = official_scorers.conlleval(path)
    reported = task.score(examples, predictions)
    names = ("precision", "recall", "f1")
    assert tuple(reported[name] for name in names) == overall
    for kind in {span.type for _, _, *sides in cases for spans in sides for span in spans}:
        written = kind.replace(" ", "_")
        assert tuple(reported[f"{kind}.{name}"] for name in names) == by_type[written]


_LABELS = st.sampled_from(["no_relation", "born in", "owns"])


@settings(max_examples=60)
@given(st.lists(st.tuples(_LABELS, _LABELS), min_size=1, max_size=30))
def test_tacred(folder, pairs):
    task = RelationTask("tacred", RelationOptions(), {"labels": ["no_relation", "born in", "owns"]})
    examples = [
        RelationExample(f"r{n}", ("a", "b"), (0, 1), (1, 2), relation=gold)
        for n, (gold, _) in enumerate(pairs)
    ]
    predictions = [RelationPrediction(guess, 1.0, np.ones(3, np.float32)) for _, guess in pairs]
    path, ids = task.write_predictions(folder / "p.txt", examples, predictions)
    assert ids.name == "p_ids.txt" and len(ids.read_text().splitlines()) == len(pairs)
    gold = folder / "gold.txt"
    gold.write_text("".join(f"{label}\n" for label, _ in pairs))
    reported = task.score(examples, predictions)
    found = official_scorers.tacred(gold, path)
    assert tuple(reported[name] for name in ("precision", "recall", "f1")) == tuple(
        100 * value for value in found
    )


@st.composite
def clustered(draw, repeats):
    """Clusters of a document of eight words; those of a response are a partition."""
    spans = [(a, b) for a in range(8) for b in range(a, min(8, a + 3))]
    clusters = draw(
        st.lists(st.lists(st.sampled_from(spans), min_size=1, max_size=3, unique=True), max_size=4)
    )
    if not repeats:
        seen = set()
        clusters = [[s for s in c if s not in seen and not seen.add(s)] for c in clusters]
    return [cluster for cluster in clusters if cluster]


@settings(max_examples=60)
@given(st.lists(st.tuples(clustered(True), clustered(False)), min_size=1, max_size=3))
def test_the_coreference_scorer(folder, cases):
    task, key = CorefTask("coref", CorefOptions()), folder / "key.conll"
    documents = [
        from_words(f"d {n}", [["a\tb", *"bcd"], list("efgh")], gold, shared="keep")
        for n, (gold, _) in enumerate(cases)
    ]
    plain = [
        Document(d.id, tuple("abcdefgh"), d.sentence_of_word, clusters=d.clusters)
        for d in documents
    ]
    # What the columns cannot express is no matter of scores.
    conll.write(key, plain, crossing="drop")
    gold = [d.clusters for d in conll.read(key, Rejects())]
    response = [CorefPrediction(tuple(tuple(sorted(c)) for c in own), {}) for _, own in cases]
    (path,) = task.write_predictions(folder / "p.conll", documents, response)
    written = official_scorers.conll2012_documents(path)
    keys = official_scorers.conll2012_documents(key)
    assert list(written) == list(keys)
    found = official_scorers.conll2012([(keys[name], written[name]) for name in keys])
    read = [Document("d", tuple("abcdefgh"), (0,) * 8, clusters=own) for own in gold]
    response = [CorefPrediction(d.clusters, {}) for d in conll.read(path, Rejects())]
    reported = task.score(read, response)
    for name in ("mentions", "muc", "bcub", "ceafe", "lea"):
        assert reported[f"with_singletons.{name}.f1"] == pytest.approx(100 * found[name][2])


@pytest.mark.parametrize("name", ["cola", "mrpc", "mnli"])
@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_glue_labels(folder, name, pairs):
    task = GlueTask(name, GlueOptions())
    labels = task.layout.labels
    pairs = [(labels[a % len(labels)], labels[b % len(labels)]) for a, b in pairs]
    examples = [GlueExample(str(n), ("a", "b"), gold) for n, (gold, _) in enumerate(pairs)]
    predictions = [LabelPrediction(label, {}) for _, label in pairs]
    (path,) = task.write_predictions(folder / "p.tsv", examples, predictions)
    header, *rows = path.read_text().splitlines()
    assert header == "index\tprediction"
    ids, written = zip(*(row.split("\t") for row in rows), strict=True)
    assert list(ids) == [example.id for example in examples]
    gold = [label for label, _ in pairs]
    reported = task.score(examples, predictions)
    assert reported["accuracy"] == 100 * sklearn.accuracy_score(gold, written)
    if name == "cola":
        assert reported["matthews"] == 100 * sklearn.matthews_corrcoef(gold, written)
    if name == "mrpc":
        f1 = sklearn.f1_score(gold, written, pos_label="1", zero_division=0.0)
        assert reported["f1"] == 100 * f1
        both = (sklearn.accuracy_score(gold, written) + f1) / 2
        assert reported["accuracy_and_f1"] == 100 * both


def test_glue_scores(folder):
    task, draw = GlueTask("sts-b", GlueOptions()), np.random.default_rng(0)
    gold = draw.integers(0, 6, 50).astype(float)
    values = np.clip(gold + draw.normal(size=50), 0, 5).round(3)
    examples = [GlueExample(str(n), ("a", "b"), own) for n, own in enumerate(gold)]
    predictions = [ValuePrediction(float(value)) for value in values]
    (path,) = task.write_predictions(folder / "p.tsv", examples, predictions)
    written = [float(row.split("\t")[1]) for row in path.read_text().splitlines()[1:]]
    reported = task.score(examples, predictions)
    pearson, spearman = (f(gold, written).statistic for f in (stats.pearsonr, stats.spearmanr))
    assert math.isclose(reported["pearson"], 100 * pearson, rel_tol=1e-12)
    assert math.isclose(reported["spearman"], 100 * spearman, rel_tol=1e-12)
