"""What masking makes of a batch: corrupted ids, and the targets of both heads in fixed shapes."""

from __future__ import annotations

import dataclasses

import torch

from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.ops.registration import readable

_TARGET_FIELDS = ("target_positions", "target_ids", "target_spans", "target_offsets", "sbo_ids")
_SPAN_FIELDS = ("span_left", "span_right")


@dataclasses.dataclass(frozen=True, repr=False)
class MaskedBatch:
    """A masked batch; K is the target capacity, S the span capacity, both fixed by the input's
    shape.

    Used target and span slots come first, in ascending position. Unused slots hold 0, ids hold
    -100.

    Args:
        input_ids: as given; ids after masking.
        labels: as given, int64; original id at every selected position, -100 elsewhere.
        target_positions: [K] int64, flat index of each selected token, ascending.
        target_ids: [K] int64, its original id, -100 in unused slots.
        target_spans: [K] int64, index of its merged span (at most S - 1, also where spans
            overflowed).
        target_offsets: [K] int64, 0-based place in that span.
        sbo_ids: [K] int64, as target_ids, but -100 where SBO has no target.
        span_left, span_right: [S] int64, flat index of the tokens around each span, or with
            internal endpoints of its first and last; both 0 in unused slots and for spans without
            boundaries. A span with boundaries always has span_right > 0, and span_right >
            span_left but for a span of one token between internal endpoints. A token is the left
            boundary of at most one span and the right one of at most one.
        dropped_spans: [1] int64, spans beyond the capacity; they keep their MLM targets and lose
            SBO ones.

    Every field is a tensor. Beside them, `max_span_targets` is the masker's number: SBO targets
    have offsets below it, and an `SBOHead` needs as many positions. None (not known) where a batch
    was made by hand without it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    target_positions: torch.Tensor
    target_ids: torch.Tensor
    target_spans: torch.Tensor
    target_offsets: torch.Tensor
    sbo_ids: torch.Tensor
    span_left: torch.Tensor
    span_right: torch.Tensor
    dropped_spans: torch.Tensor
    max_span_targets: dataclasses.InitVar[int | None] = None

    def __post_init__(self, max_span_targets: int | None) -> None:
        object.__setattr__(self, "max_span_targets", max_span_targets)

    def __repr__(self) -> str:
        """Sizes instead of numbers; how many slots are used only where reading costs no sync."""
        ids, targets, spans = self.input_ids, len(self.target_ids), len(self.span_left)
        if readable(self.target_ids):
            used = int((self.target_ids != IGNORE).sum())
            targets = f"{used} of {targets}"
            spans = f"{int(self.target_spans[:used].max()) + 1 if used else 0} of {spans}"
        return (
            f"MaskedBatch(input_ids {list(ids.shape)} {str(ids.dtype).removeprefix('torch.')} on "
            f"{ids.device}, targets {targets}, spans {spans})"
        )

    def used(self) -> MaskedBatch:
        """The batch without its unused slots where counts are free to read (on the CPU); one slot
        always stays, so that no product downstream has to cope with nothing."""
        if not readable(self.target_ids):
            return self
        targets = int((self.target_ids != IGNORE).sum())
        spans = int(self.target_spans[:targets].max()) + 1 if targets else 0
        sizes = dict.fromkeys(_TARGET_FIELDS, targets) | dict.fromkeys(_SPAN_FIELDS, spans)
        if targets == len(self.target_ids) and spans == len(self.span_left):
            return self
        cut = {name: getattr(self, name)[: max(size, 1)] for name, size in sizes.items()}
        return dataclasses.replace(self, **cut)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedBatch:
        """The same batch on another device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: t.to(device, non_blocking=non_blocking) for name, t in fields.items()}
        )
