"""Training rows that live in the memory of the device, and the batches made of them there.

The rows are laid out once, padded, with the tables of their sequences. A batch is then a gather by
row numbers: operations of fixed shapes that read nothing back, so a step can be captured in a CUDA
graph. Tokens, borders and sample ids are those of `PackedRows.batch(row_ids, pad=True)`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from spanbert_ext.data import PackedRows

# With `batch.resident: auto`, the rows may take this share of the device's free memory.
MEMORY_SHARE = 0.25
_CHUNK_TOKENS = 1 << 22  # laid out at a time; a few hundred MB of indices


def resident_bytes(rows: PackedRows) -> int:
    """Memory that `ResidentRows` and the order of an epoch take."""
    width = 2 if rows.corpus.vocab_size <= 1 << 16 else 4
    width += rows.has_candidates
    slots = rows.num_sequences + len(rows)
    return len(rows) * (rows.max_length * width + 24) + 16 * slots


class ResidentRows:
    """All rows of a split on a device; `of` copies them there.

    Args:
        tokens: [R, L] padded rows; int32, or int16 that holds the bits of an unsigned number.
        offsets: [R + 1] int64; row r holds slots offsets[r] to offsets[r + 1].
        lengths, sample_ids: [M] int64 of each slot, as in `RowSlots`.
        num_samples: all sample ids lie below it.
        candidates: [R, L] uint8 candidate spans, or None.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        offsets: torch.Tensor,
        lengths: torch.Tensor,
        sample_ids: torch.Tensor,
        num_samples: int,
        candidates: torch.Tensor | None = None,
    ):
        self._tokens, self._offsets, self._candidates = tokens, offsets, candidates
        self._lengths, self._sample_ids = lengths, sample_ids
        self._num_samples = num_samples
        self._counts = offsets.diff()

    @classmethod
    def of(cls, rows: PackedRows, device: torch.device) -> ResidentRows:
        """The rows of a corpus, at least one."""
        # torch computes little with unsigned 16-bit integers: the same bits are kept as signed.
        small = rows.corpus.vocab_size <= 1 << 16
        dtype, signed = (torch.int16, np.int16) if small else (torch.int32, np.int32)
        tokens = torch.empty((len(rows), rows.max_length), dtype=dtype, device=device)
        candidates = None
        if rows.has_candidates:
            candidates = torch.empty(tokens.shape, dtype=torch.uint8, device=device)
        chunk = max(1, _CHUNK_TOKENS // rows.max_length)
        for first in range(0, len(rows), chunk):
            stop = min(first + chunk, len(rows))
            tokens[first:stop] = torch.from_numpy(rows.padded_tokens(first, stop).view(signed))
            if candidates is not None:
                candidates[first:stop] = torch.from_numpy(rows.padded_candidates(first, stop))
        slots = rows.slots()
        tables = (slots.offsets, slots.lengths, slots.sample_ids)
        tables = (torch.from_numpy(table).to(device) for table in tables)
        return cls(tokens, *tables, len(rows.sequences), candidates)

    def batch(
        self, row_ids: torch.Tensor, capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sequences of some rows, laid end to end.

        Args:
            row_ids: [B] int64 on the device; not checked. R or more means a later visit of a row,
                as in `MixedRows`.
            capacity: N, at least `PackedRows.max_sequences(B)`.

        Returns:
            (tokens [B * max_length] int64, cu_seqlens [N + 1] int64, sample_ids [N] int64, -1 for
            padding and unused slots)
        """
        visits = row_ids // self._counts.shape[0]
        row_ids = row_ids % self._counts.shape[0]
        tokens = self._tokens.index_select(0, row_ids).flatten().to(torch.int64)
        if self._tokens.dtype == torch.int16:
            tokens = tokens & 0xFFFF
        counts = self._counts.index_select(0, row_ids)
        ends = counts.cumsum(0)
        slots = torch.arange(capacity, device=row_ids.device)
        row = torch.searchsorted(ends, slots, right=True)  # B for unused slots
        used = row < row_ids.shape[0]
        row = row.clamp(max=row_ids.shape[0] - 1)
        shift = self._offsets.index_select(0, row_ids) - (ends - counts)
        source = torch.where(used, shift.index_select(0, row) + slots, 0)
        lengths = torch.where(used, self._lengths.index_select(0, source), 0)
        sample_ids = torch.where(used, self._sample_ids.index_select(0, source), -1)
        moved = sample_ids + visits.index_select(0, row) * self._num_samples
        sample_ids = torch.where(sample_ids >= 0, moved, -1)
        return tokens, F.pad(lengths.cumsum(0), (1, 0)), sample_ids

    def candidates(self, row_ids: torch.Tensor) -> torch.Tensor | None:
        """The candidate spans of `batch(row_ids)`: [B * max_length] uint8, None without any."""
        if self._candidates is None:
            return None
        return self._candidates.index_select(0, row_ids % len(self._candidates)).flatten()


class ResidentOrder:
    """Which rows a step sees, from a counter on the device.

    The rows of an epoch are copied to the device when the epoch begins; nothing else is.

    Args:
        rows: what the numbers belong to.
        batch_rows: rows of a step, at most all of them.
        seed: of the order.
        device: of the counter.
    """

    def __init__(self, rows: PackedRows, batch_rows: int, seed: int, device: torch.device):
        self._rows, self._batch_rows = rows, batch_rows
        self._rows_of = rows.order(batch_rows, seed)
        self.steps_per_epoch = self._rows_of.steps_per_epoch
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self._shift = torch.zeros(1, dtype=torch.int64, device=device)
        self._host_shift = 0
        self._epoch = self._at = -1
        self._host = np.empty(0, dtype=np.int64)
        places = self.steps_per_epoch * batch_rows
        self._order = torch.empty(places, dtype=torch.int64, device=device)

    def seek(self, step: int) -> int:
        """Make `step` the next one; its number of tokens that are not padding.

        Where the counter stands there already, as it does after `advance`, nothing is written.
        """
        epoch, place = divmod(step + self._host_shift, self.steps_per_epoch)
        if epoch != self._epoch:
            self._load(epoch)
        if step != self._at:
            self.step.fill_(step)
        self._at = step + 1
        own = self._host[place * self._batch_rows : (place + 1) * self._batch_rows]
        return int(self._rows.row_tokens(own).sum())

    def shift_by(self, batches: int) -> None:
        """From here step s sees batch s + `batches`."""
        self._host_shift = batches
        self._shift.fill_(batches)

    def _load(self, epoch: int) -> None:
        self._host = self._rows_of.of_epoch(epoch)
        order = torch.from_numpy(self._host)
        if self._order.device.type == "cuda":  # a copy of pageable memory waits for the stream
            order = order.pin_memory()
        self._order.copy_(order, non_blocking=True)
        self._epoch = epoch

    def advance(self) -> None:
        """The counter goes to the next step; part of every step between two calls of `seek`."""
        self.step.add_(1)

    def row_ids(self, first: torch.Tensor | int, count: int) -> torch.Tensor:
        """[count] int64, the step's rows from place `first` ([1] int64 or a number) on."""
        start = (self.step + self._shift) % self.steps_per_epoch * self._batch_rows + first
        places = start + torch.arange(count, device=start.device)
        return self._order.index_select(0, places)

    def epoch(self) -> torch.Tensor:
        """[1] int64."""
        return (self.step + self._shift) // self.steps_per_epoch
