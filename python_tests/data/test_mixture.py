"""Several corpora with weights: shares, visits, masks' sample ids, and what is refused."""

import numpy as np
import pytest
from corpora import PROSE, small_corpus
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.data import Corpus, PackedRows, batch_of_step, open_corpus, open_rows
from spanbert_ext.data.corpus_choice import ChosenCorpus, parse_corpora
from spanbert_ext.data.mixture import MixtureOrder, interleave
from spanbert_ext.errors import ConfigError, DataError

LENGTH = 32


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("large"), PROSE[:60_000], validation_fraction=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory, large):
    """Under twenty documents, so that its last sequences are held out."""
    words = {"tokenizer": str(large.tokenizer_dir), "validation_fraction": 0.2}
    return small_corpus(tmp_path_factory.mktemp("small"), PROSE[-9_000:-7_000], **words)


@pytest.fixture(scope="module")
def mixed(large, small):
    return open_corpus(f"{large.path}=2,{small.path}=1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("books", [("books", 1)]),
        ("books=3,news=1", [("books", 3), ("news", 1)]),
        ("books=6, news=2", [("books", 3), ("news", 1)]),
        ("a=0.5,b=.25,c=1.", [("a", 2), ("b", 1), ("c", 4)]),
        ("a,b=3,/data/lang=en/c=1", [("a,b", 3), ("/data/lang=en/c", 1)]),
        ("/data/shard=3", [("/data/shard=3", 1)]),
        ("x=3,y=4/", [("x=3,y=4/", 1)]),
        ("x=3,y", [("x=3,y", 1)]),
        ("x=-1,y=2", [("x=-1,y=2", 1)]),
    ],
)
def test_what_the_setting_names(text, expected):
    assert parse_corpora(text) == tuple(ChosenCorpus(*member) for member in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1,b=0", "b has weight 0"),
        ("a=1,b=2,a=3", "a is named twice"),
        ("a=1,b=0.00000123", "round them"),
    ],
)
def test_impossible_weights(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_corpora(text)


def test_misspelt_mixtures_are_explained(large):
    with pytest.raises(ConfigError, match="DIRECTORY=WEIGHT,DIRECTORY=WEIGHT"):
        open_corpus(f"{large.path}=3,{large.path}")
    with pytest.raises(DataError, match="no corpus here"):
        open_corpus("nowhere")


def test_one_directory_stays_as_it_is(large):
    corpus = open_corpus(str(large.path))
    assert type(corpus) is Corpus
    rows = open_rows(corpus, LENGTH, "train", 4)
    assert type(rows) is PackedRows
    order = rows.order(4, seed=3)
    for step in (0, 1, 500):
        epoch, ids = batch_of_step(step, 4, len(rows), 3)
        assert order.of_step(step)[0] == epoch
        assert np.array_equal(order.of_step(step)[1], ids)


def test_the_order_of_one_member_is_that_of_one_corpus():
    order = MixtureOrder([24], [1], batch_rows=6, seed=5)
    for step in range(12):
        epoch, ids = batch_of_step(step, 6, 24, 5)
        assert order.of_step(step)[0] == epoch
        assert np.array_equal(order.of_step(step)[1], ids + 24 * epoch)


def test_interleave_literal():
    members, ranks = interleave([3, 1])
    assert members.tolist() == [0, 0, 1, 0]
    assert ranks.tolist() == [0, 1, 0, 2]


MIXTURES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=5)


@given(MIXTURES, st.integers(0, 2**63 - 1), st.data())
def test_shares_and_visits(parts, seed, data):
    """Exact shares over every period; all rows of a member before any again; a function of the
    step alone; whole epochs as single steps."""
    sizes, weights = zip(*parts, strict=True)
    total, period = sum(sizes), sum(weights)
    batch_rows = data.draw(st.integers(1, total))
    order = MixtureOrder(sizes, weights, batch_rows, seed)
    steps = -(-3 * max(period, total) // batch_rows)
    seen = np.concatenate([order.of_step(step)[1] for step in range(steps)])
    again = MixtureOrder(sizes, weights, batch_rows, seed).of_step(steps - 1)[1]
    assert np.array_equal(again, seen[-batch_rows:])
    epoch = order.of_epoch(1)
    first = order.steps_per_epoch * batch_rows
    assert np.array_equal(epoch, order._at(first, epoch.size))
    assert np.unique(seen).size == seen.size
    member = np.searchsorted(np.cumsum(sizes), seen % total, side="right")
    stood = np.cumsum(np.eye(len(sizes), dtype=np.int64)[member], axis=0)
    assert stood[period - 1].tolist() == list(weights)
    assert (stood[period:] - stood[:-period] == weights).all()
    for number, size in enumerate(sizes):
        own = seen[member == number]
        assert (own // total == np.arange(own.size) // size).all()


def test_members_of_equal_size_are_drawn_apart():
    order = MixtureOrder([40, 40], [1, 1], batch_rows=80, seed=0)
    ids = order.of_step(0)[1]
    assert not np.array_equal(ids[ids < 40], ids[ids >= 40] - 40)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_are_the_members(large, small, mixed, split):
    """Row by row the members' own, sequences numbered on."""
    rows = open_rows(mixed, LENGTH, split, 4)
    own = [PackedRows(corpus, LENGTH, split) for corpus in (large, small)]
    assert len(rows) == sum(map(len, own))
    assert rows.num_tokens == sum(r.num_tokens for r in own)
    first = 0
    for part, shift in zip(own, (0, len(own[0].sequences)), strict=True):
        for row in range(len(part)):
            found, expected = rows.batch([first + row]), part.batch([row])
            assert np.array_equal(found.tokens, expected.tokens)
            assert np.array_equal(found.cu_seqlens, expected.cu_seqlens)
            assert np.array_equal(found.sample_ids, expected.sample_ids + shift)
        first += len(part)


def test_every_visit_has_sample_ids_of_its_own(mixed):
    rows = open_rows(mixed, LENGTH, "train", 4)
    size, samples = len(rows), len(rows.sequences)
    ids = np.array([3, size + 3, 7 * size + 1, size - 1])
    for pad in (False, True):
        found, base = rows.batch(ids, pad), rows.batch(np.array([3]), pad)
        count = int((base.sample_ids >= 0).sum())
        real = found.sample_ids[found.sample_ids >= 0]
        assert np.unique(real).size == real.size
        assert np.array_equal(real[count : 2 * count], real[:count] + samples)
        assert ((found.sample_ids == -1).sum() > 0) == pad
    assert np.array_equal(found.tokens[:LENGTH], found.tokens[LENGTH : 2 * LENGTH])
    assert rows.row_tokens(ids)[0] == rows.row_tokens(ids)[1]
    with pytest.raises(ValueError, match="named twice"):
        rows.batch([3, 3])
    with pytest.raises(IndexError, match="got -1"):
        rows.batch([-1])


@pytest.mark.parametrize(("weight", "visits"), [(1, 3), (50, 8)])
def test_padded_steps_fit_their_capacity(large, tmp_path, weight, visits):
    """Also where the rows with the most sequences are seen several times in a step."""
    words = {"tokenizer": str(large.tokenizer_dir), "validation_fraction": 0.0}
    crumbs = small_corpus(tmp_path, "a word\n\n" * 20, **words)
    rows = open_rows(open_corpus(f"{large.path}=2,{crumbs.path}={weight}"), LENGTH, "train", 30)
    order, most = rows.order(30, seed=1), 0
    for step in range(20):
        ids = order.of_step(step)[1]
        for part in (ids, ids[::3], ids[5:9]):
            found = rows.batch(part, pad=True)
            assert found.cu_seqlens.size == rows.max_sequences(part.size) + 1
            assert found.tokens.size == part.size * LENGTH
        most = max(most, np.bincount(ids % len(rows)).max())
    assert most == visits


def test_a_selection_of_held_out_rows_holds_every_member(mixed, large, small):
    rows = open_rows(mixed, LENGTH, "validation", 4)
    sizes = [len(PackedRows(corpus, LENGTH, "validation")) for corpus in (large, small)]
    assert sorted(rows.selection(len(rows))) == list(range(len(rows)))
    half = rows.selection(len(rows) // 2)
    assert abs(int((half >= sizes[0]).sum()) - sizes[1] / 2) <= 1


def test_fingerprint_names_members_and_weights(large, small, mixed):
    assert mixed.fingerprint == f"2 * {large.fingerprint} + 1 * {small.fingerprint}"
    same = open_corpus(f"{large.path}=1.0,{small.path}=0.5")
    assert same.fingerprint == mixed.fingerprint
    assert mixed.num_tokens == large.num_tokens + small.num_tokens
    assert mixed.num_documents == large.num_documents + small.num_documents
    mixed.verify()
    assert mixed.summary().count(" pieces (") == 2


def test_another_tokenizer_is_refused(large, tmp_path):
    other = small_corpus(tmp_path, PROSE[:20_000], vocab_size=300)
    with pytest.raises(ConfigError) as caught:
        open_corpus(f"{large.path}=1,{other.path}=1")
    assert str(large.path) in str(caught.value) and str(other.path) in str(caught.value)


def test_a_member_without_training_rows_is_refused(large, mixed, monkeypatch):
    monkeypatch.setattr("spanbert_ext.data.mixture.held_out_sequences", lambda s, *_: s.lengths > 0)
    with pytest.raises(DataError, match="nothing to train on"):
        open_rows(mixed, LENGTH, "train", 4)
