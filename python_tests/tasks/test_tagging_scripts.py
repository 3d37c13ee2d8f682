"""Entities in scripts without blanks and with tokenizers that read blanks, by models of rules."""

import numpy as np
import pytest
from tokenizer_kinds import KINDS, tokenizer_of

from spanbert_ext import SpanTagger
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.example import TaggedExample, text_example
from spanbert_ext.tasks.tagging.schemes import label_names
from spanbert_ext.tasks.tagging.task import TaggingTask
from spanbert_ext.text import marks_blanks, units

PEOPLE = {"\u674e\u660e": "PER", "\u738b\u82b3": "PER", "Anna": "PER"}
PLACES = {"\u5317\u4eac": "LOC", "\u6771\u4eac": "LOC", "Paris": "LOC", "Rome": "LOC"}
THAI = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e"  # Bangkok
NAMES = PEOPLE | PLACES | {THAI: "LOC"}


class Rules:
    """A model that knows names: it tags the tokens in which it sees them, by the text alone.

    Args:
        kind: of the tokenizer.
        scheme: bio or bilou.
    """

    def __init__(self, kind, blanks=True, **options):
        self.tokenizer = tokenizer_of(kind)
        facts = {"types": ["LOC", "PER"], "blanks": blanks}
        self.task = TaggingTask("ner", TaggingOptions(**options), facts)
        facts["labels"] = label_names(facts["types"], self.task.options.scheme)
        self.task.facts |= facts

    def __call__(self, examples):
        features = self.task.features(examples, self.tokenizer)
        outputs = [self._logits(feature, examples[feature.example]) for feature in features]
        return self.task.decode(examples, features, outputs)

    def _logits(self, feature, example):
        """Of the word that each row begins: read off the characters of the example."""
        labels = self.task.facts["labels"]
        logits = np.zeros((len(feature.rows), len(labels)), np.float32)
        window = feature.place
        words = np.arange(len(example.words)) if window.words is None else window.words
        bounds = [*words, len(example.words)]
        text = "".join(example.words)
        at = np.cumsum([0, *map(len, example.words)])
        for row in range(len(feature.rows)):
            number = window.start + row
            start, end = at[bounds[number]], at[bounds[number + 1]]
            logits[row, labels.index(self._tag(text, start, end))] = 9
        return logits

    def _tag(self, text, start, end):
        for name, type in NAMES.items():
            place = text.find(name)
            while place >= 0:
                if place <= start < place + len(name):
                    first, last = start == place, end >= place + len(name)
                    if self.task.options.scheme == "bio":
                        return ("B-" if first else "I-") + type
                    letter = {(1, 1): "U", (1, 0): "B", (0, 1): "L", (0, 0): "I"}[first, last]
                    return f"{letter}-{type}"
                place = text.find(name, place + 1)
        return "O"


SENTENCES = {
    "chinese": ("\u674e\u660e\u53bb\u4e86\u5317\u4eac\u3002", ["\u674e\u660e", "\u5317\u4eac"]),
    "two names": ("\u674e\u660e\u738b\u82b3\u53bb\u4e86", ["\u674e\u660e", "\u738b\u82b3"]),
    "japanese": (
        "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
        ["\u6771\u4eac"],
    ),
    "thai": (f"{THAI}\u0e40\u0e1b\u0e47\u0e19\u0e40\u0e21\u0e37\u0e2d\u0e07", [THAI]),
    "mixed": ("\u5728Paris\u7684\u674e\u660e", ["Paris", "\u674e\u660e"]),
    "emoji": ("\U0001f600\u674e\u660e\U0001f468\u200d\U0001f469\u53bb\u4e86", ["\u674e\u660e"]),
    "marks": ("e\u0301\u674e\u660e\u0301\u53bb", ["\u674e\u660e"]),
    "spaced": ("Anna lives (in Paris), not Rome.", ["Anna", "Paris", "Rome"]),
}


@pytest.mark.parametrize("scheme", ["bio", "bilou"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_entities_of_a_text(kind, scheme, sentence):
    text, expected = SENTENCES[sentence]
    tagger = SpanTagger(Rules(kind, scheme=scheme))
    found = tagger(text)
    for entity in found:
        assert text[entity.start : entity.end] == entity.text
        assert entity.type == NAMES[entity.text.rstrip("\u0301")]
    assert [entity.text.rstrip("\u0301") for entity in found] == expected
    assert {entity.text for entity in tagger.spans(text)} == {entity.text for entity in found}


def test_the_texts_of_characters_are_entities_typed_by_hand():
    tagger = SpanTagger(Rules("wordpiece"))
    found = tagger("\u674e\u660e\u53bb\u4e86\u5317\u4eac\u3002")
    assert [(e.text, e.type, e.start, e.end) for e in found] == [
        ("\u674e\u660e", "PER", 0, 2),
        ("\u5317\u4eac", "LOC", 4, 6),
    ]
    found = tagger(words=["\u674e", "\u660e", "in", "Rome"])
    assert [(e.text, e.start, e.end) for e in found] == [("\u674e \u660e", 0, 2), ("Rome", 3, 4)]


@pytest.mark.parametrize("scheme", ["bio", "bilou"])
@pytest.mark.parametrize("kind", KINDS)
def test_gold_tags_of_words_that_share_a_token(kind, scheme):
    """What is trained is what comes back: the labels of a window, read as the model's outputs."""
    model = Rules(kind, scheme=scheme)
    words = tuple("\u674e\u660e\u53bb\u4e86\u5317\u4eac\u3002")
    tags = ("B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O")
    example = TaggedExample("x", words * 2, tags * 2, sentences=(0, 7))
    features = model.task.features([example], model.tokenizer)
    count = len(model.task.facts["labels"])
    outputs = []
    for feature in features:
        assert (feature.labels >= 0).all() and len(feature.labels) == len(feature.rows)
        outputs.append(np.float32(9) * np.eye(count, dtype=np.float32)[feature.labels])
    [found] = model.task.decode([example], features, outputs)
    shared = features[0].place.words is not None
    scores = model.task.score([example], [found])
    assert scores["f1"] == 100 or shared
    assert all(end <= 7 or start >= 7 for start, end, _ in found.spans)
    assert [kind for *_, kind in found.spans] in (["PER", "LOC"] * 2, ["PER"] * 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("wordpiece")])
def test_the_encoder_reads_the_text(kind):
    tokenizer = tokenizer_of(kind)
    model = Rules(kind)
    text = "Anna lives (in Paris), not Rome. She isn't \u674e\u660e."
    [feature] = model.task.features([text_example("x", text, units)], tokenizer)
    assert feature.input_ids.tolist() == tokenizer(text)["input_ids"]
    words = ["Anna", "lives", "in", "Paris", ",", "not", "Rome", "."]
    [feature] = model.task.features([TaggedExample("x", tuple(words))], tokenizer)
    assert feature.input_ids.tolist() == tokenizer(" ".join(words))["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_the_first_release_read_single_words(kind):
    tokenizer = tokenizer_of(kind)
    model = Rules(kind)
    del model.task.facts["blanks"]
    words = ["Anna", "lives", "in", "Paris", ",", "not", "Rome", "."]
    [feature] = model.task.features([TaggedExample("x", tuple(words))], tokenizer)
    alone = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert feature.input_ids.tolist()[1:-1] == [id for own in alone for id in own]
    # Fine-tuned now, they read the text.
    model.task.learn([TaggedExample("x", ("Anna",), ("B-PER",))], tokenizer)
    assert model.task.facts.get("blanks", False) == marks_blanks(tokenizer)
