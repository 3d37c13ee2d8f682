"""Coreference documents in scripts without blanks and with tokenizers that read blanks."""

import dataclasses

import numpy as np
import pytest
from tokenizer_kinds import KINDS, tokenizer_of

from spanbert_ext.tasks.coref.data import Document, from_text
from spanbert_ext.tasks.coref.features import segment
from spanbert_ext.tasks.coref.options import CorefOptions
from spanbert_ext.tasks.coref.task import CorefTask, LinkedSpans
from spanbert_ext.text import marks_blanks

# Li Ming went to Beijing. He is there.
CHINESE = "\u674e\u660e\u53bb\u4e86\u5317\u4eac\u3002\u4ed6\u5728\u5317\u4eac\u3002"
CLUSTERS = (((0, 1), (7, 7)), ((4, 5), (9, 10)))


def with_gold(document, clusters):
    return dataclasses.replace(document, clusters=clusters)


def test_characters_of_a_chinese_text_are_words():
    document = from_text("d", CHINESE)
    assert document.words == tuple(CHINESE)
    assert document.sentence_of_word == (0,) * 7 + (1,) * 5
    assert [document.span_text(span) for span in CLUSTERS[0]] == ["\u674e\u660e", "\u4ed6"]
    assert document.characters((4, 5)) == (4, 6)
    mixed = from_text("d", "\u5728Paris\u7684 Mr. Li\u3002")
    assert mixed.words == ("\u5728", "Paris", "\u7684", "Mr.", "Li", "\u3002")


@pytest.mark.parametrize("kind", KINDS)
def test_mentions_of_characters_come_back(kind):
    """Spans of pieces of the gold mentions are decoded as the gold clusters; where a piece holds
    more than a mention, as all of it."""
    tokenizer = tokenizer_of(kind)
    document = with_gold(from_text("d", CHINESE), CLUSTERS)
    task = CorefTask("coref", CorefOptions(), {"genres": None, "blanks": True})
    [found] = task.features([document], tokenizer)
    ids = tokenizer(CHINESE, add_special_tokens=False)["input_ids"]
    assert found.tokens[1:-1].tolist() == ids
    clusters: dict[int, list] = {}
    for start, end, number in zip(
        found.gold_starts, found.gold_ends, found.gold_clusters, strict=True
    ):
        clusters.setdefault(int(number), []).append((int(start), int(end)))
    scores = {span: 1.0 for cluster in clusters.values() for span in cluster}
    [prediction] = task.decode([document], [found], [LinkedSpans([*clusters.values()], scores)])
    assert prediction.clusters == CLUSTERS
    assert found.last_word_of_piece[-2] == len(CHINESE) - 1
    inner = found.word_of_piece[1:-1]
    assert (np.diff(inner) >= 0).all() and inner[0] == 0
    assert (found.last_word_of_piece[1:-1] >= inner).all()


def test_a_piece_that_holds_two_words_is_a_mention_of_both():
    tokenizer = tokenizer_of("byte-level")
    document = with_gold(from_text("d", CHINESE), (((0, 0), (1, 1)),))
    [found] = segment([document], tokenizer)
    # The first piece is the first two characters: no span can tell them apart.
    assert found.word_of_piece[1] == 0 and found.last_word_of_piece[1] == 1
    assert found.word_span(1, 1) == (0, 1)
    assert found.gold_starts.tolist() == [1, 1] and found.gold_ends.tolist() == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_reads_the_text(kind):
    tokenizer = tokenizer_of(kind)
    text = "Anna lives (in Paris), not Rome. She isn't there."
    words = ["Anna", "lives", "in", "Paris", ".", "She", "is", "not", "."]
    listed = Document("d", tuple(words), (0,) * 5 + (1,) * 4)
    documents = [from_text("d", text), listed]
    for document, whole in zip(documents, (text, " ".join(words)), strict=True):
        [found] = segment([document], tokenizer)
        expected = tokenizer(whole)["input_ids"]
        if not marks_blanks(tokenizer):
            alone = tokenizer(list(document.words), add_special_tokens=False)["input_ids"]
            expected = [expected[0], *(id for own in alone for id in own), expected[-1]]
        assert found.tokens.tolist() == expected
        [found] = segment([document], tokenizer, blanks=False)
        alone = tokenizer(list(document.words), add_special_tokens=False)["input_ids"]
        assert found.tokens[1:-1].tolist() == [id for own in alone for id in own]


def test_a_text_that_spells_a_special_token_is_cut_nowhere():
    tokenizer = tokenizer_of("byte-level")
    [found] = segment([from_text("d", "Anna </s> in <s>")], tokenizer)
    assert not {0, 2} & set(found.tokens[1:-1].tolist())


def test_models_of_the_first_release_read_single_words():
    tokenizer = tokenizer_of("byte-level")
    task = CorefTask("coref", CorefOptions(), {"genres": None})
    document = from_text("d", "Anna lives in Paris.")
    [found] = task.features([document], tokenizer)
    alone = tokenizer(list(document.words), add_special_tokens=False)["input_ids"]
    assert found.tokens[1:-1].tolist() == [id for own in alone for id in own]
    task.learn([with_gold(document, (((0, 0), (1, 1)),))], tokenizer)
    assert task.facts == {"genres": None, "blanks": True}
    task = CorefTask("coref", CorefOptions())
    task.learn([with_gold(document, (((0, 0), (1, 1)),))], tokenizer_of("wordpiece"))
    assert task.facts == {"genres": None}
