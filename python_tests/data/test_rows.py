"""Rows: every sequence once, with [CLS] and [SEP], in fixed shapes where asked."""

import numpy as np
import pytest
from corpora import small_corpus

from spanbert_ext.data import PackedRows, batch_of_step


def sequences_of(batch):
    """{sample id: ids} of a batch, without padding."""
    bounds = zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    parts = [batch.tokens[a:b] for a, b in bounds]
    return {i: part for i, part in zip(batch.sample_ids.tolist(), parts, strict=True) if i >= 0}


@pytest.mark.parametrize("max_length", [3, 16, 128, 512])
def test_both_parts_together_are_the_corpus(corpus, max_length):
    info = corpus.vocabulary
    found = {}
    for split in ("train", "validation"):
        rows = PackedRows(corpus, max_length, split, validation_fraction=0.1)
        assert len(rows) > 0
        batch = rows.batch(np.arange(len(rows)))
        own = sequences_of(batch)
        assert len(own) == rows.num_sequences == batch.sample_ids.size
        assert batch.tokens.size == rows.num_tokens + 2 * rows.num_sequences
        assert not found.keys() & own.keys()
        found |= own
    cuts = rows.sequences.cuts
    assert sorted(found) == list(range(cuts.size - 1))
    for i, ids in found.items():
        assert ids[0] == info.cls_id
        assert ids[-1] == info.sep_id
        assert np.array_equal(ids[1:-1], corpus.read(int(cuts[i]), int(cuts[i + 1])))


def test_whole_documents_are_held_out(corpus):
    assert corpus.num_documents >= 20
    train = PackedRows(corpus, 64, "train", 0.2)
    validation = PackedRows(corpus, 64, "validation", 0.2)
    documents = train.sequences.documents
    own = [
        set(documents[list(sequences_of(r.batch(np.arange(len(r)))))]) for r in (train, validation)
    ]
    assert not own[0] & own[1]
    assert len(own[1]) == round(0.2 * corpus.num_documents)


def test_few_documents_give_their_last_sequences(tmp_path):
    corpus = small_corpus(tmp_path, "one word after another . " * 200, vocab_size=64)
    validation = PackedRows(corpus, 32, "validation", 0.1)
    total = len(validation.sequences)
    count = round(0.1 * total)
    batch = validation.batch(np.arange(len(validation)))
    assert sorted(batch.sample_ids) == list(range(total - count, total))
    assert PackedRows(corpus, 32, "train", 0.1).num_sequences == total - count
    assert len(PackedRows(corpus, 32, "validation", 0.0)) == 0


def test_one_sequence_is_for_training(tmp_path):
    corpus = small_corpus(tmp_path, "alone", vocab_size=64)
    assert len(PackedRows(corpus, 32, "train")) == 1
    validation = PackedRows(corpus, 32, "validation")
    assert len(validation) == 0
    assert validation.max_sequences(0) == 0


@pytest.mark.parametrize("max_length", [16, 128])
def test_padded_batches_have_fixed_shapes(corpus, max_length):
    rows = PackedRows(corpus, max_length)
    rng = np.random.default_rng(0)
    size = min(5, len(rows))
    for _ in range(20):
        ids = rng.choice(len(rows), size, replace=False)
        plain, padded = rows.batch(ids), rows.batch(ids, pad=True)
        assert padded.tokens.shape == (size * max_length,)
        assert padded.sample_ids.shape == (rows.max_sequences(size),)
        assert padded.cu_seqlens.shape == (rows.max_sequences(size) + 1,)
        assert padded.cu_seqlens[0] == 0
        assert padded.cu_seqlens[-1] == padded.tokens.size
        assert (np.diff(padded.cu_seqlens) >= 0).all()
        a, b = sequences_of(plain), sequences_of(padded)
        assert list(a) == list(b)
        assert all(np.array_equal(a[i], b[i]) for i in a)
        assert (
            padded.tokens == corpus.vocabulary.pad_id
        ).sum() == size * max_length - plain.tokens.size
        # Every row begins at a multiple of its length.
        assert np.isin(np.arange(size) * max_length, padded.cu_seqlens).all()
        for batch in (plain, padded):
            for array in (batch.tokens, batch.cu_seqlens, batch.sample_ids):
                assert array.dtype == np.int64


def test_the_bound_on_sequences_is_reached(corpus):
    rows = PackedRows(corpus, 128)
    padded = rows.batch(np.arange(len(rows)), pad=True)
    assert (padded.sample_ids >= -1).all()
    assert np.diff(padded.cu_seqlens).min() > 0  # all rows at once leave no slot unused


def test_rows_are_the_same_every_time(corpus):
    a, b = PackedRows(corpus, 64), PackedRows(corpus, 64)
    _, ids = batch_of_step(3, 4, len(a), seed=1)
    assert np.array_equal(a.batch(ids).tokens, b.batch(ids).tokens)


def test_bad_arguments_are_refused(corpus):
    rows = PackedRows(corpus, 64)
    with pytest.raises(IndexError, match="row_ids must lie"):
        rows.batch([len(rows)])
    with pytest.raises(TypeError, match="integers"):
        rows.batch([0.5])
    with pytest.raises(ValueError, match="named twice"):
        rows.batch([1, 1])
    with pytest.raises(ValueError, match="max_length"):
        PackedRows(corpus, 2)
    with pytest.raises(ValueError, match="split"):
        PackedRows(corpus, 64, "test")
    with pytest.raises(ValueError, match="validation_fraction"):
        PackedRows(corpus, 64, "train", 0.6)
    with pytest.raises(ValueError, match="batch_rows"):
        rows.max_sequences(len(rows) + 1)
    assert rows.batch([]).cu_seqlens.tolist() == [0]
