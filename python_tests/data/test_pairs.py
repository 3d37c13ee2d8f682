"""Pairs: what a segment may hold, where a random one comes from, and that no text is lost."""

import random

import numpy as np
import pytest
from corpora import small_corpus
from test_sequences import classes_of

from spanbert_ext.data import Corpus, PackedRows, PairedRows
from spanbert_ext.data.sequences import ENDS_SENTENCE, piece_classes, sentence_cuts
from spanbert_ext.errors import DataError

NAMES = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]


def document(draw, sentences: int) -> str:
    """Sentences of 3 to 12 words."""
    return " ".join(
        " ".join(draw.choices(NAMES, k=draw.randint(3, 12))) + "." for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Corpus:
    """40 documents of 200 sentences, about 68 thousand pieces."""
    draw = random.Random(0)
    text = "\n\n".join(document(draw, 200) for _ in range(40))
    return small_corpus(tmp_path_factory.mktemp("books"), text, vocab_size=120)


@pytest.fixture(scope="module")
def paragraphs(tmp_path_factory) -> Corpus:
    """300 documents of 1 to 5 sentences."""
    draw = random.Random(1)
    text = "\n\n".join(document(draw, draw.randint(1, 5)) for _ in range(300))
    return small_corpus(tmp_path_factory.mktemp("paragraphs"), text, vocab_size=120)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Corpus:
    """4 documents of 3000 sentences of four pieces."""
    text = "\n\n".join(" ".join(["ba be bi."] * 3000) for _ in range(4))
    corpus = small_corpus(tmp_path_factory.mktemp("even"), text, vocab_size=64)
    assert corpus.num_tokens == 48_000
    return corpus


def bounds(rows: PairedRows):
    """([N] A begins, ends, B begins, ends) as positions."""
    starts, stops = rows.pairs.starts, rows.pairs.starts + rows.pairs.lengths
    return starts[:, 0], stops[:, 0], starts[:, 1], stops[:, 1]


def document_of(corpus, positions):
    return np.searchsorted(corpus.document_ends, positions, side="right")


@pytest.mark.parametrize(
    ("window", "cuts"),
    [
        ("ww.ww.w", [3, 6]),
        ("ww.)ww", [4]),
        ("ww.))", []),  # whether a word follows is not known
        ("ww.cw.", []),
        ("w..w", [2, 3]),
        ("", []),
    ],
)
def test_sentence_cuts(window, cuts):
    assert sentence_cuts(classes_of(window)).tolist() == cuts


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("short_prob", [0.0, 0.3])
@pytest.mark.parametrize("max_length", [24, 64, 512])
@pytest.mark.parametrize("which", ["books", "paragraphs"])
def test_every_piece_is_used_once_and_pairs_are_what_they_say(
    which, max_length, short_prob, split, request
):
    corpus = request.getfixturevalue(which)
    rows = PairedRows(corpus, max_length, split, 0.2, short_prob=short_prob)
    begin, end, second, last = bounds(rows)
    is_random = rows.pairs.labels == 1
    assert (rows.pairs.lengths >= 1).all()
    assert rows.pairs.lengths.sum(1).max() <= max_length - 3
    # A goes on in B exactly where it says so, and what A and true B take is each document, once.
    assert np.array_equal(second[~is_random], end[~is_random])
    single = PackedRows(corpus, max_length, split, 0.2)
    used = np.zeros(corpus.num_tokens, dtype=np.int64)
    for a, b in zip(begin, np.where(is_random, end, last), strict=True):
        used[a:b] += 1
    assert used.sum() == single.num_tokens
    cuts, ids = single.sequences.cuts, single._sample_ids
    assert all((used[cuts[i] : cuts[i + 1]] == 1).all() for i in ids)
    # No segment leaves its document, and a random one is in another document of the same part.
    for a, b in ((begin, end), (second, last)):
        assert np.array_equal(document_of(corpus, a), document_of(corpus, b - 1))
    own, other = document_of(corpus, begin), document_of(corpus, second)
    assert np.array_equal(own == other, ~is_random)
    assert set(other) <= set(own)


def within(count, trials, probability, sigmas=5.0):
    """Whether a count is as likely as a false alarm of less than 1e-6 allows."""
    return abs(count - trials * probability) <= sigmas * np.sqrt(
        trials * probability * (1 - probability)
    )


def test_half_of_the_second_segments_are_random(even):
    rows = PairedRows(even, 11, "train", 0.0)  # two sentences: always one place to divide at
    begin, end, _, _ = bounds(rows)
    # A chunk of one sentence at the end of a document leaves no choice.
    free = ~np.isin(end, even.document_ends)
    assert free.sum() > 7000
    assert within(rows.pairs.labels[free].sum(), free.sum(), 0.5)


def test_every_other_document_is_drawn_alike_the_last_one_too(books):
    rows = PairedRows(books, 24, "train", 0.0)
    chosen = rows.pairs.labels == 1
    own = document_of(books, rows.pairs.starts[chosen, 0])
    other = document_of(books, rows.pairs.starts[chosen, 1])
    drawn = np.bincount(other, minlength=books.num_documents)
    # A document is never drawn for itself; the documents are about equally long.
    expected = (own.size - np.bincount(own, minlength=drawn.size)) / (drawn.size - 1)
    assert within(drawn, np.full(drawn.size, own.size), expected / own.size).all()
    assert own.size > 1000


def test_sentences_stay_whole(books):
    classes = piece_classes(books.vocabulary)
    rows = PairedRows(books, 128, "train", 0.0)
    begin, end, second, last = bounds(rows)
    is_random = rows.pairs.labels == 1
    whole = [classes[books.gather(stops - 1)] & ENDS_SENTENCE > 0 for stops in (end, last)]
    assert whole[0].all() and whole[1][~is_random].all()
    assert whole[1][is_random].mean() > 0.99  # few sentences fit into a room of a few pieces
    starts = np.concatenate([begin, second])
    inner = starts[~np.isin(starts, [0, *books.document_ends])]
    assert (classes[books.gather(inner - 1)] & ENDS_SENTENCE > 0).all()
    # Neither the end nor the length of a segment gives the label away.
    by_label = [rows.pairs.lengths[rows.pairs.labels == label].mean(0) for label in (0, 1)]
    assert np.abs(by_label[0] / by_label[1] - 1).max() < 0.1


def test_the_first_segment_ends_at_any_sentence_end_alike(even):
    rows = PairedRows(even, 43, "train", 0.0)  # ten sentences
    begin = rows.pairs.starts[:, 0] % 12_000
    whole = begin + 40 <= 12_000
    counts = np.bincount(rows.pairs.lengths[whole, 0] // 4, minlength=11)
    assert counts[0] == counts[10] == 0
    assert within(counts[1:10], whole.sum(), 1 / 9).all()
    true = whole & (rows.pairs.labels == 0)
    assert (rows.pairs.lengths[true].sum(1) == 40).all()


def test_text_without_sentences_is_divided_at_words(tmp_path):
    draw = random.Random(2)
    text = "\n\n".join(" ".join(draw.choices(NAMES, k=1000)) for _ in range(3))
    corpus = small_corpus(tmp_path, text, vocab_size=50)
    assert corpus.num_tokens > 4000  # of 3000 words
    rows = PairedRows(corpus, 32, "train", 0.0)
    begin, end, second, last = bounds(rows)
    starts = corpus.vocabulary.word_starts[corpus.gather(np.concatenate([begin, second]))]
    assert starts.all()
    assert within(rows.pairs.labels.sum(), len(rows.pairs), 0.5)


def test_short_pairs(books):
    sizes = {}
    for short_prob in (0.0, 0.25, 1.0):
        pairs = PairedRows(books, 131, "train", 0.0, short_prob=short_prob).pairs
        sizes[short_prob] = pairs.lengths.sum(1)
    # A sentence has four pieces at least and 39 at most.
    assert (sizes[0.0] < 80).mean() < 0.05  # ends of documents
    assert 0.1 < (sizes[0.25] < 80).mean() < 0.35
    assert 0.55 < (sizes[1.0] < 80).mean() < 0.8
    packed = PairedRows(books, 131, "train", 0.0, short_prob=1.0)
    rows = np.arange(len(packed))
    assert packed.row_tokens(rows).sum() > 0.95 * 131 * len(packed)
    assert len(packed) < packed.num_sequences


def test_pairs_do_not_change(books):
    a, b = (PairedRows(books, 64, "train", 0.2, short_prob=0.1) for _ in range(2))
    for name in ("starts", "lengths", "labels"):
        assert np.array_equal(getattr(a.pairs, name), getattr(b.pairs, name))
    assert np.array_equal(a.batch([3, 1]).tokens, b.batch([3, 1]).tokens)


@pytest.mark.parametrize("pad", [False, True])
def test_a_batch_is_its_pairs(paragraphs, pad):
    rows, info = PairedRows(paragraphs, 64), paragraphs.vocabulary
    ids = np.arange(0, len(rows), 3)
    batch = rows.batch(ids, pad)
    single = PackedRows.batch(rows, ids, pad)
    assert np.array_equal(batch.tokens, single.tokens)
    begin, end, second, last = bounds(rows)
    count = batch.sample_ids.size
    assert batch.segment_ids.shape == (2 * count,) == (batch.segment_cu_seqlens.size - 1,)
    assert batch.nsp_labels.shape == (count,)
    assert batch.token_type_ids.shape == batch.tokens.shape
    found = 0
    for n, sample in enumerate(batch.sample_ids.tolist()):
        start, stop = batch.cu_seqlens[n], batch.cu_seqlens[n + 1]
        borders = batch.segment_cu_seqlens[2 * n : 2 * n + 3].tolist()
        assert (borders[0], borders[2]) == (start, stop)
        if sample < 0:
            assert pad and borders[1] == stop and batch.nsp_labels[n] == -100
            assert batch.segment_ids[2 * n : 2 * n + 2].tolist() == [-1, -1]
            assert (batch.tokens[start:stop] == info.pad_id).all()
            continue
        a, b = (
            paragraphs.read(int(x[sample]), int(y[sample])).tolist()
            for x, y in ((begin, end), (second, last))
        )
        shown = [info.cls_id, *a, info.sep_id, *b, info.sep_id]
        assert batch.tokens[start:stop].tolist() == shown
        assert borders[1] - start == len(a) + 2
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert batch.token_type_ids[start:stop].tolist() == types
        assert batch.nsp_labels[n] == rows.pairs.labels[sample]
        assert batch.segment_ids[2 * n : 2 * n + 2].tolist() == [2 * sample, 2 * sample + 1]
        found += len(shown)
    assert found == rows.row_tokens(ids).sum()
    if pad:
        assert batch.tokens.size == 64 * ids.size
        assert count == rows.max_sequences(ids.size)
    assert batch.candidates is None
    for name, array in vars(batch).items():
        assert array is None or array.dtype == np.int64, name


def test_each_segment_carries_its_candidates(tmp_path):
    annotator = {"annotate": "entity", "annotator": "test_candidates:capitals"}
    corpus = small_corpus(tmp_path, **annotator)
    rows = PairedRows(corpus, 48, candidates="entity")
    marks = corpus.annotation("entity")
    batch = rows.batch(np.arange(len(rows)))
    begin, end, second, last = bounds(rows)
    again = 0
    for n, sample in enumerate(batch.sample_ids.tolist()):
        parts = [marks.read(int(begin[sample]), int(end[sample])).copy()]
        parts.append(marks.read(int(second[sample]), int(last[sample])).copy())
        again += sum(int(part[0] == 2) for part in parts)
        for part in parts:
            part[0] = min(part[0], 1)  # a span that was cut begins again
        shown = batch.candidates[batch.cu_seqlens[n] : batch.cu_seqlens[n + 1]].tolist()
        assert shown == [0, *parts[0], 0, *parts[1], 0]
    assert batch.candidates.any() and again


def test_counts_are_of_pairs(paragraphs):
    rows = PairedRows(paragraphs, 64)
    batch = rows.batch(np.arange(len(rows)))
    assert rows.num_sequences == batch.sample_ids.size == len(rows.pairs)
    assert rows.num_tokens == batch.tokens.size - 3 * rows.num_sequences
    assert np.array_equal(np.sort(batch.sample_ids), np.arange(rows.num_sequences))


def test_few_documents_hold_out_their_last_text(tmp_path):
    draw = random.Random(3)
    text = "\n\n".join(document(draw, 100) for _ in range(2))
    corpus = small_corpus(tmp_path, text, vocab_size=120)
    train, held_out = (PairedRows(corpus, 64, split, 0.1) for split in ("train", "validation"))
    limit = held_out.pairs.starts[:, 0].min()
    assert bounds(train)[1].max() == limit and bounds(train)[3].max() <= limit
    # The held-out text is of the second document alone: random segments come from training.
    assert (document_of(corpus, held_out.pairs.starts[:, 0]) == 1).all()
    labels = held_out.pairs.labels
    assert labels.any()
    assert (held_out.pairs.starts[labels == 1, 1] < corpus.document_ends[0]).all()
    assert len(PairedRows(corpus, 64, "validation", 0.0)) == 0


def test_bad_arguments_are_refused(tmp_path, books):
    one = small_corpus(tmp_path, document(random.Random(4), 50), vocab_size=120)
    with pytest.raises(DataError, match="the train text is one document.*batch.pairs false"):
        PairedRows(one, 64)
    with pytest.raises(ValueError, match="max_length must be at least 5; got 4"):
        PairedRows(books, 4)
    with pytest.raises(ValueError, match="short_prob must lie in"):
        PairedRows(books, 64, short_prob=1.5)
