"""Entities and spans of texts, whatever the text is."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tagging_helpers import StandIn, random_model, tagging_task

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.tagging.pipeline import SpanTagger, task_of_model

ODD = "ab1 \n.'\u2019-\u0301\u200d\0\ud800\u05e9\u05c1\u0928\u094d\U0001f469\U0001f600\ufeff\u3000"
TEXTS = st.text(alphabet=st.one_of(st.sampled_from(ODD), st.characters()), max_size=60)


def random_tagger(seed=0, types=("LOC", "PER"), **options):
    options = {"length": 16, "overlap": 4, **options}
    return SpanTagger(random_model(tagging_task(types, **options), seed))


@settings(max_examples=400)
@given(
    st.lists(TEXTS, max_size=4),
    st.integers(0, 99),
    st.sampled_from(["bio", "bilou"]),
    st.booleans(),
)
def test_an_entity_is_its_part_of_the_text(texts, seed, scheme, constrained):
    tagger = random_tagger(seed, scheme=scheme, constrained=constrained)
    spans = tagger.spans(texts, top_k=5, max_words=3)
    for text, found, scored in zip(texts, tagger(texts), spans, strict=True):
        for entity in [*found, *scored]:
            assert text[entity.start : entity.end] == entity.text != ""
            assert 0 <= entity.score <= 1 and entity.type in ("LOC", "PER")
        ends = [0, *(entity.end for entity in found)]
        assert all(a <= x.start for a, x in zip(ends, found, strict=False))
        assert [x.score for x in scored] == sorted((x.score for x in scored), reverse=True)


@pytest.mark.parametrize(
    "word", ["Ada met Bo. ", "a", "\U0001f600", "\u05e9\u05c1 ", "\0", "\u0301"]
)
def test_a_very_long_text(word):
    text = word * (60_000 // len(word))
    tagger = random_tagger(length=256, overlap=32)
    found = tagger(text)
    assert all(text[x.start : x.end] == x.text for x in found)
    assert found or len(word) == 1


def test_one_text_several_and_words():
    tagger = random_tagger(3)
    text = "Ada Lovelace met Babbage in old London ."
    words = text.split()
    single = tagger(text)
    assert single and tagger([text]) == [single]
    by_words = tagger(words=words)
    assert tagger(words=[words]) == [by_words]
    assert [x.text for x in by_words] == [x.text for x in single]
    for entity in by_words:
        assert " ".join(words[entity.start : entity.end]) == entity.text
    assert tagger("") == tagger(words=[]) == tagger([]) == [] and tagger(["", " "]) == [[], []]
    assert tagger.spans("") == [] and tagger.spans(words=[[], ["a"]], threshold=1) == [[], []]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "either a text or words"),
        ({"text": "a", "words": ["a"]}, "either a text or words"),
        ({"words": "a b"}, "a list of words"),
        ({"words": ["a", ["b"]]}, "a list of words"),
    ],
)
def test_what_cannot_be_asked(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        random_tagger()(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"top_k": 0}, "top_k: must be at least 1"),
        ({"max_words": 0}, "max_words: must be at least 1"),
        ({"threshold": 1.5}, "threshold: must be in 0..1"),
    ],
)
def test_impossible_choices_of_spans(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        random_tagger().spans("a", **arguments)


def test_spans_of_a_binary_model():
    """P(B), P(I) = (0.6, 0.1), (0.1, 0.7), (0.3, 0.5) for the words of `a b c`."""
    task = tagging_task(("SPAN",))
    table = np.log([[0.3, 0.6, 0.1], [0.2, 0.1, 0.7], [0.2, 0.3, 0.5]])

    tagger = SpanTagger(StandIn(task, lambda rows: table))
    found = tagger.spans("a b c", top_k=9, overlapping=True)
    shown = {x.text: x.score for x in found}
    assert shown == pytest.approx(
        {"a": 0.18, "a b": 0.21, "a b c": 0.21, "b": 0.05, "b c": 0.05, "c": 0.3}, abs=1e-6
    )
    assert [x.text for x in tagger.spans("a b c", top_k=9)] == ["c", "a b"]
    assert [x.text for x in tagger.spans("a b c", threshold=0.2)] == ["c", "a b"]
    assert tagger.spans("a b c") == []  # 0.5 where nothing is said
    assert {x.text for x in tagger.spans("a b c", top_k=9, max_words=1)} == {"a", "b", "c"}


def test_another_word_splitter():
    predictor = random_model(tagging_task(), seed=1)
    whole = SpanTagger(predictor, split=lambda text: [(0, len(text))] if text else [])
    found = whole.spans("Ada Lovelace", top_k=1)
    assert [(x.start, x.end, x.text) for x in found] == [(0, 12, "Ada Lovelace")]
    for ranges in ([(0, 3), (2, 5)], [(3, 3)], [(-1, 2)], [(0, 99)]):
        broken = SpanTagger(predictor, split=lambda text, ranges=ranges: ranges)
        with pytest.raises(DataError, match="text 0: word . of the word splitter"):
            broken("Ada Lovelace")


def config(*labels, positions=512):
    names = dict(enumerate(labels))
    return SimpleNamespace(id2label=names, max_position_embeddings=positions)


def test_a_plain_token_classifier():
    task = task_of_model(config("B-MISC", "O", "I-MISC", "I-PER", "B-PER"))
    assert task.labels() == ["B-MISC", "O", "I-MISC", "I-PER", "B-PER"]
    assert task.facts["types"] == ["MISC", "PER"]
    assert task.options.scheme == "bio" and not task.options.constrained
    task = task_of_model(config("O", "S-A", "B-A", "I-A", "E-A", positions=128))
    assert task.options.scheme == "bilou" and task.options.length == 128
    SpanTagger(random_model(task)).spans("a b c", top_k=2)
    with pytest.raises(ConfigError, match="'NOUN' is no tag"):
        task_of_model(config("NOUN", "VERB"))


def test_a_model_without_beginnings_tags_but_scores_no_spans():
    tagger = SpanTagger(random_model(task_of_model(config("O", "I-PER"))))
    assert tagger("a b c d e f")
    with pytest.raises(ConfigError, match="no label B-PER"):
        tagger.spans("a b c")


def test_a_model_of_another_task_is_refused():
    other = SimpleNamespace(task=SimpleNamespace(name="squad"))
    with pytest.raises(ConfigError, match="fine-tuned for squad, not for tagging"):
        SpanTagger(other)
