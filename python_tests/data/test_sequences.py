"""Cutting documents: the sequences are the corpus, and they end where they should."""

import numpy as np
import pytest
from corpora import byte_level_bpe, small_corpus, write
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from spanbert_ext.data import PrepareConfig, VocabularyInfo, prepare
from spanbert_ext.data.sequences import (
    CLOSES,
    ENDS_SENTENCE,
    STARTS_WORD,
    cut_corpus,
    inner_cuts,
    next_cut,
    piece_classes,
)

# One letter a piece: w word start, c continuation, . sentence end, ) closing mark.
LETTERS = {
    "w": STARTS_WORD,
    "c": 0,
    ".": STARTS_WORD | ENDS_SENTENCE,
    ")": STARTS_WORD | CLOSES,
}


def classes_of(letters):
    return np.array([LETTERS[letter] for letter in letters], dtype=np.uint8)


@pytest.mark.parametrize(
    ("window", "cut"),
    [
        ("wwwww.ww w", 6),  # behind the sentence end
        ("ww.www.ww w", 7),  # behind the latest one
        ("wwwww.)ww w", 7),  # the closing mark belongs to the sentence
        ("wwww.))ww w", 7),
        ("wwwwwww.) )", 9),  # the mark beyond the window cannot be taken: cut at a word instead
        ("wwwwwwww. w", 9),  # the sentence fills the window
        ("wwwwwwww. c", 8),  # no sentence end before a continuation ("3.x")
        ("www.wwwww w", 9),  # in the first half: the latest word start instead
        ("wwww.wwww w", 5),  # exactly half
        ("wwwwwcccc c", 4),  # the latest word start
        ("wcccccccc c", 9),  # hard cut
        ("wcccccccc w", 9),
        ("w c", 1),
    ],
)
def test_next_cut(window, cut):
    assert (
        next_cut(classes_of(window.replace(" ", ""))) == cut
    )  # the last piece is beyond the window


@given(st.text(alphabet="wwwcc.)", max_size=300), st.integers(1, 40))
def test_cuts_partition_the_document(letters, max_pieces):
    classes = classes_of(letters)
    tokens = np.arange(len(letters))
    cuts = [0, *inner_cuts(tokens, classes, max_pieces), len(letters)]
    lengths = np.diff(cuts)
    assert lengths.max() <= max_pieces
    assert letters == "" or lengths.min() >= 1
    for cut in cuts[1:-1]:
        begin = cuts[cuts.index(cut) - 1]
        hard = cut - begin == max_pieces and "c" * max_pieces == letters[begin + 1 : cut + 1]
        assert letters[cut] != "c" or hard


def test_piece_classes_of_wordpiece():
    pieces = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "##b",
        ".",
        "?",
        '"',
        ")",
        "(",
        "##.",
        "...",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    info = VocabularyInfo.from_tokenizer(Tokenizer(models.WordPiece(vocab, unk_token="a")))
    start, end, close = STARTS_WORD, ENDS_SENTENCE, CLOSES
    expected = [start] * 5 + [0, start | end, start | end, start | close, start | close, start]
    assert piece_classes(info).tolist() == [*expected, end, start | end]


def test_opening_marks_of_byte_level_bpe_do_not_close():
    tokenizer = byte_level_bpe(' "Yes." "No." ”' * 40)
    info = VocabularyInfo.from_tokenizer(tokenizer)
    classes, ids = piece_classes(info), tokenizer.get_vocab()
    assert classes[ids['"']] == CLOSES
    assert classes[ids['Ġ"']] == STARTS_WORD
    assert classes[ids["."]] == ENDS_SENTENCE


@pytest.mark.parametrize("max_pieces", [1, 7, 126, 510, 10**6])
def test_sequences_are_the_corpus(corpus, max_pieces):
    index = cut_corpus(corpus, max_pieces)
    assert index.cuts[0] == 0
    assert index.cuts[-1] == corpus.num_tokens
    assert index.lengths.min() >= 1
    assert index.lengths.max() <= max_pieces
    joined = [[] for _ in range(corpus.num_documents)]
    for document, start, stop in zip(index.documents, index.cuts[:-1], index.cuts[1:], strict=True):
        joined[document].append(corpus.read(start, stop))
    for document, parts in enumerate(joined):
        assert np.array_equal(np.concatenate(parts), corpus.documents[document])


def test_last_document_and_long_sentence_survive(tmp_path):
    # Both are lost by the code that the paper was made with.
    corpus = small_corpus(
        tmp_path, "word " * 700 + "end .\n\nlast one without a blank line", vocab_size=64
    )
    assert corpus.num_documents == 2
    index = cut_corpus(corpus, 510)
    assert index.documents.tolist() == [*[0] * (len(index) - 1), 1]
    assert index.cuts[-1] == corpus.num_tokens


def test_sequences_across_several_files(tmp_path):
    source = write(tmp_path / "t.txt", "\n\n".join(f"number {i} . and more" for i in range(60)))
    one = prepare(PrepareConfig([str(source)], str(tmp_path / "one"), vocab_size=100))
    many = prepare(
        PrepareConfig([str(source)], str(tmp_path / "many"), vocab_size=100, shard_tokens=50)
    )
    assert len(one.shards) == 1
    assert len(many.shards) > 5
    a, b = cut_corpus(one, 5), cut_corpus(many, 5)
    assert np.array_equal(a.cuts, b.cuts)
    for start, stop in zip(a.cuts[:-1], a.cuts[1:], strict=True):
        assert np.array_equal(one.read(start, stop), many.read(start, stop))
    with pytest.raises(IndexError):
        many.read(0, many.num_tokens)
