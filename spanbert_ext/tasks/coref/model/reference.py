"""The specification of pruning, which also prunes where there is no native core."""

from __future__ import annotations

import math
from collections.abc import Sequence


def prune_spans(
    starts: Sequence[int], ends: Sequence[int], scores: Sequence[float], keep: int
) -> list[int]:
    """Places of the kept candidates, as `pruning.prune_spans`: each candidate is compared with
    every span kept before."""

    def rank(place: int) -> tuple[bool, float, int]:
        score = scores[place]
        return (True, 0.0, place) if math.isnan(score) else (False, -score, place)

    kept: list[int] = []
    for place in sorted(range(len(starts)), key=rank):
        if len(kept) >= keep:
            break
        if not any(crosses(starts[place], ends[place], starts[k], ends[k]) for k in kept):
            kept.append(place)
    return sorted(kept, key=lambda place: (starts[place], ends[place], place))


def crosses(start: int, end: int, other_start: int, other_end: int) -> bool:
    """Whether two spans, ends inclusive, share a piece and neither holds the other."""
    return start < other_start <= end < other_end or other_start < start <= other_end < end
