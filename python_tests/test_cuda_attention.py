"""Softmax and dropout of attention scores on a GPU: masks of the CPU bit for bit, values and
gradients at most twice as far from float64 as torch's, no waiting."""

import pytest
import torch
from cuda_helpers import DTYPES, no_waiting
from strategies import assert_as_good_as_torch, randn
from test_attention_op import SEED, sequences, torch_formula, used_places, value_and_gradient

from spanbert_ext import dropout_reference as reference
from spanbert_ext._attention_op import attention_weights

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_back_end")]

# heads, Lq, Lk, queries, keys; the last one needs more shared memory than a block has by default.
SHAPES = [
    (1, 1, 1, [1], [1]),
    (3, 7, 33, [7, 5], [33, 17]),
    (2, 16, 64, [16, 9, 0], [64, 49, 1]),
    (12, 65, 512, [65], [500]),
    (1, 5, 4096, [5], [4095]),
]


def check_weights(device, dtype, heads, height, width, queries, keys, p=0.1):
    integers, shape = sequences(queries, keys), (len(queries), heads, height, width)
    scores, grad = (randn(*shape, seed=s, scale=3.0).to(dtype) for s in (1, 2))
    places, key = [x.to(device) for x in integers], SEED.to(device)
    with no_waiting(device):
        ours = value_and_gradient(
            lambda x: attention_weights(x, *places, 0.4, p, key, 7),
            scores.to(device),
            grad.to(device),
        )
    own = value_and_gradient(lambda x: torch_formula(x, integers, 0.4, p, 7), scores, grad)
    exact = value_and_gradient(
        lambda x: torch_formula(x, integers, 0.4, p, 7), scores.double(), grad
    )
    used = used_places(scores, *integers[1:])
    for name, *values in zip(("weights", "gradient"), ours, own, exact, strict=True):
        values = [x.cpu() for x in values]
        assert not values[0][~used].any()
        assert_as_good_as_torch(*(torch.where(used, x, 0) for x in values), name)
    threshold = reference.mask_threshold(p)
    expected = reference.attention_weights(scores, *integers, 0.4, threshold, SEED, 7)
    assert torch.equal(ours[0].cpu() == 0, expected == 0)


@pytest.mark.parametrize("heads, height, width, queries, keys", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_gradients_and_masks(dtype, heads, height, width, queries, keys):
    check_weights("cuda", dtype, heads, height, width, queries, keys)
