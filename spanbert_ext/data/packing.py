"""Packing sequences into rows of a fixed number of tokens, working on a histogram of lengths.

Long sequences go first, longest first, each into the fullest row that still takes it (best-fit
decreasing). When one of length l went into a row with room r, that row, now with r - l, is the best
again as long as it fits; so all sequences of a length are dealt to the rows of one room at a time,
r // l to a row. Short ones follow, each into the emptiest row, among one per cent more rows than
the text needs at least: they even out what is left, and no row collects very many of them. (The
largest number of sequences in a batch decides the fixed shapes of the training step. Without the
one per cent, the shortest of all would find no room at the end and fill rows of their own.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

# A sequence is short up to this fraction of a row.
_SHORT = 4
_SLACK = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Which sequences share a row.

    Args:
        offsets: [R + 1] int64; row r holds members[offsets[r] : offsets[r + 1]].
        members: [N] int64 indices of sequences, ascending inside a row.
    """

    offsets: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return self.offsets.size - 1


def pack(lengths: np.ndarray, capacity: int) -> Packing:
    """Pack sequences of the given lengths ([N] int64, each 1 to capacity); deterministic.

    Raises:
        ValueError: a length below 1 or above the capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"lengths must lie in [1, {capacity}]; got {lengths.min()}..{lengths.max()}"
        )
    histogram = np.bincount(lengths, minlength=capacity + 1).tolist()
    rows = _Rows(capacity)
    shortest = capacity // _SHORT
    dealt = [rows.best_fit(n, histogram[n]) for n in range(capacity, shortest, -1)]
    total = int(lengths.sum())
    wanted = max(-(-total // capacity), int(total * (1 + _SLACK) / capacity))
    # No more than there are short sequences: a row must not stay empty.
    rows.open(min(max(0, wanted - rows.count), sum(histogram[: shortest + 1])))
    dealt += [rows.worst_fit(n, histogram[n]) for n in range(shortest, 0, -1)]
    row_of = np.empty(lengths.size, dtype=np.int64)
    row_of[np.argsort(-lengths, kind="stable")] = np.concatenate(dealt)
    offsets = np.zeros(rows.count + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows.count), out=offsets[1:])
    return Packing(offsets, np.argsort(row_of, kind="stable"))


class _Rows:
    """Rows by the room they have left."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.count = 0
        self._with_room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]

    def open(self, count: int) -> None:
        """Add empty rows."""
        self._put(self.capacity, np.arange(self.count, self.count + count))
        self.count += count

    def best_fit(self, length: int, left: int) -> np.ndarray:
        """Place `left` sequences of one length, fullest rows first; [left] row of each."""
        dealt, room = [np.empty(0, dtype=np.int64)], length
        while left:
            while room <= self.capacity and not self._with_room[room]:
                room += 1
            if room > self.capacity:
                room = self.capacity
                self.open(-(-left // (room // length)))
            each = room // length
            rows = self._with_room[room].pop()
            full, rest = divmod(min(left, rows.size * each), each)
            self._put(room - each * length, rows[:full])
            self._put(room - rest * length, rows[full : full + 1])
            self._put(room, rows[full + 1 :])
            dealt += [np.repeat(rows[:full], each), np.repeat(rows[full : full + 1], rest)]
            left -= full * each + rest
        return np.concatenate(dealt)

    def worst_fit(self, length: int, left: int) -> np.ndarray:
        """Place `left` sequences of one length, emptiest rows first; [left] row of each."""
        dealt, room = [np.empty(0, dtype=np.int64)], self.capacity
        while left:
            while room >= length and not self._with_room[room]:
                room -= 1
            if room < length:
                room = self.capacity
                self.open(-(-left // (room // length)))
            rows = np.concatenate(self._with_room[room])
            self._with_room[room] = []
            self._put(room - length, rows[:left])
            self._put(room, rows[left:])
            dealt.append(rows[:left])
            left -= dealt[-1].size
        return np.concatenate(dealt)

    def _put(self, room: int, rows: np.ndarray) -> None:
        if rows.size:
            self._with_room[room].append(rows)
