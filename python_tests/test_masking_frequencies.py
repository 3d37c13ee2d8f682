"""How often the sampler does what. Every bound is exceeded by a right sampler with probability
below 1e-6.

Runs on the native path: that it equals the reference bit for bit is the business of
test_masking.py.
"""

import math

import pytest
import torch
from scipy import stats
from strategies import POOL, make_masker, word_text

from spanbert_ext.masked_batch import MaskedBatch

FALSE_ALARM = 1e-6


@pytest.fixture(autouse=True)
def native(force_backend):
    force_backend("native")


def assert_share(hits: int, trials: int, share: float) -> None:
    """Binomial test of independent trials."""
    assert stats.binomtest(hits, trials, share).pvalue > FALSE_ALARM, (
        f"{hits} of {trials}, not {share}"
    )


def span_table(batch: MaskedBatch) -> torch.Tensor:
    """[spans, 2] first flat position and length of every merged span."""
    used = batch.target_ids != -100
    starts = (used & (batch.target_offsets == 0)).nonzero().squeeze(1)
    ends = torch.cat([starts[1:], used.sum().view(1)])
    return torch.stack([batch.target_positions[starts], ends - starts], dim=1)


@pytest.mark.parametrize(
    "n, spans, sbo_share, others",
    [(510, 14.3, 0.975, True), (128, 4.3, 0.958, False), (32, 1.65, 0.872, False)],
)
def test_numbers_of_the_published_sampler(n, spans, sbo_share, others):
    """SPEC 1.2's simulation: words of 1 to 4 pieces in shares 80/12/5/3 %.

    SPEC gives rounded means; besides the rounding, five of our standard errors (false alarm 6e-7)
    are allowed.
    """
    rows, masker = 4000, make_masker(seed=21)
    batch = masker(word_text(rows * n, seed=1).view(rows, n))
    table = span_table(batch)
    counts = torch.bincount(table[:, 0] // n, minlength=rows).double()
    assert abs(counts.mean() - spans) < 0.05 + 5 * counts.std() / math.sqrt(rows)
    reached = (batch.sbo_ids != -100).view(rows, -1).double().mean(1)
    assert abs(reached.mean() - sbo_share) < 0.0005 + 5 * reached.std() / math.sqrt(rows)
    if not others:
        return
    eligible = (batch.span_right > batch.span_left).sum().item() / rows
    assert abs(eligible - 14.1) < 0.05 + 5 * counts.std() / math.sqrt(rows)
    assert counts.min() >= 5 and counts.max() <= 26  # SPEC saw 7 to 24
    # Spans of a row share one budget, so errors are taken over rows.
    lengths = table[:, 1].double()
    assert abs(lengths.mean() - 5.4) < 0.05 + 5 * 5.4 * counts.std() / counts.mean() / math.sqrt(
        rows
    )
    long = (lengths > 15).double().mean()
    assert abs(long - 0.020) < 0.0005 + 5 * math.sqrt(0.02 / len(lengths))


def test_one_word_spans_select_every_position_alike():
    """geometric_p 1 and one-piece words: a simple random sample of 5 of 30 positions."""
    rows, n, budget = 20000, 30, 5
    batch = make_masker(seed=2, geometric_p=1.0)(torch.full((rows, n), 10))
    counts = (batch.labels != -100).sum(0).double()
    expected = rows * budget / n
    # Without replacement the counts' covariance has n - 1 eigenvalues expected * (n - budget) / (n
    # - 1).
    statistic = ((counts - expected) ** 2).sum() / (expected * (n - budget) / (n - 1))
    assert stats.chi2.sf(statistic.item(), n - 1) > FALSE_ALARM
    assert stats.chi2.cdf(statistic.item(), n - 1) > FALSE_ALARM


def test_anchors_are_uniform_over_pieces():
    """With a budget of one the masked piece is the start of the anchor's word: chosen in proportion
    to its pieces."""
    rows = 30000
    text = [10, 11, 101, 102, 12, 13, 103, 14, 15, 104, 105, 106]
    words = {0: 1, 1: 3, 4: 1, 5: 2, 7: 1, 8: 4}
    batch = make_masker(seed=3, mask_ratio=0.01)(torch.tensor(text).expand(rows, -1).contiguous())
    counts = (batch.labels != -100).sum(0)
    assert int(counts.sum()) == rows == sum(int(counts[p]) for p in words)
    observed = [int(counts[p]) for p in words]
    assert stats.chisquare(observed, [rows * k / 12 for k in words.values()]).pvalue > FALSE_ALARM


def exact_distribution(words: list[int], budget: int) -> dict[frozenset, float]:
    """Probability of every mask of a block of words with the given pieces, by the rules of SPEC 1.2
    alone.

    Written as the rules stand there: an anchor that is masked is drawn again together with the
    length, which leaves the free anchors equally likely.
    """
    lengths = [0.2 * 0.8**i / (1 - 0.8**10) for i in range(10)]
    starts = [sum(words[:i]) for i in range(len(words) + 1)]
    current = {frozenset(): 1.0}
    while any(len(mask) < budget for mask in current):
        after: dict[frozenset, float] = {}
        for mask, share in current.items():
            free = [p for p in range(starts[-1]) if p not in mask]
            outcomes = [(mask, 1.0)]
            if len(mask) < budget:
                outcomes = []
                for anchor in free:
                    first = max(w for w in range(len(words)) if starts[w] <= anchor)
                    for count, chance in enumerate(lengths, start=1):
                        grown = set(mask)
                        for piece in range(starts[first], starts[min(first + count, len(words))]):
                            if len(grown) < budget:
                                grown.add(piece)
                        outcomes.append((frozenset(grown), chance / len(free)))
            for outcome, chance in outcomes:
                after[outcome] = after.get(outcome, 0.0) + share * chance
        current = after
    return current


def test_the_exact_distribution_by_hand():
    """Three words, two of them masked; q = 0.2241 is the share of length one."""
    q = 0.2 / (1 - 0.8**10)
    exact = exact_distribution([1, 1, 1], 2)
    assert exact[frozenset({0, 1})] == pytest.approx(1 / 3)
    assert exact[frozenset({0, 2})] == pytest.approx((1 + q) / 6)
    assert exact[frozenset({1, 2})] == pytest.approx((1 - q / 2) / 3 + 1 / 6)


@pytest.mark.parametrize(
    "words, budget",
    [([1, 1, 1], 2), ([1, 2, 1, 3], 3), ([1] * 9, 3), ([2, 1, 1, 1, 4, 1], 6), ([1] * 12, 11)],
)
def test_masks_follow_the_exact_distribution(words, budget):
    """Chi-square over all masks of a small block: lengths, anchors, word starts, cuts and overlaps
    at once."""
    rows, n = 40000, sum(words)
    text = [10 if i == 0 else 101 for pieces in words for i in range(pieces)]
    batch = make_masker(seed=17, mask_ratio=budget / n)(
        torch.tensor(text).expand(rows, -1).contiguous()
    )
    codes = ((batch.labels != -100) * (1 << torch.arange(n))).sum(1)
    seen = torch.bincount(codes, minlength=1 << n)
    exact = exact_distribution(words, budget)
    expected = {sum(1 << p for p in mask): share * rows for mask, share in exact.items()}
    assert sum(int(seen[code]) for code in expected) == rows  # nothing impossible
    rare = [code for code, value in expected.items() if value < 10]
    observed = [int(seen[code]) for code in expected if code not in rare]
    wanted = [value for code, value in expected.items() if code not in rare]
    if rare:
        observed.append(sum(int(seen[code]) for code in rare))
        wanted.append(sum(expected[code] for code in rare))
    assert stats.chisquare(observed, wanted).pvalue > FALSE_ALARM


def kinds(batch: MaskedBatch, ids: torch.Tensor) -> torch.Tensor:
    """[targets] 0 masked, 1 random (POOL never occurs in the text), 2 kept."""
    used = batch.target_ids != -100
    shown = batch.input_ids.view(-1)[batch.target_positions[used]]
    kind = torch.full_like(shown, 2)
    kind[shown == 3] = 0
    kind[shown >= POOL[0]] = 1
    assert torch.equal(shown[kind == 2], batch.target_ids[used][kind == 2])
    return kind


def test_replacement_is_drawn_once_for_a_merged_span():
    rows, n = 3000, 256
    ids = word_text(rows * n, seed=6).view(rows, n)
    batch = make_masker(seed=6)(ids)
    kind = kinds(batch, ids)
    first = batch.target_offsets[: len(kind)] == 0
    assert torch.equal(kind, kind[first][torch.cumsum(first, 0) - 1])  # one kind in a span
    counts = torch.bincount(kind[first], minlength=3).tolist()
    for hits, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        assert_share(hits, sum(counts), share)


def test_replacement_is_drawn_for_every_piece():
    rows, n = 1000, 256
    ids = word_text(rows * n, seed=7).view(rows, n)
    batch = make_masker(seed=7, replacement="piece")(ids)
    kind = kinds(batch, ids)
    counts = torch.bincount(kind, minlength=3).tolist()
    for hits, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        assert_share(hits, sum(counts), share)
    inner = batch.target_offsets[1 : len(kind)] > 0
    both = int(((kind[1:] == 1) & (kind[:-1] == 1) & inner).sum())
    assert_share(both, int(inner.sum()), 0.01)  # neighbours in a span are independent


@pytest.mark.parametrize("replacement", ["span", "piece"])
def test_random_pieces_are_uniform_and_independent_over_the_pool(replacement):
    ids = word_text(2000 * 128, seed=8).view(2000, 128)
    masker = make_masker(seed=8, mask_prob=0.0, random_prob=1.0, replacement=replacement)
    batch = masker(ids)
    used = batch.target_ids != -100
    drawn = batch.input_ids.view(-1)[batch.target_positions[used]] - POOL[0]
    counts = torch.bincount(drawn, minlength=len(POOL))
    assert len(counts) == len(POOL)
    assert stats.chisquare(counts.tolist()).pvalue > FALSE_ALARM
    inner = batch.target_offsets[1 : len(drawn)] > 0
    assert_share(int((drawn[1:] == drawn[:-1])[inner].sum()), int(inner.sum()), 1 / len(POOL))


def test_a_pool_with_repeats_gives_a_unigram_distribution():
    masker = make_masker(seed=9, mask_prob=0.0, random_prob=1.0, random_tokens=[150, 150, 150, 151])
    drawn = masker(word_text(500 * 128, seed=9).view(500, 128))
    shown = drawn.input_ids[drawn.labels != -100]
    assert_share(int((shown == 150).sum()), len(shown), 0.75)


def test_samples_and_epochs_are_independent():
    """How often two masks of one text agree at a position: 0.15 squared and 0.85 squared, no more.

    Positions of a row are dependent, rows are not: five standard errors over rows.
    """
    rows, n = 4000, 100
    ids = torch.full((rows, n), 10)
    masker = make_masker(seed=10)
    one, other = (masker(ids, epoch=e).labels != -100 for e in (0, 1))
    for left, right in ((one, other), (one[:-1], one[1:])):
        # Positions near the start are masked less often, so the expectation uses each column's own
        # rate.
        rate = one.double().mean(0)
        shared = (left & right).double().sum(1)
        expected = (rate * rate).sum()
        assert abs(shared.mean() - expected) < 5 * shared.std() / math.sqrt(len(shared))
