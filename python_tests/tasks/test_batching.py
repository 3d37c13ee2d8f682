"""Packing features and the order of training."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.batching import MULTIPLE, TrainingOrder, by_tokens, pack
from spanbert_ext.tasks.task import Feature


def feature(example, length, head, labelled=True):
    rows = np.arange(1, length, 2)
    labels = {
        "question-answering": np.array([1, length - 1]),
        "token-classification": np.arange(len(rows)),
        "sequence-classification": np.array(example),
    }[head]
    return Feature(
        example,
        np.arange(length) + 100 * example,
        rows=rows if head == "token-classification" else None,
        labels=labels if labelled else None,
    )


def test_a_stream_by_hand():
    batch = pack(
        [feature(1, 3, "token-classification"), feature(2, 4, "token-classification")],
        "token-classification",
        pad_id=9,
    )
    assert batch.input_ids[:8].tolist() == [100, 101, 102, 200, 201, 202, 203, 9]
    assert batch.input_ids.shape[0] == MULTIPLE and batch.max_seqlen == 4
    assert batch.cu_seqlens[:3].tolist() == [0, 3, 7] and batch.cu_seqlens[-1] == MULTIPLE
    assert batch.cu_seqlens.diff().max() == 4
    assert batch.rows.tolist() == [1, 4, 6] and batch.labels.tolist() == [0, 0, 1]
    assert batch.lengths == (3, 4) and batch.counts == (1, 2) and batch.num_tokens == 7
    assert batch.token_type_ids is None


@pytest.mark.parametrize("head", ["question-answering", "sequence-classification"])
def test_padding_is_ignored(head):
    batch = pack([feature(1, 3, head)], head, pad_id=0)
    assert batch.cu_seqlens[1] == 3 and len(batch.labels) == len(batch.cu_seqlens) - 1
    assert (batch.labels[0] >= 0).all() and (batch.labels[1:] == -100).all()
    every = pack([feature(1, 3, head)], head, pad_id=0, ignored=True)
    assert (every.labels == -100).all()
    assert pack([feature(1, 3, head, labelled=False)], head, pad_id=0).labels is None


def test_a_full_stream_gets_no_padding():
    head = "sequence-classification"
    batch = pack([feature(0, MULTIPLE, head)], head, pad_id=0)
    assert batch.cu_seqlens.tolist() == [0, MULTIPLE] and batch.labels.tolist() == [0]


def test_regression_labels_are_floats():
    rows = [Feature(0, np.arange(3), labels=np.array(2.5, np.float32))]
    labels = pack(rows, "sequence-classification", pad_id=0).labels
    assert labels.dtype == torch.float32 and labels[0] == 2.5 and labels[1:].isnan().all()


def test_token_types_of_some():
    one = Feature(0, np.arange(2), token_type_ids=np.array([0, 1]))
    types = pack([one, Feature(1, np.arange(2))], "question-answering", pad_id=0).token_type_ids
    assert types[:5].tolist() == [0, 1, 0, 0, 0]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_batches_by_tokens(lengths, most):
    lengths = np.array(lengths)
    batches = list(by_tokens(range(len(lengths)), lengths, most))
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].sum() <= most
    for before, after in zip(batches, batches[1:], strict=False):
        assert lengths[before].sum() + lengths[after[0]] > most


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5)
)
def test_every_epoch_sees_every_feature_once(lengths, batch, seed):
    order = TrainingOrder(np.array(lengths), batch, seed)
    steps = order.batches_per_epoch
    for epoch in (0, 1):
        seen = [order.of_step(epoch * steps + i) for i in range(steps)]
        assert {number for number, _ in seen} == {epoch}
        assert sorted(np.concatenate([part for _, part in seen])) == list(range(len(lengths)))
        assert sorted(len(part) for _, part in seen)[1:] == [batch] * (steps - 1)


def test_order_is_a_function_of_seed_and_step():
    lengths = np.arange(1000) % 97
    one, two = (TrainingOrder(lengths, 8, 3) for _ in range(2))
    two.of_step(400)
    assert np.array_equal(one.of_step(130)[1], two.of_step(130)[1])
    other = TrainingOrder(lengths, 8, 4)
    assert not np.array_equal(one.of_step(0)[1], other.of_step(0)[1])
    assert not np.array_equal(one.of_step(0)[1], one.of_step(125)[1])


def test_batches_have_like_lengths_and_random_order():
    lengths = np.random.default_rng(0).integers(10, 500, 4096)
    order = TrainingOrder(lengths, 16, 0)
    parts = [lengths[order.of_step(i)[1]] for i in range(order.batches_per_epoch)]
    spread = np.mean([part.max() - part.min() for part in parts])
    assert spread < 40  # of a range of 490; unsorted batches of 16 spread over 430
    means = np.array([part.mean() for part in parts])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.25
