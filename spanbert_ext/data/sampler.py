"""The order of rows as arithmetic: no state, so a resume needs the step number alone.

An epoch visits the rows in the order of a permutation keyed by (seed, epoch). It is a balanced
Feistel network over the smallest domain 2**(2h) that holds n, restricted to [0, n) by cycle walking
(an id that lands outside is encrypted again; the domain is below 4 n, so four rounds of walking are
the expected worst).
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 10
_BLOCK_ROWS = 4096  # worked out at a time by a `StepOrder`
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Multipliers of the splitmix64 finaliser.
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mix(value: int) -> int:
    """splitmix64 finaliser on Python integers modulo 2**64."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK64
    return value ^ (value >> 31)


class KeyedDraws:
    """A stream of numbers chosen by (key, counter), both integers taken modulo 2**64."""

    def __init__(self, key: int, counter: int):
        self._state = _mix((_mix(key & _MASK64) + _GOLDEN + counter) & _MASK64)

    def bits(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + _GOLDEN) & _MASK64
        return _mix(self._state)

    def below(self, n: int) -> int:
        """The next integer in [0, n), uniform to within n / 2**64."""
        return self.bits() * n >> 64


class KeyedPermutation:
    """A bijection on [0, n) chosen by (seed, epoch).

    Args:
        n: size of the domain, 1 to 2**62.
        seed: any integer; taken modulo 2**64.
        epoch: integer, at least 0; every epoch has its own order.
    """

    def __init__(self, n: int, seed: int, epoch: int):
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n must lie in [1, 2**62]; got {n}")
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0; got {epoch}")
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        draws = KeyedDraws(seed, epoch)
        self._keys = [np.uint64(draws.bits()) for _ in range(_ROUNDS)]

    def __call__(self, ids) -> np.ndarray:
        """Images of `ids` (integers in [0, n), any shape), int64 of the same shape."""
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers; got {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.n):
            raise IndexError(f"ids must lie in [0, {self.n}); got {ids.min()}..{ids.max()}")
        values = self._encrypt(ids.astype(np.uint64).reshape(-1))
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.n]
        return values.astype(np.int64).reshape(ids.shape)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            mixed = (right ^ key) * np.uint64(_MIX_1)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_MIX_2)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << bits) | right


def batch_of_step(step: int, batch_rows: int, num_rows: int, seed: int) -> tuple[int, np.ndarray]:
    """Which rows optimizer step `step` (from 0) sees: (epoch, row_ids [batch_rows] int64).

    An epoch has num_rows // batch_rows steps; the rows left over differ from epoch to epoch.

    Raises:
        ValueError: step below 0, or no whole batch in an epoch.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0; got {step}")
    if not 1 <= batch_rows <= num_rows:
        raise ValueError(
            f"batch_rows must lie in [1, num_rows = {num_rows}]; got {batch_rows}: "
            "take a smaller batch or more text"
        )
    epoch, batch = divmod(step, num_rows // batch_rows)
    ids = np.arange(batch * batch_rows, (batch + 1) * batch_rows, dtype=np.int64)
    return epoch, KeyedPermutation(num_rows, seed, epoch)(ids)


class StepOrder:
    """Which rows every step sees, worked out for many steps at a time: a permutation of few ids
    costs as much as one of thousands.

    Args:
        num_rows: rows there are.
        batch_rows: rows of a step.
    """

    def __init__(self, num_rows: int, batch_rows: int):
        self._batch_rows = batch_rows
        self.steps_per_epoch = num_rows // batch_rows
        self._block_steps = max(1, _BLOCK_ROWS // batch_rows)
        self._block = (-1, -1)
        self._block_rows = np.empty((0, batch_rows), dtype=np.int64)

    def of_step(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, [batch_rows] int64 rows)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        block = epoch, place // self._block_steps
        if block != self._block:
            first = block[1] * self._block_steps
            steps = min(self._block_steps, self.steps_per_epoch - first)
            rows = self._at(epoch, first * self._batch_rows, steps * self._batch_rows)
            self._block, self._block_rows = block, rows.reshape(steps, self._batch_rows)
        return epoch, self._block_rows[place % self._block_steps]

    def of_epoch(self, epoch: int) -> np.ndarray:
        """[steps_per_epoch * batch_rows] int64, the rows of the epoch's steps."""
        return self._at(epoch, 0, self.steps_per_epoch * self._batch_rows)

    def _at(self, epoch: int, first: int, count: int) -> np.ndarray:
        """[count] int64 rows of places `first` to `first + count - 1` of an epoch."""
        raise NotImplementedError


class RowOrder(StepOrder):
    """Which rows of one corpus a step sees, as `batch_of_step` says.

    Args:
        num_rows, batch_rows, seed: as there.
    """

    def __init__(self, num_rows: int, batch_rows: int, seed: int):
        super().__init__(num_rows, batch_rows)
        self._num_rows, self._seed = num_rows, seed

    def _at(self, epoch: int, first: int, count: int) -> np.ndarray:
        places = np.arange(first, first + count, dtype=np.int64)
        return KeyedPermutation(self._num_rows, self._seed, epoch)(places)
