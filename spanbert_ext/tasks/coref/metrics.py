"""Scores of coreference: MUC, B-cubed, CEAF, BLANC and LEA, micro-averaged over documents.

The definitions are those of the CoNLL-2012 reference scorer v8.01 (Pradhan et al. 2014; BLANC: Luo
et al. 2014) and of Moosavi and Strube 2016 for LEA. Numerators and denominators are summed over the
documents as exact fractions and divided once at the end. The scorer prints percentages cut off, not
rounded, after two digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from fractions import Fraction

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref.assignment import best_total

# The mean of their F1 is the CoNLL score.
CONLL = ("muc", "bcub", "ceafe")
METRICS = ("mentions", *CONLL, "ceafm", "blanc", "lea")

Mentions = Iterable[Iterable[Hashable]]
Ratio = tuple[Fraction, Fraction]


class CorefScorer:
    """Adds up documents.

    `key` and `response` may be clusters of anything hashable that names a mention, usually pairs of
    words. A mention that only one of them has ("twinless") counts in the denominators, as in the
    reference scorer. Leave out singletons on both sides before calling `update` to score without
    them (`documents.without_singletons`); MUC does not see them anyway.
    """

    def __init__(self):
        zero = (Fraction(0), Fraction(0))
        names = [name for name in METRICS if name != "blanc"] + ["blanc.links", "blanc.others"]
        self._recall: dict[str, Ratio] = dict.fromkeys(names, zero)
        self._precision: dict[str, Ratio] = dict.fromkeys(names, zero)
        self.documents = 0
        self.repeated = 0

    def update(self, key: Mentions, response: Mentions) -> None:
        """Add one document.

        A mention that the response gives twice counts where it stands first, and in `repeated`. The
        reference scorer does the same, and refuses to score beyond ten of them.

        Raises:
            DataError: the key has a mention twice.
        """
        keys, twice = _distinct(key)
        if twice:
            raise DataError("the key has a mention in two clusters, or twice in one; merge them")
        responses, repeated = _distinct(response)
        self.repeated += repeated
        self.documents += 1
        pair = _Pair(keys, responses)
        for name, ratio in pair.ratios().items():
            self._add(self._recall, name, ratio)
        for name, ratio in pair.mirrored().ratios().items():
            self._add(self._precision, name, ratio)
        similarity = {"ceafe": pair.ceafe(), "ceafm": pair.ceafm()}
        for side, clusters in ((self._recall, keys), (self._precision, responses)):
            sizes = {"ceafe": len(clusters), "ceafm": sum(map(len, clusters))}
            for name, size in sizes.items():
                self._add(side, name, (similarity[name], Fraction(size)))

    @staticmethod
    def _add(side: dict[str, Ratio], name: str, ratio: tuple[Fraction | int, int | Fraction]):
        top, bottom = side[name]
        side[name] = (top + ratio[0], bottom + ratio[1])

    def fractions(self) -> dict[str, tuple[Fraction, Fraction, Fraction]]:
        """Recall, precision and F1 (0..1) of every metric in `METRICS`, exactly."""
        found = {
            name: _scores(self._recall[name], self._precision[name])
            for name in METRICS
            if name != "blanc"
        }
        return {name: found.get(name) or self._blanc() for name in METRICS}

    def _blanc(self) -> tuple[Fraction, Fraction, Fraction]:
        """Mean over links and non-links; what the key has none of does not count (v8.01)."""
        kinds = [name for name in ("blanc.links", "blanc.others") if self._recall[name][1]]
        if not kinds:
            return Fraction(0), Fraction(0), Fraction(0)
        rows = [_scores(self._recall[name], self._precision[name]) for name in kinds]
        recall, precision, f1 = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        return recall, precision, f1

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


def _distinct(clusters: Mentions) -> tuple[list[set[Hashable]], int]:
    seen: set[Hashable] = set()
    repeated, kept = 0, []
    for cluster in clusters:
        mentions = list(cluster)
        fresh = set(mentions) - seen
        repeated += len(mentions) - len(fresh)
        seen |= fresh
        if fresh:
            kept.append(fresh)
    return kept, repeated


class _Pair:
    """One document's two clusterings and how many mentions each two clusters share.

    Everything but CEAF is a ratio over the first clustering (recall); precision is the same ratio
    with the two exchanged.
    """

    def __init__(self, keys: list[set[Hashable]], responses: list[set[Hashable]]):
        cluster_of = {m: k for k, cluster in enumerate(keys) for m in cluster}
        common: Counter[tuple[int, int]] = Counter()
        for r, cluster in enumerate(responses):
            common.update((cluster_of[m], r) for m in cluster if m in cluster_of)
        self.keys = [len(cluster) for cluster in keys]
        self.responses = [len(cluster) for cluster in responses]
        self.common = dict(common)

    def mirrored(self) -> _Pair:
        """The same with key and response exchanged."""
        pair = object.__new__(_Pair)
        pair.keys, pair.responses = self.responses, self.keys
        pair.common = {(r, k): n for (k, r), n in self.common.items()}
        return pair

    def ratios(self) -> dict[str, tuple[Fraction | int, int]]:
        """Numerator and denominator of recall."""
        mentions = sum(self.keys)
        blanc = self._blanc()
        return {
            "mentions": (sum(self.common.values()), mentions),
            "muc": (sum(n - 1 for n in self.common.values()), mentions - len(self.keys)),
            "bcub": (self._weighted(lambda k, r, n: (n * n, self.keys[k])), mentions),
            "lea": (self._weighted(self._lea), mentions),
            "blanc.links": blanc[0],
            "blanc.others": blanc[1],
        }

    def _weighted(self, part) -> Fraction:
        """The sum of n/d over pairs of clusters that share mentions; few denominators occur."""
        tops: Counter[int] = Counter()
        for (k, r), n in self.common.items():
            top, bottom = part(k, r, n)
            tops[bottom] += top
        return sum((Fraction(top, bottom) for bottom, top in tops.items()), Fraction(0))

    def _lea(self, k: int, r: int, n: int) -> tuple[int, int]:
        """Importance (size) times the share of links resolved; a singleton links to itself."""
        size = self.keys[k]
        if size == 1:
            return int(self.responses[r] == 1), 1
        return n * (n - 1), size - 1

    def _blanc(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Links inside clusters, and between them, that both clusterings have."""
        both, in_key, in_response = Counter(), Counter(), Counter()
        for (k, r), n in self.common.items():
            both[k, r], in_key[k], in_response[r] = n, in_key[k] + n, in_response[r] + n
        links = _links(self.keys)
        others = _links([sum(self.keys)]) - links
        right = _links(both.values())
        # Pairs of shared mentions, less those linked in one or the other.
        apart = _links([sum(both.values())]) - _links(in_key.values())
        apart += right - _links(in_response.values())
        return (right, links), (apart, others)

    def ceafm(self) -> Fraction:
        """The most mentions that a one-to-one map of clusters has in common (phi 3)."""
        return best_total(self.common)

    def ceafe(self) -> Fraction:
        """The largest total similarity of such a map, 2 common / (sum of the sizes) (phi 4)."""
        return best_total(
            {
                (k, r): Fraction(2 * n, self.keys[k] + self.responses[r])
                for (k, r), n in self.common.items()
            }
        )


def _links(sizes: Iterable[int]) -> int:
    return sum(size * (size - 1) // 2 for size in sizes)
