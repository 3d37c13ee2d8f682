"""Softmax and dropout of attention scores on the CPU: masks of the reference bit for bit, values
and gradients against torch's own formula with the same mask.

Every statistical bound is exceeded by a right generator with probability below 1e-6.
"""

import math

import pytest
import torch
from row_functions import attention_weights
from scipy import stats
from strategies import assert_as_good_as_torch, inside_larger_buffer, randn

from spanbert_ext.ops import attention_weights as attention_op
from spanbert_ext.ops.reference import dropout as reference

SEED = torch.tensor([-0x123456789ABCDEF])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# heads, Lq, Lk, queries, keys
SHAPES = [
    (1, 1, 1, [1], [1]),
    (2, 3, 5, [3, 0, 2], [5, 5, 0]),
    (3, 7, 33, [7, 5], [33, 17]),
    (2, 16, 64, [16, 9, 1], [64, 49, 1]),
    (4, 5, 129, [5], [128]),
    (1, 2, 2050, [2, 1], [2050, 1999]),
]


def long(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def sequences(queries, keys):
    """The integer arguments: first queries, queries and keys."""
    queries, keys = long(*queries), long(*keys)
    return queries.cumsum(0) - queries, queries, keys


def used_places(scores, queries, keys):
    rows = torch.arange(scores.shape[2]) < queries.unsqueeze(1)
    columns = torch.arange(scores.shape[3]) < keys.unsqueeze(1)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1).expand_as(scores)


def torch_formula(scores, integers, scale, p, site):
    """torch's operations in the dtype of the scores under the same mask."""
    first, queries, keys = integers
    used = used_places(scores, queries, keys)
    probs = (scores * scale).masked_fill(~used, -math.inf).softmax(-1)
    probs = torch.where(used, probs, 0)  # rows without keys are 0 / 0
    numbers = reference.attention_draw_rows(first, scores.shape[1], scores.shape[2]).flatten()
    threshold = reference.mask_threshold(p)
    factors = reference.dropout_factors(
        numbers, scores.shape[3], threshold, SEED, site, torch.float64
    )
    return (probs * factors.view(scores.shape)).to(scores.dtype)


def value_and_gradient(function, scores, grad):
    leaf = scores.detach().clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf, grad.to(value.dtype))[0]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(backend, dtype, p):
    for heads, height, width, queries, keys in SHAPES:
        integers, runs = sequences(queries, keys), []
        # A single small case is a matter of luck for torch as for us.
        for seed in range(20 if height * width < 500 else 3):
            shape = (len(queries), heads, height, width)
            scores = randn(*shape, seed=seed, scale=4.0).to(dtype)
            grad = randn(*shape, seed=seed + 100).to(dtype)

            def ours(x, integers=integers):
                return attention_weights(x, *integers, 0.37, p, SEED, 7)

            def own(x, integers=integers):
                return torch_formula(x, integers, 0.37, p, 7)

            cases = ((ours, scores), (own, scores), (own, scores.double()))
            runs.append([value_and_gradient(f, x, grad) for f, x in cases])
        for part, name in enumerate(("weights", "gradient")):
            values = [torch.cat([run[i][part] for run in runs]) for i in range(3)]
            used = used_places(scores, *integers[1:]).repeat(len(runs), 1, 1, 1)
            assert values[0].dtype == dtype
            assert not values[0][~used].any(), f"{name} outside the sequences"
            finite = [torch.where(used, x, 0) for x in values]
            assert_as_good_as_torch(*finite, f"{name} at {(heads, height, width)}")


def test_by_hand(backend):
    """Equal scores share; a difference of log 3 after scaling is odds of 3 : 1."""
    scores = torch.tensor([[[[1.0, 1.0, 9.0], [0.0, 2 * math.log(3.0), 9.0], [5.0, 5.0, 5.0]]]])
    weights = attention_weights(scores, long(0), long(2), long(2), 0.5)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(weights[0, 0], expected)
    dropped = attention_weights(scores, long(0), long(2), long(2), 0.5, 1.0, SEED)
    assert not dropped.any()
    one = attention_weights(scores[..., :1].contiguous(), long(0), long(3), long(1), 2.0)
    assert one.flatten().tolist() == [1.0, 1.0, 1.0]


def test_half_is_exactly_doubled(backend):
    scores = torch.zeros(2, 2, 4, 8)
    weights = attention_weights(scores, *sequences([4, 4], [8, 4]), 1.0, 0.5, SEED)
    assert weights[0].unique().tolist() == [0.0, 0.25]
    assert weights[1, ..., :4].unique().tolist() == [0.0, 0.5]


def test_gradient_by_hand(backend):
    """p (g - sum g p) for p = (1/4, 3/4) and g = (1, 0) is (3/16, -3/16)."""
    scores = torch.tensor([[[[0.0, math.log(3.0)]]]], requires_grad=True)
    weights = attention_weights(scores, long(0), long(1), long(2), 1.0)
    (grad,) = torch.autograd.grad(weights, scores, torch.tensor([[[[1.0, 0.0]]]]))
    torch.testing.assert_close(grad.flatten(), torch.tensor([3 / 16, -3 / 16]))


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 33, 64, 65, 200, 513])
def test_masks_are_the_references(force_backend, seed, width):
    force_backend("native")
    seed, integers = torch.tensor([seed]), (long(5, 2**40), long(3, 2), long(width, 1 + width // 2))
    for site, p in ((0, 0.1), (2**31 + 23, 0.5), (2**32 - 1, 0.9)):
        threshold = reference.mask_threshold(p)
        for dtype in DTYPES:
            scores = randn(2, 3, 3, width, dtype=dtype)
            found, signed = torch.empty_like(scores), torch.empty_like(scores)
            attention_op.run(scores, *integers, 0.5, threshold, seed, site, (found, signed))
            expected = reference.attention_weights(scores, *integers, 0.5, threshold, seed, site)
            plain = reference.attention_weights(scores, *integers, 0.5)
            assert torch.equal(found == 0, expected == 0)
            used = plain != 0
            assert torch.equal((signed < 0)[used], (expected == 0)[used])
            torch.testing.assert_close(signed.abs(), plain)


def test_draw_rows_literal():
    """Query 2 of the stream, head 1 of 3: row 2 * 3 + 1 of the draws."""
    rows = reference.attention_draw_rows(long(0, 2), 3, 2)
    assert rows.tolist() == [[[0, 3], [1, 4], [2, 5]], [[6, 9], [7, 10], [8, 11]]]
    first = attention_weights(torch.zeros(1, 1, 1, 8), *sequences([1], [8]), 1.0, 0.5, SEED, 3)
    draws = reference.dropout_draws(1, 8, SEED, 3)
    assert ((first == 0).flatten() == (draws < 32768).flatten()).all()


@pytest.mark.parametrize("p", [0.0005, 0.1, 0.5, 0.9])
def test_share_of_dropped_weights(force_backend, p):
    force_backend("native")
    scores = torch.zeros(4, 12, 128, 200)
    dropped = attention_weights(scores, *sequences([128] * 4, [200] * 4), 1.0, p, SEED, 1) == 0
    share = reference.mask_threshold(p) / reference.DRAWS
    trials = dropped.numel()
    assert stats.binomtest(int(dropped.sum()), trials, share).pvalue > 1e-6
    # No column, query or head is favoured: chi-square over their counts.
    for axes in ((0, 1, 2), (0, 1, 3), (0, 2, 3)):
        hits = dropped.sum(axes).double()
        mean = trials / len(hits) * share
        if mean > 10:
            statistic = float(((hits - mean) ** 2 / (mean * (1 - share))).sum())
            assert (
                min(stats.chi2.sf(statistic, len(hits)), stats.chi2.cdf(statistic, len(hits)))
                > 5e-7
            )


def test_padding_and_company_change_no_draw(backend):
    """A sequence alone, padded less and more, and beside another one."""
    scores = randn(1, 2, 5, 40)
    alone = attention_weights(scores, long(9), long(5), long(40), 1.0, 0.3, SEED, 4)
    wide = torch.nn.functional.pad(scores, (0, 24, 0, 3)).expand(2, 2, 8, 64).contiguous()
    both = attention_weights(wide, long(0, 9), long(8, 5), long(64, 40), 1.0, 0.3, SEED, 4)
    assert torch.equal(both[1:, :, :5, :40] == 0, alone == 0)
    torch.testing.assert_close(both[1:, :, :5, :40], alone)


# Extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scores(backend, dtype):
    scores = torch.tensor([[[[3e4, -3e4, 3e4], [-3e4, -3e4, -3e4], [0.0, -math.inf, 0.0]]]]).to(
        dtype
    )
    weights = attention_weights(scores, *sequences([3], [3]), 1.0)
    expected = torch.tensor([[0.5, 0.0, 0.5], [1 / 3] * 3, [0.5, 0.0, 0.5]])
    torch.testing.assert_close(weights[0, 0], expected.to(dtype))


def test_not_a_number_stays_in_its_row(backend):
    scores = randn(1, 1, 3, 40)
    scores[0, 0, 1, 7] = math.nan
    leaf = scores.requires_grad_()
    weights = attention_weights(leaf, *sequences([3], [40]), 1.0)
    grads = torch.autograd.grad(weights, leaf, randn(1, 1, 3, 40, seed=1))[0]
    for values in (weights, grads):
        assert values[0, 0].isnan().all(1).tolist() == [False, True, False]


def test_what_stands_behind_the_keys_means_nothing(backend):
    """Neither scores nor gradients there are read, whatever they are."""
    scores, grad = randn(2, 1, 4, 40), randn(2, 1, 4, 40, seed=1)
    outcomes = []
    for garbage in (0.0, math.nan, math.inf):
        scores[0, ..., 21:] = grad[0, ..., 21:] = garbage
        scores[1, :, 2:] = grad[1, :, 2:] = garbage
        leaf = scores.clone().requires_grad_()
        weights = attention_weights(leaf, *sequences([4, 2], [21, 40]), 1.0, 0.2, SEED)
        outcomes.append((weights, torch.autograd.grad(weights, leaf, grad)[0]))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


# Contract ----------------------------------------------------------------------------------------


def test_gradcheck(backend):
    scores = randn(2, 2, 3, 5, dtype=torch.float64).requires_grad_()
    for p in (0.0, 0.3):
        assert torch.autograd.gradcheck(
            lambda x, p=p: attention_weights(x, *sequences([3, 2], [5, 3]), 0.7, p, SEED, 1), scores
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_repeats_and_views_give_the_same_bits(force_backend, dtype):
    force_backend("native")
    shape, integers = (5, 4, 37, 96), sequences([37, 20, 37, 0, 1], [96, 95, 1, 40, 17])
    scores, grad = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1)

    def both(scores, grad):
        return value_and_gradient(
            lambda x: attention_weights(x, *integers, 0.3, 0.1, SEED, 3), scores, grad
        )

    one = both(scores, grad)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, both(scores, grad), strict=True))
    torch.set_num_threads(1)
    for offset in (1, 5):
        views = inside_larger_buffer(scores, offset), inside_larger_buffer(grad, offset)
        assert all(torch.equal(a, b) for a, b in zip(one, both(*views), strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (2, 0, 3, 4)])
def test_nothing(backend, shape):
    scores = torch.zeros(shape, requires_grad=True)
    counts = sequences([shape[2]] * shape[0], [shape[3]] * shape[0])
    weights = attention_weights(scores, *counts, 1.0, 0.1, SEED)
    (grad,) = torch.autograd.grad(weights.sum(), scores)
    assert weights.shape == grad.shape == shape
