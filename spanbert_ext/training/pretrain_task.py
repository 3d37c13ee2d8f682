"""Pre-training as the loop sees it: batches of packed rows, and the loss of both heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from spanbert_ext.data import Corpus, PackedRows, open_rows
from spanbert_ext.errors import DataError
from spanbert_ext.masked_batch import MaskedBatch
from spanbert_ext.masking import SpanMasker
from spanbert_ext.training.config import MaskingOptions, PretrainConfig
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
    """

    masked: MaskedBatch
    cu_seqlens: torch.Tensor
    tokens: int | None
    max_length: int
    row_length: int | None


class PretrainTask:
    """Masked language model and span boundary objective on packed rows; a `loop.Task`, and with
    resident rows a `device_step.DeviceTask`.

    Args:
        corpus, tokenizer, config: of the run.
        device: of the batches; resident rows are copied there now.

    `resident` says whether there are any.
    """

    loss_names = ("mlm_loss", "sbo_loss")

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        device: torch.device,
    ):
        self._config = config
        self._device = device
        length, step_rows = config.batch.max_length, config.batch.rows
        self._train = open_rows(corpus, length, "train", step_rows)
        self._held_out = open_rows(corpus, length, "validation", step_rows)
        self._masker = build_masker(tokenizer, config.masking, config.seed)
        self._held_out_masker = build_masker(tokenizer, config.masking, _VALIDATION_SEED)
        if len(self._train) < config.batch.rows:
            raise DataError(
                f"{config.corpus} fills {len(self._train)} rows of {config.batch.max_length} "
                f"tokens, one batch takes batch.rows={config.batch.rows}; "
                "prepare more text, or use fewer or shorter rows"
            )
        self._rows_of = self._train.order(config.batch.rows, config.seed)
        self.num_micro_batches = config.batch.rows // config.micro_rows()
        wanted = config.batch.resident
        self.resident = wanted == "on" or (wanted == "auto" and fits_on_device(self._train, device))
        # On an accelerator shapes must not depend on data (CUDA graphs, no allocator growth).
        self._padded = self.resident or device.type != "cpu"
        if self.resident:
            self._rows_on_device = ResidentRows.of(self._train, device)
            self._order = ResidentOrder(self._train, config.batch.rows, config.seed, device)
            self._capacity = self._train.max_sequences(config.micro_rows())

    @property
    def num_held_out_rows(self) -> int:
        """Rows of a validation; 0 where the corpus has no held-out part."""
        return min(len(self._held_out), self._config.validation.rows)

    def batches(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step: a pure function of the settings and the step."""
        epoch, row_ids = self._rows_of.of_step(step)
        micro = self._config.micro_rows()
        return [
            self._mask(self._train, self._masker, row_ids[i : i + micro], epoch)
            for i in range(0, len(row_ids), micro)
        ]

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
        rows = self._config.micro_rows()
        row_ids = self._order.row_ids(micro * rows, rows)
        tokens, cu_seqlens, sample_ids = self._rows_on_device.batch(row_ids, self._capacity)
        masked = self._masker.packed(
            tokens, cu_seqlens, sample_ids=sample_ids, epoch=self._order.epoch()
        )
        length = self._train.max_length
        return MicroBatch(masked, cu_seqlens, None, length, length)

    def held_out_batches(self) -> Iterator[MicroBatch]:
        """The validation rows, with fixed masks."""
        rows = self._held_out.selection(self.num_held_out_rows)
        micro = self._config.micro_rows()
        for i in range(0, len(rows), micro):
            yield self._mask(
                self._held_out, self._held_out_masker, rows[i : i + micro], _VALIDATION_EPOCH
            )

    def _mask(self, rows: PackedRows, masker: SpanMasker, row_ids, epoch: int) -> MicroBatch:
        packed = rows.batch(row_ids, pad=self._padded)
        lengths = packed.cu_seqlens[1:] - packed.cu_seqlens[:-1]
        real = int(lengths[packed.sample_ids >= 0].sum())
        tokens = self._on_device(packed.tokens)
        cu_seqlens = self._on_device(packed.cu_seqlens)
        sample_ids = self._on_device(packed.sample_ids)
        masked = masker.packed(tokens, cu_seqlens, sample_ids=sample_ids, epoch=int(epoch))
        row_length = rows.max_length if self._padded else None
        return MicroBatch(masked, cu_seqlens, real, rows.max_length, row_length)

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # a copy from pageable memory would wait for the stream
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def num_tokens(self, micro_batch: MicroBatch) -> int:
        """Tokens that are not padding, of a batch that the host made."""
        return micro_batch.tokens

    def counts(self, micro_batch: MicroBatch) -> torch.Tensor:
        """[2] int64: targets of the masked language model and of the span boundary objective."""
        masked = micro_batch.masked
        return torch.stack([(masked.target_ids != -100).sum(), (masked.sbo_ids != -100).sum()])

    def loss(
        self, model: nn.Module, micro_batch: MicroBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Total loss and [2] detached parts, divided by the step's target counts."""
        masked = micro_batch.masked
        output = model(
            masked.input_ids,
            cu_seqlens=micro_batch.cu_seqlens,
            batch=masked,
            max_seqlen=micro_batch.max_length,
            row_length=micro_batch.row_length,
            num_mlm_targets=totals[0],
            num_sbo_targets=totals[1],
        )
        return output.loss, torch.stack([output.mlm_loss, output.sbo_loss]).detach().float()


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
    )
