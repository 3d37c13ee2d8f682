"""Scores of coreference: MUC, B-cubed, CEAF-e and LEA, micro-averaged over documents.

The definitions are those of the CoNLL-2012 reference scorer v8.01 (Pradhan et al. 2014) and of
Moosavi and Strube 2016 for LEA. Numerators and denominators are summed over the
documents as exact fractions and divided once at the end. The scorer prints percentages cut off, not
rounded, after two digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from fractions import Fraction

from spanbert_ext.tasks.coref.assignment import best_total

# The mean of their F1 is the CoNLL score.
CONLL = ("muc", "bcub", "ceafe")
METRICS = ("mentions", *CONLL, "lea")

Mentions = Iterable[Iterable[Hashable]]
Ratio = tuple[Fraction | int, Fraction | int]
Link = tuple[int, int]


class CorefScorer:
    """Adds up documents.

    `key` and `response` may be clusters of anything hashable that names a mention, usually pairs of
    words. A mention that only one of them has ("twinless") counts in the denominators, as in the
    reference scorer. Leave out singletons on both sides before calling `update` to score without
    them (`documents.without_singletons`); MUC does not see them anyway.
    """

    def __init__(self):
        zero = (Fraction(0), Fraction(0))
        self._recall: dict[str, Ratio] = dict.fromkeys(METRICS, zero)
        self._precision: dict[str, Ratio] = dict.fromkeys(METRICS, zero)
        self.documents = 0
        self.repeated = 0

    def update(self, key: Mentions, response: Mentions) -> None:
        """Add one document.

        Of a mention that the key has twice, all of its clusters count, and the last one is the one
        that MUC, B-cubed and LEA compare with. A mention of the key that the response gives twice
        counts where it stands first; any other counts twice. `repeated` counts the former; the
        reference scorer refuses to score beyond ten of them.
        """
        keys = [list(cluster) for cluster in key]
        responses, repeated = _first_ones(response, {m for cluster in keys for m in cluster})
        self.repeated += repeated
        self.documents += 1
        pair = _Pair([cluster for cluster in keys if cluster], responses)
        for name, (recall, precision) in pair.ratios().items():
            self._add(self._recall, name, recall)
            self._add(self._precision, name, precision)

    @staticmethod
    def _add(side: dict[str, Ratio], name: str, ratio: tuple[Fraction | int, int | Fraction]):
        top, bottom = side[name]
        side[name] = (top + ratio[0], bottom + ratio[1])

    def fractions(self) -> dict[str, tuple[Fraction, Fraction, Fraction]]:
        """Recall, precision and F1 (0..1) of every metric in `METRICS`, exactly."""
        return {name: _scores(self._recall[name], self._precision[name]) for name in METRICS}

    def result(self) -> dict[str, float]:
        """Percentages (0..100): "f1", the mean F1 of MUC, B-cubed and CEAF-e (the CoNLL score),
        and "NAME.recall", "NAME.precision", "NAME.f1" of every metric in `METRICS`."""
        found = self.fractions()
        result = {"f1": float(100 * sum(found[name][2] for name in CONLL) / len(CONLL))}
        for name, values in found.items():
            for part, value in zip(("recall", "precision", "f1"), values, strict=True):
                result[f"{name}.{part}"] = float(100 * value)
        return result


def _scores(recall: Ratio, precision: Ratio) -> tuple[Fraction, Fraction, Fraction]:
    r, p = (top / bottom if bottom else Fraction(0) for top, bottom in (recall, precision))
    return r, p, 2 * r * p / (r + p) if r + p else Fraction(0)


def _first_ones(clusters: Mentions, known: set[Hashable]) -> tuple[list[list[Hashable]], int]:
    """The response's clusters without repetitions of the key's mentions, and how many these are."""
    seen: set[Hashable] = set()
    repeated, kept = 0, []
    for cluster in clusters:
        fresh = []
        for mention in cluster:
            if mention in seen:
                repeated += 1
                continue
            fresh.append(mention)
            if mention in known:
                seen.add(mention)
        if fresh:
            kept.append(fresh)
    return kept, repeated


class _Pair:
    """One document's two clusterings, and what each two of their clusters share.

    The three counts over (key cluster, response cluster) differ only where the key has a mention
    twice: `owned` are mentions of the response whose last cluster in the key it is, `within`
    mentions of the response that stand in the key's cluster, `matched` mentions of the key's
    cluster, repetitions too, that stand in the response's.
    """

    def __init__(self, keys: list[list[Hashable]], responses: list[list[Hashable]]):
        clusters_of: dict[Hashable, list[int]] = {}
        for k, cluster in enumerate(keys):
            for mention in cluster:
                clusters_of.setdefault(mention, []).append(k)
        self.keys = [len(cluster) for cluster in keys]
        self.responses = [len(cluster) for cluster in responses]
        self.owned: Counter[Link] = Counter()
        self.within: Counter[Link] = Counter()
        self.matched: Counter[Link] = Counter()
        self.distinct = len(clusters_of), len({m for cluster in responses for m in cluster})
        for r, cluster in enumerate(responses):
            for own in (clusters_of[m] for m in cluster if m in clusters_of):
                self.owned[own[-1], r] += 1
                self.within.update((k, r) for k in set(own))
                self.matched.update((k, r) for k in own)

    def ratios(self) -> dict[str, tuple[Ratio, Ratio]]:
        """Numerator and denominator of recall and of precision."""
        mentions = sum(self.keys), sum(self.responses)
        links = sum(n - 1 for n in self.owned.values())
        ceafe = self._ceafe()
        pairs = {
            "mentions": ((self.owned.total(), self.owned.total()), self.distinct),
            "muc": (
                (links, links),
                (mentions[0] - len(self.keys), mentions[1] - len(self.responses)),
            ),
            "bcub": (
                (
                    _sum((n * self.within[k, r], self.keys[k]) for (k, r), n in self.owned.items()),
                    _sum(
                        (n * self.within[k, r], self.responses[r])
                        for (k, r), n in self.owned.items()
                    ),
                ),
                mentions,
            ),
            "lea": (
                (
                    _sum(
                        _resolved(n, self.keys[k], self.responses[r])
                        for (k, r), n in self.matched.items()
                    ),
                    _sum(
                        _resolved(n, self.responses[r], self.keys[k])
                        for (k, r), n in self.owned.items()
                    ),
                ),
                mentions,
            ),
            "ceafe": ((ceafe, ceafe), (len(self.keys), len(self.responses))),
        }
        return {name: tuple(zip(*values, strict=True)) for name, values in pairs.items()}

    def _ceafe(self) -> Fraction:
        """The largest total similarity of a one-to-one map of clusters, 2 common / (sum of the
        sizes) (phi 4)."""
        return best_total(
            {
                (k, r): Fraction(2 * n, self.keys[k] + self.responses[r])
                for (k, r), n in self.matched.items()
            }
        )


def _sum(parts: Iterable[tuple[int, int]]) -> Fraction:
    """The sum of fractions, few of whose denominators differ."""
    tops: Counter[int] = Counter()
    for top, bottom in parts:
        tops[bottom] += top
    return sum((Fraction(top, bottom) for bottom, top in tops.items()), Fraction(0))


def _resolved(shared: int, size: int, other: int) -> tuple[int, int]:
    """LEA: importance (size) times the share of links resolved; a singleton links to itself."""
    return (int(other == 1), 1) if size == 1 else (shared * (shared - 1), size - 1)
