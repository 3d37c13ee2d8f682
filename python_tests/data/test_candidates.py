"""Candidate spans: from characters to pieces, into files, and back into batches."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from corpora import PROSE, byte_level_bpe, bytes_of, small_corpus, unigram, write
from tokenizers.pre_tokenizers import BertPreTokenizer

from spanbert_ext.data import Corpus, PackedRows, PrepareConfig, prepare
from spanbert_ext.data.annotators import load_annotator
from spanbert_ext.data.candidates import mark_candidates
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.training.resident import ResidentRows


def capitals(text):
    """Entities are runs of capitalised words, phrases what stands behind an article."""
    for match in re.finditer(r"[A-Z]\w*( [A-Z]\w*)*", text):
        yield *match.span(), "entity"
    for match in re.finditer(r"\bthe \w+", text):
        yield *match.span(), "phrase"


def wrong(text):
    yield 0, len(text) + 1, "entity"


NOT_A_FUNCTION = 3
CAPITALS = f"{__name__}:capitals"

# Pieces of "Ab cde, fgh!": A ##b c ##de , f ##g ##h !
TEXT = "Ab cde, fgh!"
OFFSETS = [(0, 1), (1, 2), (3, 4), (4, 6), (6, 7), (8, 9), (9, 10), (10, 11), (11, 12)]
BEGINS = np.array([1, 0, 1, 0, 1, 1, 0, 0, 1], dtype=bool)


@pytest.mark.parametrize(
    ("spans", "marks"),
    [
        ([], "000000000"),
        ([(0, 2)], "120000000"),
        ([(0, 2), (3, 6)], "121200000"),  # adjacent spans stay apart
        ([(0, 6)], "122200000"),
        ([(1, 2)], "120000000"),  # grows to whole words
        ([(5, 10)], "001222220"),
        ([(2, 3)], "000000000"),  # white space alone
        ([(2, 8)], "001220000"),  # white space at the ends
        ([(4, 4)], "000000000"),
        ([(3, 6), (3, 11)], "001222220"),  # the longest of those that begin together
        ([(0, 4), (3, 11)], "122200000"),  # the first of those that overlap
        ([(5, 6), (3, 4)], "001200000"),  # the same word twice
        ([(11, 12)], "000000001"),
    ],
)
def test_marks_literal(spans, marks):
    found = mark_candidates(TEXT, [(*span, "entity") for span in spans], OFFSETS, BEGINS)
    assert "".join(map(str, found["entity"])) == marks
    assert not found["phrase"].any()


@pytest.mark.parametrize("span", [(-1, 2, "entity"), (0, 13, "entity"), (0, 2, "verb")])
def test_impossible_spans_are_refused(span):
    with pytest.raises(DataError, match="the annotator gave .* for a text of 12 characters"):
        mark_candidates(TEXT, [span], OFFSETS, BEGINS)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return small_corpus(
        tmp_path_factory.mktemp("annotated"),
        annotate="both",
        annotator=CAPITALS,
        shard_tokens=4000,
        unit_bytes=9000,
        workers=1,
    )


def spans_of(corpus, kind):
    """Text of each marked span, without spaces."""
    pieces, found = corpus.vocabulary.texts, []
    marks = corpus.annotation(kind).gather(np.arange(corpus.num_tokens))
    for i, mark in zip(corpus.gather(np.arange(corpus.num_tokens)), marks, strict=True):
        if mark == 1:
            found.append(pieces[i])
        elif mark == 2:
            found[-1] += pieces[i]
    return found


def test_marked_pieces_spell_the_spans(annotated):
    """Against the words of each document, found without the vocabulary."""
    blocks = re.split(r"\n\s*\n", PROSE)
    texts = [" ".join(line.strip() for line in block.split("\n")) for block in blocks]
    expected = {"entity": [], "phrase": []}
    for text in texts:
        words = [span for _, span in BertPreTokenizer().pre_tokenize_str(text)]
        free = dict.fromkeys(expected, 0)
        for start, end, kind in capitals(text):
            inside = [(first, last) for first, last in words if first < end and last > start]
            if inside[0][0] >= free[kind]:
                expected[kind].append("".join(text[first:last] for first, last in inside))
                free[kind] = inside[-1][1]
    for kind, spans in expected.items():
        found = spans_of(annotated, kind)
        assert len(found) == annotated.sidecar["annotations"][kind]["spans"] > 50
        assert all(ours in ("[UNK]", theirs) for ours, theirs in zip(found, spans, strict=True))


def test_files_are_recorded(annotated):
    entry = annotated.sidecar["annotations"]["entity"]
    names = [f"{shard.path.name}.entity" for shard in annotated.shards]
    assert len(names) > 1
    assert [*entry["files"]] == names
    for name, shard in zip(names, annotated.shards, strict=True):
        path = annotated.path / "tokens" / name
        assert entry["files"][name] == annotated.sidecar["files"][f"tokens/{name}"]
        assert path.stat().st_size == shard.tokens.size
    assert "candidate spans, entity: " in annotated.summary()
    annotated.verify()


def test_the_tokens_are_those_of_the_corpus_without(annotated, tmp_path):
    plain = small_corpus(tmp_path / "plain", shard_tokens=4000)
    assert plain.fingerprint == annotated.fingerprint
    ours, theirs = bytes_of(plain.path), bytes_of(annotated.path)
    assert all(theirs[name] == ours[name] for name in ours if name != "corpus.json")
    with pytest.raises(DataError, match="no entity spans here; prepare .* with annotate=entity"):
        plain.annotation("entity")
    again = small_corpus(
        tmp_path / "two", annotate="entity", annotator=CAPITALS, unit_bytes=4000, workers=2
    )
    assert [*again.sidecar["annotations"]] == ["entity"]
    assert spans_of(again, "entity") == spans_of(annotated, "entity")


@pytest.mark.parametrize("make", [byte_level_bpe, unigram])
def test_other_tokenizers(tmp_path, make):
    """A text of two portions, so the second begins with a space."""
    file = tmp_path / "tokenizer.json"
    make().save(str(file))
    text = "the small House by London Bridge. " * 2500
    options = {"tokenizer": str(file), "annotate": "entity", "annotator": CAPITALS}
    corpus = small_corpus(tmp_path, text, **options)
    assert spans_of(corpus, "entity") == [
        "House",
        "London Bridge",
        *["House", "LondonBridge"],
    ] * 0 + (["House", "LondonBridge."] * 2500)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotator": "absent:f"}, "annotator: absent:f cannot be loaded: No module named"),
        ({"annotator": f"{__name__}:absent"}, "annotator: .*:absent cannot be loaded: .* no attr"),
        ({"annotator": f"{__name__}:NOT_A_FUNCTION"}, "is not a function"),
        ({"annotator": "capitals"}, "annotator: expected module:function"),
    ],
)
def test_annotators_that_cannot_be_used(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        small_corpus(tmp_path, annotate="entity", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_wrong_span_is_a_fault(tmp_path):
    with pytest.raises(DataError, match="the annotator gave"):
        small_corpus(tmp_path, annotate="entity", annotator=f"{__name__}:wrong")


def test_spacy_or_what_to_do_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"spaCy is not installed; `pip install 'spanbert-ext\[a"):
        load_annotator(PrepareConfig(annotate="both"))


def test_rules_of_spacy(tmp_path):
    """A model of rules alone; its numeric entities are left out."""
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    nlp = spacy.blank("en")
    rules = [{"label": "GPE", "pattern": "Paris"}, {"label": "DATE", "pattern": "May"}]
    nlp.add_pipe("entity_ruler").add_patterns(rules)
    nlp.to_disk(tmp_path / "model")
    settings = {"annotator_model": str(tmp_path / "model")}
    annotate = load_annotator(PrepareConfig(annotate="entity", **settings))
    assert [*annotate("In May Paris shines.")] == [(7, 12, "entity")]
    with pytest.raises(ConfigError, match="has no parser, so it finds no noun phrases"):
        load_annotator(PrepareConfig(annotate="both", **settings))
    with pytest.raises(ConfigError, match="spaCy cannot load 'absent'.*spacy download absent"):
        load_annotator(PrepareConfig(annotate="entity", annotator_model="absent"))


@pytest.mark.parametrize("pad", [False, True])
def test_batches_carry_the_marks(annotated, pad):
    rows = PackedRows(annotated, 32, candidates="entity")
    ids = [5, 0, 3]
    batch = rows.batch(ids, pad=pad)
    assert batch.candidates.dtype == np.uint8
    assert batch.candidates.shape == batch.tokens.shape
    assert PackedRows(annotated, 32).batch(ids, pad=pad).candidates is None
    for n, sample in enumerate(batch.sample_ids):
        own = slice(batch.cu_seqlens[n], batch.cu_seqlens[n + 1])
        marks = batch.candidates[own]
        if sample < 0:
            assert not marks.any()
            continue
        start, stop = rows.sequences.cuts[sample : sample + 2]
        expected = annotated.annotation("entity").read(start, stop).copy()
        expected[0] = min(expected[0], 1)  # a span that was cut begins again
        assert marks[0] == marks[-1] == 0
        assert np.array_equal(marks[1:-1], expected)


def test_a_span_that_is_cut_begins_again(tmp_path):
    corpus = small_corpus(tmp_path, "Aa " * 60, annotate="entity", annotator=CAPITALS)
    assert corpus.annotation("entity").read(0, 60).tolist() == [1] + [2] * 59
    rows = PackedRows(corpus, 12, candidates="entity", validation_fraction=0.0)
    marks = rows.batch(range(len(rows))).candidates.reshape(-1, 12)
    assert marks.tolist() == [[0, 1, *[2] * 9, 0]] * 6
    assert np.array_equal(rows.padded_candidates(0, 6), marks)


def test_resident_rows_carry_the_same_marks(annotated):
    rows = PackedRows(annotated, 32, candidates="phrase")
    resident = ResidentRows.of(rows, torch.device("cpu"))
    ids = torch.tensor([7, 1, 4])
    expected = rows.batch(ids.numpy(), pad=True)
    assert resident.candidates(ids).tolist() == expected.candidates.tolist()
    assert expected.candidates.any()
    plain = ResidentRows.of(PackedRows(annotated, 32), torch.device("cpu"))
    assert plain.candidates(ids) is None
    tokens, *_ = plain.batch(ids, 60)
    assert tokens.tolist() == expected.tokens.tolist()


def test_annotation_is_part_of_what_was_asked(annotated, tmp_path):
    settings = {"vocab_size": 400, "shard_tokens": 4000}
    inputs = [str(annotated.path.parent / "in" / "text.txt")]
    with pytest.raises(ConfigError, match="annotate: 'both' there, None asked"):
        prepare(PrepareConfig(inputs, str(annotated.path), **settings))
    assert json.loads((annotated.path / "corpus.json").read_text())["annotations"]
    file = annotated.path / "tokens" / "00001.ds.phrase"
    kept = file.read_bytes()
    write(file, kept[:-1])
    with pytest.raises(DataError, match="00001.ds.phrase: .* bytes where"):
        Corpus.open(annotated.path)
    write(file, kept)
