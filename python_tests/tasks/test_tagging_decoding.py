"""The best allowed sequence of labels, against all of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.tasks.tagging.decode import Transitions
from spanbert_ext.tasks.tagging.schemes import fault_in, label_names, parse_tag


def model(types, scheme):
    tags = [parse_tag(label) for label in label_names(types, scheme)]
    return tags, Transitions(tags, scheme)


@given(
    st.sampled_from([("bio", "XY", 5), ("bilou", "X", 5), ("bilou", "XY", 3)]),
    st.data(),
    st.booleans(),
)
def test_the_best_path_against_every_path(case, data, tied):
    scheme, types, most = case
    tags, transitions = model(types, scheme)
    words = data.draw(st.integers(1, most))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    logits = rng.integers(0, 3, (words, len(tags))) if tied else rng.normal(size=(words, len(tags)))
    scores = logits.astype(np.float32)
    path = transitions.best_path(scores)
    assert path.shape == (words,) and path.dtype == np.int64
    assert fault_in([tags[label] for label in path], scheme) is None

    def total(labels):
        return sum(float(scores[n, label]) for n, label in enumerate(labels))

    best = max(
        total(labels)
        for labels in itertools.product(range(len(tags)), repeat=words)
        if fault_in([tags[label] for label in labels], scheme) is None
    )
    assert total(path) == pytest.approx(best, abs=1e-6)


def test_by_hand():
    """I-X is best for both words; B-X I-X is allowed and beats O O."""
    _, transitions = model("X", "bio")  # O, B-X, I-X
    scores = np.log(np.array([[0.3, 0.2, 0.5], [0.2, 0.1, 0.7]]))
    assert transitions.best_path(scores).tolist() == [1, 2]  # 0.2 * 0.7 > 0.3 * 0.2
    scores = np.log(np.array([[0.45, 0.05, 0.5], [0.4, 0.1, 0.5]]))
    assert transitions.best_path(scores).tolist() == [0, 0]  # 0.45 * 0.4 > 0.05 * 0.5
    assert transitions.best_path(np.zeros((0, 3))).tolist() == []


def test_a_model_needs_the_outside():
    with pytest.raises(ValueError, match="label O"):
        Transitions([parse_tag("B-X"), parse_tag("I-X")], "bio")
