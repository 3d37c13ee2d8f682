"""The best one-to-one matching of two sets, exactly.

CEAF pairs key clusters with response clusters so that the sum of similarities is largest (Luo 2005;
Kuhn 1955, Munkres 1957). Clusters that share a mention are few, so the matching works on a sparse
graph, and on integers of any size: no rounding decides a tie, and the total is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from fractions import Fraction
from math import lcm

Edges = Mapping[tuple[int, int], Fraction | int]


def best_total(weights: Edges) -> Fraction:
    """The largest sum of weights over edges of which no two share an end.

    Args:
        weights: of (row, column), at least 0; pairs that are missing weigh 0.
    """
    positive = {edge: Fraction(weight) for edge, weight in weights.items() if weight > 0}
    total = Fraction(0)
    for part in _components(positive):
        scale = lcm(*(weight.denominator for weight in part.values()))
        rows: dict[int, dict[int, int]] = {}
        for (row, column), weight in part.items():
            rows.setdefault(row, {})[column] = int(weight * scale)
        total += Fraction(_Matching(rows).total(), scale)
    return total


def _components(weights: Mapping[tuple[int, int], Fraction]) -> list[dict]:
    """Edges, apart by the connected component of the graph they belong to."""
    root: dict[tuple[str, int], tuple[str, int]] = {}

    def find(node):
        while root.setdefault(node, node) != node:
            root[node] = node = root[root[node]]
        return node

    for row, column in weights:
        root[find(("row", row))] = find(("column", column))
    parts: dict = {}
    for edge, weight in weights.items():
        parts.setdefault(find(("row", edge[0])), {})[edge] = weight
    return list(parts.values())


class _Matching:
    """Shortest augmenting paths with duals (the Hungarian method) on one component.

    `above[row] + beside[column] >= weight` holds for every edge, with equality on matched ones; a
    row or column that is not matched has the dual 0 in the end, which proves the optimum.
    """

    def __init__(self, rows: dict[int, dict[int, int]]):
        self.rows = rows
        self.above = {row: max(edges.values()) for row, edges in rows.items()}
        self.beside = {column: 0 for edges in rows.values() for column in edges}
        self.row_of: dict[int, int] = {}
        self.column_of: dict[int, int] = {}

    def total(self) -> int:
        for row in self.rows:
            self._place(row)
        return sum(self.rows[row][column] for column, row in self.row_of.items())

    def _place(self, source: int) -> None:
        """Match one more row, or leave one (perhaps another) unmatched: what costs least."""
        reached, settled = {source: 0}, {}  # distances of rows and of columns
        best, parent = {}, {}
        queue: list[tuple[int, int]] = []
        # Leaving a row unmatched costs its dual.
        end, end_row, limit = None, source, self.above[source]
        row = source
        while row is not None:
            far = reached[row]
            for column, weight in self.rows[row].items():
                distance = far + self.above[row] + self.beside[column] - weight
                if distance < min(limit, best.get(column, limit)):
                    best[column], parent[column] = distance, row
                    heapq.heappush(queue, (distance, column))
            row = None
            while queue and row is None:
                distance, column = heapq.heappop(queue)
                if distance >= limit:
                    break
                if column in settled or distance > best[column]:
                    continue
                settled[column] = distance
                row = self.row_of.get(column)
                if row is None:
                    end, limit = column, distance
                    break
                reached[row] = distance
                if distance + self.above[row] < limit:
                    end_row, limit = row, distance + self.above[row]
        self._update(reached, settled, limit)
        self._turn(source, end, end_row, parent)

    def _update(self, reached: dict[int, int], settled: dict[int, int], limit: int) -> None:
        for row, distance in reached.items():
            self.above[row] -= max(0, limit - distance)
        for column, distance in settled.items():
            self.beside[column] += max(0, limit - distance)

    def _turn(self, source: int, end: int | None, end_row: int, parent: dict[int, int]) -> None:
        column = end
        if column is None:  # `end_row` gives up its column, if it has one
            if end_row == source:
                return
            column = self.column_of.pop(end_row)
        while True:
            row = parent[column]
            following = self.column_of.get(row)
            self.row_of[column], self.column_of[row] = row, column
            if row == source:
                return
            column = following
