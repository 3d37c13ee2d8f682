"""`CorefResolver`: texts and words in, clusters and resolved texts out."""

import json
import shutil

import pytest
from coref_runs import config_of, coref_words
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertModel

import spanbert_ext
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.coref.pipeline import CorefResolver
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.predictor import Predictor

TEXT = "Anna was very good. Boris is bad. The actor with Anna was fine. Boris."


@pytest.fixture(scope="module")
def model(toy_bert, tmp_path_factory):
    """A run that has learned that equal names are the same person."""
    home = tmp_path_factory.mktemp("resolver")
    finetune(config_of(coref_words(toy_bert, home, home / "run")))
    return home / "run"


@pytest.fixture(scope="module")
def resolver(model):
    return CorefResolver(model, device="cpu")


@pytest.fixture(scope="module")
def wild(toy_bert, tmp_path_factory):
    """A model with random weights, which takes anything for a mention of anything."""
    folder = tmp_path_factory.mktemp("wild")
    options = CorefModelOptions(ffnn_size=8, singletons=True, max_span_width=5)
    SpanBertForCoreference.from_encoder(toy_bert, options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wild_resolver(wild):
    return CorefResolver(wild, device="cpu")


def test_it_is_exported():
    assert spanbert_ext.CorefResolver is CorefResolver
    assert spanbert_ext.tasks.CorefResolver is CorefResolver


def test_a_text(resolver):
    found = resolver(TEXT)
    assert found.text == TEXT and found.words[:4] == ("Anna", "was", "very", "good")
    pairs = [cluster for cluster in found.get_clusters() if len(cluster) > 1]
    assert ["Anna", "Anna"] in pairs and ["Boris", "Boris"] in pairs
    mentions = [m for cluster in found.clusters for m in cluster]
    assert all(TEXT[m.start : m.end] == m.text for m in mentions)
    assert all(" ".join(found.words[m.first : m.last + 1]) == m.text for m in mentions)
    assert all(isinstance(m.score, float) for m in mentions)
    spans = found.get_clusters(as_strings=False)
    assert [[TEXT[a:b] for a, b in cluster] for cluster in spans] == found.get_clusters()
    assert found.word_spans() == [[(m.first, m.last) for m in c] for c in found.clusters]


def test_words_and_sentences(resolver):
    words = TEXT.replace(".", " .").split()
    found = resolver(tokens=words)
    assert found.text is None and list(found.words) == words
    assert found.get_clusters(as_strings=False) == found.word_spans()
    assert all(m.start is None and m.end is None for c in found.clusters for m in c)
    assert [c for c in found.get_clusters() if c == ["Anna", "Anna"]]
    sentences = [words[:5], words[5:9], words[9:16], words[16:]]
    cut = resolver(sentences=sentences)
    assert cut.document.sentence_of_word == found.document.sentence_of_word
    assert cut.word_spans() == found.word_spans()
    said = resolver(tokens=words, speakers=["x"] * len(words))
    assert said.document.speakers[0] == "x"


def test_several_documents_one_by_one(resolver):
    alone = [resolver(TEXT), resolver("Boris was Boris.")]
    both = resolver([TEXT, "Boris was Boris."])
    assert [r.clusters for r in both] == [r.clusters for r in alone]
    words = [["Anna", "was"], ["Boris", "is", "Boris"]]
    assert [r.words for r in resolver(tokens=words)] == [tuple(own) for own in words]
    assert resolver([]) == [] and len(resolver([TEXT] * 9)) == 9


def test_resolved_texts(resolver, monkeypatch):
    text = "Anna was bad. She is fine."
    found = resolver(text)
    assert found.resolve() == resolver.resolve(text)
    assert resolver.resolve([text, TEXT]) == [resolver.resolve(text), resolver.resolve(TEXT)]
    mentions = resolver("Anna was bad. Anna is fine.").clusters
    assert [m.text for m in mentions[0]] == ["Anna", "Anna"]
    from spanbert_ext.tasks.coref.pipeline import CorefResult
    from spanbert_ext.tasks.coref.resolve import cluster_mentions

    clusters = cluster_mentions(found.document, [[(0, 0), (4, 4)]])
    assert CorefResult(found.document, clusters).resolve() == "Anna was bad. Anna is fine."


@settings(max_examples=40)
@given(st.text("abcAB .,\n\t\"'()\u00e9\u6f22\u0301\x01\U0001f600", min_size=1, max_size=60))
def test_places_are_those_of_the_text(wild_resolver, text):
    """Whatever the text: every mention once, and where it says."""
    if not text.strip():
        with pytest.raises(DataError, match="it has no words"):
            wild_resolver(text)
        return
    found = wild_resolver(text)
    mentions = [m for cluster in found.clusters for m in cluster]
    assert all(text[m.start : m.end] == m.text for m in mentions)
    assert len({(m.start, m.end) for m in mentions}) == len(mentions)
    assert isinstance(found.resolve(), str)


def test_splitters_of_ones_own(model):
    halves = CorefResolver(
        model,
        device="cpu",
        split=lambda text: [(0, 4), (4, len(text))],
        sentences=lambda text, words: [0, 1],
    )
    found = halves("Annawas")
    assert found.words == ("Anna", "was") and found.document.sentence_of_word == (0, 1)


def test_what_can_be_a_model(model, wild, resolver, toy_bert, tmp_path):
    predictor = Predictor.load(model, device="cpu")
    assert CorefResolver(predictor)(TEXT).clusters == resolver(TEXT).clusters
    stored = CorefResolver(wild, device="cpu").predictor.task
    assert stored.options.max_segment_len == 64 and stored.options.singletons
    shutil.copytree(wild, tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    config["coref"]["span_ratio"] = -1
    (tmp_path / "odd/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="span_ratio: must be above 0"):
        CorefResolver(tmp_path / "odd", device="cpu")
    BertModel.from_pretrained(toy_bert).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(toy_bert).save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match="no coreference head"):
        CorefResolver(tmp_path / "bare", device="cpu")


def test_wrong_arguments(resolver):
    with pytest.raises(ConfigError, match="either a text, or tokens, or sentences"):
        resolver()
    with pytest.raises(ConfigError, match="either a text, or tokens, or sentences"):
        resolver(TEXT, tokens=["Anna"])
    with pytest.raises(ConfigError, match="speakers: they need tokens"):
        resolver(TEXT, speakers=["x"])
    with pytest.raises(ConfigError, match="call once for each"):
        resolver(tokens=[["Anna"], ["Boris"]], speakers=["x"])
    with pytest.raises(DataError, match="2 words but 1 speakers"):
        resolver(tokens=["Anna", "was"], speakers=["x"])
    with pytest.raises(DataError, match="it has no words"):
        resolver(tokens=[])
    with pytest.raises(DataError, match="expected a list of words"):
        resolver(sentences=["Anna was"])
    with pytest.raises(DataError, match="expected a text, got int"):
        resolver([1])


def test_a_document_of_ten_thousand_words(resolver):
    words = TEXT.replace(".", " .").split() * 600
    found = resolver(tokens=words)
    last = max(m.last for cluster in found.clusters for m in cluster)
    assert len(words) > 10_000 and last == len(words) - 2
    assert max(len(cluster) for cluster in found.clusters) > 500
