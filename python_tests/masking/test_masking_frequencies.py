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

from spanbert_ext.masking.batch import MaskedBatch

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


@pytest.mark.parametrize(
    "options, second",
    [({"geometric_p": 1.0}, 10), ({"scheme": "piece"}, 101)],
    ids=["one-word spans", "pieces of two-piece words"],
)
def test_single_pieces_are_selected_alike_at_every_position(options, second):
    """A simple random sample of 5 of 30 positions."""
    rows, n, budget = 20000, 30, 5
    text = torch.tensor([10, second] * (n // 2)).expand(rows, -1).contiguous()
    batch = make_masker(seed=2, **options)(text)
    counts = (batch.labels != -100).sum(0).double()
    expected = rows * budget / n
    # Without replacement the counts' covariance has n - 1 eigenvalues expected * (n - budget) / (n
    # - 1).
    statistic = ((counts - expected) ** 2).sum() / (expected * (n - budget) / (n - 1))
    assert stats.chi2.sf(statistic.item(), n - 1) > FALSE_ALARM
    assert stats.chi2.cdf(statistic.item(), n - 1) > FALSE_ALARM


@pytest.mark.parametrize("scheme", ["span", "word"])
def test_anchors_are_uniform_over_pieces(scheme):
    """With a budget of one the masked piece is the start of the anchor's word: chosen in proportion
    to its pieces."""
    rows = 30000
    text = [10, 11, 101, 102, 12, 13, 103, 14, 15, 104, 105, 106]
    words = {0: 1, 1: 3, 4: 1, 5: 2, 7: 1, 8: 4}
    masker = make_masker(seed=3, mask_ratio=0.01, scheme=scheme)
    batch = masker(torch.tensor(text).expand(rows, -1).contiguous())
    counts = (batch.labels != -100).sum(0)
    assert int(counts.sum()) == rows == sum(int(counts[p]) for p in words)
    observed = [int(counts[p]) for p in words]
    assert stats.chisquare(observed, [rows * k / 12 for k in words.values()]).pvalue > FALSE_ALARM


LENGTHS = [0.2 * 0.8**i / (1 - 0.8**10) for i in range(10)]


def next_spans(words, mask, lengths, candidates) -> list[tuple[range, float]]:
    """What a draw takes, with its probability: half of the draws take one of the candidate spans
    that are not wholly masked, if there are any, the others so many words from the anchor's on."""
    starts = [sum(words[:i]) for i in range(len(words) + 1)]
    free = [p for p in range(starts[-1]) if p not in mask]
    candidates = [c for c in candidates if not mask.issuperset(c)]
    of_words = (0.5 if candidates else 1.0) / len(free)
    spans = [(c, 0.5 / len(candidates)) for c in candidates]
    for anchor in free:
        first = max(w for w in range(len(words)) if starts[w] <= anchor)
        for count, chance in enumerate(lengths, start=1):
            end = starts[min(first + count, len(words))]
            spans.append((range(starts[first], end), chance * of_words))
    return spans


def exact_distribution(
    words: list[int], budget: int, lengths=LENGTHS, candidates=()
) -> dict[frozenset, float]:
    """Probability of every mask of a block of words with the given pieces, by the rules of SPEC 1.2
    and 1.6 alone.

    Written as the rules stand there: an anchor that is masked is drawn again together with the
    length, which leaves the free anchors equally likely.
    """
    current = {frozenset(): 1.0}
    while any(len(mask) < budget for mask in current):
        after: dict[frozenset, float] = {}
        for mask, share in current.items():
            outcomes = [(mask, 1.0)]
            if len(mask) < budget:
                outcomes = []
                for span, chance in next_spans(words, mask, lengths, candidates):
                    fresh = [p for p in span if p not in mask][: budget - len(mask)]
                    outcomes.append((mask.union(fresh), chance))
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
    # One word, the middle being a candidate: half the draws take it, and a third of the others.
    exact = exact_distribution([1, 1, 1], 1, [1.0], [range(1, 2)])
    assert exact[frozenset({1})] == pytest.approx(1 / 2 + 1 / 6)


def assert_masks_follow(exact: dict[frozenset, float], batch: MaskedBatch) -> None:
    """Chi-square over all masks of the rows of a small block."""
    rows, n = batch.labels.shape
    codes = ((batch.labels != -100) * (1 << torch.arange(n))).sum(1)
    seen = torch.bincount(codes, minlength=1 << n)
    expected = {sum(1 << p for p in mask): share * rows for mask, share in exact.items()}
    assert sum(int(seen[code]) for code in expected) == rows  # nothing impossible
    rare = [code for code, value in expected.items() if value < 10]
    observed = [int(seen[code]) for code in expected if code not in rare]
    wanted = [value for code, value in expected.items() if code not in rare]
    if rare:
        observed.append(sum(int(seen[code]) for code in rare))
        wanted.append(sum(expected[code] for code in rare))
    assert stats.chisquare(observed, wanted).pvalue > FALSE_ALARM


def rows_of_words(words: list[int], rows: int = 40000) -> torch.Tensor:
    """The same words of the given numbers of pieces in every row."""
    text = [10 if i == 0 else 101 for pieces in words for i in range(pieces)]
    return torch.tensor(text).expand(rows, -1).contiguous()


@pytest.mark.parametrize(
    "words, budget",
    [([1, 1, 1], 2), ([1, 2, 1, 3], 3), ([1] * 9, 3), ([2, 1, 1, 1, 4, 1], 6), ([1] * 12, 11)],
)
def test_masks_follow_the_exact_distribution(words, budget):
    """Lengths, anchors, word starts, cuts and overlaps at once."""
    batch = make_masker(seed=17, mask_ratio=budget / sum(words))(rows_of_words(words))
    assert_masks_follow(exact_distribution(words, budget), batch)


@pytest.mark.parametrize("words, budget", [([1, 2, 1, 3], 3), ([2, 1, 1, 1, 4, 1], 6)])
def test_words_follow_the_exact_distribution(words, budget):
    masker = make_masker(seed=18, scheme="word", mask_ratio=budget / sum(words))
    assert_masks_follow(exact_distribution(words, budget, [1.0]), masker(rows_of_words(words)))


@pytest.mark.parametrize(
    "words, budget, candidates",
    [
        ([1] * 10, 1, [range(4, 7)]),
        ([1, 2, 1, 3, 1], 4, [range(1), range(1, 4), range(4, 7)]),
        ([1, 1, 2, 1, 1, 2, 1], 5, [range(1, 4), range(4, 5), range(7, 9)]),
        ([2, 1, 1, 1], 4, [range(1, 3)]),
    ],
)
def test_candidates_follow_the_exact_distribution(words, budget, candidates):
    """Half of the draws take a candidate, uniformly among those still open; neighbours stay apart,
    the budget cuts them, and words take over when all are masked."""
    masker = make_masker(seed=19, scheme="entity", mask_ratio=budget / sum(words))
    marks = torch.zeros(sum(words), dtype=torch.uint8)
    for span in candidates:
        marks[span.start], marks[span.start + 1 : span.stop] = 1, 2
    ids = rows_of_words(words)
    batch = masker(ids, candidates=marks.expand(len(ids), -1).contiguous())
    assert_masks_follow(exact_distribution(words, budget, [1.0], candidates), batch)


def test_a_candidate_is_drawn_half_of_the_time():
    """Where a word is one of a thousand pieces, what falls on the candidate was drawn as one."""
    rows, n = 4000, 1000
    marks = torch.zeros(rows, n, dtype=torch.uint8)
    marks[:, 500] = 1
    for share in (0.5, 0.1):
        masker = make_masker(seed=20, scheme="phrase", mask_ratio=0.001, candidate_prob=share)
        batch = masker(torch.full((rows, n), 10), candidates=marks)
        hits = int((batch.labels[:, 500] != -100).sum())
        assert_share(hits, rows, share + (1 - share) / n)


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
