"""The dropout mask: known answers, equality of native code and reference, and frequencies.

Every statistical bound is exceeded by a right generator with probability below 1e-6.
"""

import pytest
import torch
from scipy import stats

from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout, dropout_add_layer_norm
from spanbert_ext.ops.reference import dropout as reference

FALSE_ALARM = 1e-6


def seed_of(value: int) -> torch.Tensor:
    return torch.tensor([value])


def native_factors(rows, size, p, seed, site) -> torch.Tensor:
    """LN with weight 0 and bias 1 is 1 everywhere, so what comes out is dropout's factor."""
    zeros, weight = torch.zeros(rows, size), torch.zeros(size)
    return add_layer_norm_dropout(zeros, zeros, weight, weight + 1, 1.0, p, seed, site)


@pytest.fixture
def native(core):
    """The draws of the compiled row functions."""


def test_known_answers():
    """The vectors that Random123 publishes for philox4x32-10."""
    zero = reference.dropout_draws(1, 12, seed_of(0), 0)[0, :8].tolist()
    assert [hex(v) for v in zero] == [
        "0xe8d5", "0x6627", "0xc58d", "0xe169", "0xac4c", "0xbc57", "0xdbd8", "0x9b00",
    ]  # fmt: skip
    counter = [torch.tensor(v) for v in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    key = [torch.tensor(v) for v in (0xA4093822, 0x299F31D0)]
    words = [int(w) for w in reference.philox4x32(counter, key)]
    assert words == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_thresholds_and_scales():
    assert [reference.mask_threshold(p) for p in (0.0, 1e-6, 0.1, 0.5, 1.0)] == [
        0, 0, 6554, 32768, 65536,
    ]  # fmt: skip
    for threshold in (1, 6554, 65535):
        kept = 1 - threshold / reference.DRAWS
        assert reference.keep_scale(threshold) * kept == pytest.approx(1, abs=1e-15)
    assert reference.keep_scale(65536) == 0


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 129, 768, 1000])
def test_native_masks_are_the_references(native, seed, size):
    for site, p in ((0, 0.1), (24, 0.5), (2**32 - 1, 0.9)):
        threshold = reference.mask_threshold(p)
        expected = reference.dropout_factors(5, size, threshold, seed_of(seed), site, torch.float32)
        assert torch.equal(native_factors(5, size, p, seed_of(seed), site), expected)


def test_both_forms_and_every_dtype_share_the_mask(native):
    seed, size = seed_of(77), 200
    expected = native_factors(6, size, 0.2, seed, 5) == 0
    for branch, stream in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float64,) * 2):
        x, residual = torch.ones(6, size, dtype=branch), torch.zeros(6, size, dtype=stream)
        parameters = torch.ones(2, size, dtype=torch.promote_types(stream, torch.float32))
        out = dropout_add_layer_norm(x, residual, *parameters, 1e-5, 0.2, seed, 5)
        assert torch.equal(out < 1, expected)


@pytest.fixture(scope="module")
def draws():
    """[rows, columns] 16-bit draws of one site."""
    return reference.dropout_draws(2048, 768, seed_of(20240229), 3)


def assert_share(hits: int, trials: int, share: float) -> None:
    assert stats.binomtest(hits, trials, share).pvalue > FALSE_ALARM, f"{hits}/{trials}: {share}"


@pytest.mark.parametrize("p", [0.0005, 0.1, 0.5, 0.9])
def test_share_of_dropped_columns(native, p):
    dropped = native_factors(2048, 768, p, seed_of(11), 1) == 0
    share = reference.mask_threshold(p) / reference.DRAWS
    assert_share(int(dropped.sum()), dropped.numel(), share)
    # No column and no row is favoured: chi-square over the columns', then the rows' counts.
    for axis, count in ((0, 768), (1, 2048)):
        trials = dropped.numel() / count
        if trials * share < 10:
            continue
        hits = dropped.sum(axis).double()
        statistic = float(((hits - trials * share) ** 2 / (trials * share * (1 - share))).sum())
        assert stats.chi2.sf(statistic, count) > FALSE_ALARM
        assert stats.chi2.cdf(statistic, count) > FALSE_ALARM


@pytest.mark.parametrize("shift", [0, 8])
def test_draws_are_uniform_in_their_high_and_low_byte(draws, shift):
    for column in range(8):
        counts = torch.bincount((draws[:, column::8] >> shift & 0xFF).flatten(), minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > FALSE_ALARM


def pairs(draws):
    """Name and two equally long sequences of draws whose places are related; no draw is used twice
    in a case."""
    for step in (1, 2, 4, 8, 16, 64, 128):
        whole = draws[:, : 768 // (2 * step) * 2 * step].unflatten(1, (-1, 2, step))
        yield f"columns {step} apart", whole[:, :, 0], whole[:, :, 1]
    for step in (1, 2, 8, 64):
        whole = draws.unflatten(0, (-1, 2, step))
        yield f"rows {step} apart", whole[:, 0], whole[:, 1]
    square = draws[:768]
    above = torch.triu(torch.ones(768, 768, dtype=torch.bool), 1)
    yield "row and column swapped", square[above], square.t()[above]
    rows, size = draws.shape
    yield "next site", draws, reference.dropout_draws(rows, size, seed_of(20240229), 4)
    for other in (20240228, 20240229 + (1 << 32), ~20240229):
        yield f"seed {other}", draws, reference.dropout_draws(rows, size, seed_of(other), 3)


def test_draws_of_related_places_are_independent(draws):
    threshold = reference.mask_threshold(0.1)
    share = threshold / reference.DRAWS
    for name, one, other in pairs(draws):
        one, other = one < threshold, other < threshold
        both, trials = int((one & other).sum()), one.numel()
        p = stats.binomtest(both, trials, share * share).pvalue
        assert p > FALSE_ALARM, f"{name}: {both} of {trials}"
        if name.startswith(("columns", "rows")):
            continue
        # The whole numbers agree as often as chance lets them, too.
        assert int((one == other).sum()) < trials
