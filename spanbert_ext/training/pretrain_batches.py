"""The batches of pre-training: packed rows of a corpus with their masks, from the host or made on
the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from spanbert_ext.data import Corpus, PackedRows, PairedRows, open_rows
from spanbert_ext.data.mixture import MixedCorpus
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.masking.masker import SpanMasker
from spanbert_ext.ops import backend
from spanbert_ext.training.config import MaskingOptions, PretrainConfig
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.resident import (
    MEMORY_SHARE,
    ResidentOrder,
    ResidentRows,
    resident_bytes,
)

# Held-out masks are the same in every validation of every run, whatever its seed.
_VALIDATION_SEED, _VALIDATION_EPOCH = 20_000, 0


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences with their masks.

    Args:
        masked: targets and corrupted ids; `masked.input_ids` is [T].
        cu_seqlens: [N+1] int64 starts of the sequences, then T.
        tokens: tokens that are not padding; None where only the device knows.
        max_length: bound of a sequence's length.
        row_length: what every row is padded to, None without padding.
        token_type_ids: [T] int64 segment of each token, None for single sequences.
        nsp_labels: [N] int64, 1 where the second segment is random, None for single sequences.
    """

    masked: MaskedBatch
    cu_seqlens: torch.Tensor
    tokens: int | None
    max_length: int
    row_length: int | None
    token_type_ids: torch.Tensor | None = None
    nsp_labels: torch.Tensor | None = None


class PretrainBatches:
    """An `objective.Batches` of packed rows; with resident rows a `device_step.DeviceBatches`.

    Args:
        corpus, tokenizer, config: of the run.
        device: of the batches; resident rows are copied there now.
        ranks: who shares the batches.

    `resident` says whether there are any.

    Raises:
        ConfigError: pairs of a mixture.
        DataError: the corpus fills less than a batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
    ):
        self._config = config
        self._device = device
        self._ranks = ranks
        self._micro_rows = config.micro_rows(ranks.world)
        self._shift = 0
        self._train, self._held_out = (
            _rows(corpus, config, split) for split in ("train", "validation")
        )
        self._masker = build_masker(tokenizer, config.masking, config.seed)
        self._held_out_masker = build_masker(tokenizer, config.masking, _VALIDATION_SEED)
        if len(self._train) < config.batch.rows:
            fitting = fitting_rows(config, len(self._train), ranks.world)
            remedy = f"`--batch.rows {fitting}` takes what is there, " if fitting else ""
            raise DataError(
                f"{config.corpus} fills {len(self._train)} rows of {config.batch.max_length} "
                f"tokens, one batch takes batch.rows={config.batch.rows}; {remedy}"
                f"`--batch.max_length {max(8, config.batch.max_length // 2)}` gives more, shorter "
                "ones; or prepare more text"
            )
        self._rows_of = self._train.order(config.batch.rows, config.seed)
        self.num_micro_batches = config.batch.rows // ranks.world // self._micro_rows
        wanted = config.batch.resident
        fits = not config.batch.pairs and fits_on_device(self._train, device)
        self.resident = wanted == "on" or (wanted == "auto" and fits)
        # On an accelerator shapes must not depend on data (CUDA graphs, no allocator growth).
        self._padded = self.resident or device.type != "cpu" or backend.cuda_path(device)
        if self.resident:
            self._rows_on_device = ResidentRows.of(self._train, device)
            self._order = ResidentOrder(self._train, config.batch.rows, config.seed, device)
            self._capacity = self._train.max_sequences(self._micro_rows)

    @property
    def num_held_out_rows(self) -> int:
        """Rows of a validation; 0 where the corpus has no held-out part."""
        return min(len(self._held_out), self._config.validation.rows)

    @property
    def shift(self) -> int:
        """Batches jumped over."""
        return self._shift

    @shift.setter
    def shift(self, batches: int) -> None:
        self._shift = batches
        if self.resident:
            self._order.shift_by(batches)

    def batches(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of a step: a pure function of settings, shift and step."""
        epoch, row_ids = self._rows_of.of_step(step + self._shift)
        share = row_ids[self._ranks.share_of(len(row_ids))]
        return [
            self._mask(self._train, self._masker, share[i : i + self._micro_rows], epoch)
            for i in range(0, len(share), self._micro_rows)
        ]

    def num_tokens(self, step: int) -> int:
        """Tokens of a step on all ranks that are not padding."""
        _, row_ids = self._rows_of.of_step(step + self._shift)
        return int(self._train.row_tokens(row_ids).sum())

    def describe(self, step: int) -> dict[str, Any]:
        """What identifies a step's batch: epoch, row numbers, sequence numbers."""
        epoch, row_ids = self._rows_of.of_step(step + self._shift)
        samples = self._train.batch(row_ids).sample_ids.tolist()
        return {"epoch": int(epoch), "rows": row_ids.tolist(), "sample_ids": samples}

    @property
    def step_counter(self) -> torch.Tensor:
        """[1] int64 on the device: the step that `batch_on_device` makes batches of."""
        return self._order.step

    def seek(self, step: int) -> int:
        """Make `step` the next one; its number of tokens that are not padding."""
        return self._order.seek(step)

    def advance(self) -> None:
        """Move the counter to the next step."""
        self._order.advance()

    def batch_on_device(self, micro: torch.Tensor | int) -> MicroBatch:
        """Micro-batch `micro` ([1] int64 or a number) of the step at the counter; what
        `batches(step)[micro]` is on a GPU, without the host.
        """
        rows = self._micro_rows
        first = self._ranks.share_of(self._config.batch.rows).start
        row_ids = self._order.row_ids(micro * rows + first, rows)
        tokens, cu_seqlens, sample_ids = self._rows_on_device.batch(row_ids, self._capacity)
        masked = self._masker.packed(
            tokens,
            cu_seqlens,
            sample_ids=sample_ids,
            epoch=self._order.epoch(),
            candidates=self._rows_on_device.candidates(row_ids),
        )
        length = self._train.max_length
        return MicroBatch(masked, cu_seqlens, None, length, length)

    def held_out_batches(self) -> Iterator[MicroBatch]:
        """This rank's part of the validation rows, with fixed masks; as many batches on every rank,
        the last perhaps without targets.
        """
        rows = self._held_out.selection(self.num_held_out_rows)
        micro, world = self._micro_rows, self._ranks.world
        parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
        for turn in range(0, len(parts), world):
            number = turn + self._ranks.rank
            own = parts[min(number, len(parts) - 1)]
            batch = self._mask(self._held_out, self._held_out_masker, own, _VALIDATION_EPOCH)
            yield batch if number < len(parts) else without_targets(batch)

    def _mask(self, rows: PackedRows, masker: SpanMasker, row_ids, epoch: int) -> MicroBatch:
        packed = rows.batch(row_ids, pad=self._padded)
        lengths = packed.cu_seqlens[1:] - packed.cu_seqlens[:-1]
        real = int(lengths[packed.sample_ids >= 0].sum())
        tokens = self._on_device(packed.tokens)
        cu_seqlens = self._on_device(packed.cu_seqlens)
        row_length = rows.max_length if self._padded else None
        extra = {}
        if packed.nsp_labels is None:
            borders, sample_ids = cu_seqlens, packed.sample_ids
        else:
            borders, sample_ids = self._on_device(packed.segment_cu_seqlens), packed.segment_ids
            names = ("token_type_ids", "nsp_labels")
            extra = {name: self._on_device(getattr(packed, name)) for name in names}
        marks = packed.candidates
        masked = masker.packed(
            tokens,
            borders,
            sample_ids=self._on_device(sample_ids),
            epoch=int(epoch),
            candidates=None if marks is None else self._on_device(marks),
        )
        return MicroBatch(masked, cu_seqlens, real, rows.max_length, row_length, **extra)

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # a copy from pageable memory would wait for the stream
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _rows(corpus: Corpus, config: PretrainConfig, split: str) -> PackedRows:
    batch, candidates = config.batch, config.masking.candidates()
    if batch.pairs:
        if isinstance(corpus, MixedCorpus):
            raise ConfigError("batch.pairs: pairs are made of one corpus; corpus names a mixture")
        return PairedRows(
            corpus, batch.max_length, split, candidates=candidates, short_prob=batch.short_prob
        )
    return open_rows(corpus, batch.max_length, split, batch.rows, candidates)


def training_rows(corpus: Corpus, config: PretrainConfig) -> PackedRows:
    """The rows that a run trains on."""
    return _rows(corpus, config, "train")


def fitting_rows(config: PretrainConfig, found: int, world: int) -> int:
    """The largest `batch.rows` that a corpus of `found` rows fills and `world` processes can share
    in their micro-batches; 0 if there is none."""
    unit = world * (config.batch.micro_rows or 1)
    return found - found % unit


def without_targets(micro: MicroBatch) -> MicroBatch:
    """The batch with nothing to predict: its losses and counts are 0."""
    nothing = torch.full_like(micro.masked.target_ids, -100)
    masked = dataclasses.replace(micro.masked, target_ids=nothing, sbo_ids=nothing)
    labels = micro.nsp_labels
    labels = None if labels is None else torch.full_like(labels, -100)
    return dataclasses.replace(micro, masked=masked, nsp_labels=labels)


def fits_on_device(rows: PackedRows, device: torch.device) -> bool:
    """Whether the rows take at most `MEMORY_SHARE` of a GPU's free memory; False on a CPU, where
    there is nothing to gain."""
    if device.type != "cuda":
        return False
    return resident_bytes(rows) <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def build_masker(
    tokenizer: PreTrainedTokenizerBase, options: MaskingOptions, seed: int
) -> SpanMasker:
    """SpanMasker with the run's options."""
    return SpanMasker.from_tokenizer(
        tokenizer,
        seed=seed,
        mask_ratio=options.mask_ratio,
        geometric_p=options.geometric_p,
        min_words=options.min_words,
        max_words=options.max_words,
        replacement=options.replacement,
        max_span_targets=options.max_span_targets,
        scheme=options.scheme,
        candidate_prob=options.candidate_prob,
        endpoints=options.endpoints,
    )
