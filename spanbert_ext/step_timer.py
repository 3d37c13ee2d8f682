"""One pre-training step on made-up rows, timed as a whole and in its parts.

The step is the training loop's own: mask, forward, backward, clip, AdamW. Rows are full and random,
so nothing but the corpus reader is missing from what `spanbert pretrain` does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from spanbert_ext.attention import attention_path
from spanbert_ext.masked_batch import MaskedBatch
from spanbert_ext.masking import SpanMasker
from spanbert_ext.modeling import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.training.config import OptimizerOptions
from spanbert_ext.training.loop import accumulate, update
from spanbert_ext.training.optimizer import build_optimizer

PARTS = ("masking", "encoder forward", "heads and loss", "encoder backward", "clip and AdamW")
# BERT's layout: [PAD], [UNK], [CLS], [SEP], [MASK] first, a fifth of the others continue a word.
_SPECIAL_IDS, _MASK_ID, _CLS, _SEP = (0, 1, 2, 3, 4), 4, 2, 3


class Marks:
    """Points in time of a step: of the host on a CPU, of the stream on a GPU."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._points: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, name: str) -> None:
        """The part `name` ends here."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._points.append((name, event))
        else:
            self._points.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Time up to each mark since the one before; waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, start), (name, end) in zip(self._points, self._points[1:], strict=False):
            spent = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
            found[name] = found.get(name, 0.0) + spent
        return found


class MadeUpRows:
    """`loop.Task` over the same random rows in every step, masked anew each time.

    Args:
        tokens: [T] int64 on the device.
        cu_seqlens: [N + 1] int64, borders of the sequences.
        masker: over the model's vocabulary.
        row_length: every multiple of it is a border of two sequences.
    """

    loss_names = ("mlm_loss", "sbo_loss")

    def __init__(
        self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, masker: SpanMasker, row_length: int
    ):
        self._tokens, self._cu_seqlens = tokens, cu_seqlens
        self._masker, self._row_length = masker, row_length

    def batches(self, step: int) -> list[MaskedBatch]:
        """The rows with the masks of epoch `step`."""
        return [self._masker.packed(self._tokens, self._cu_seqlens, epoch=step)]

    def num_tokens(self, micro_batch: MaskedBatch) -> int:
        """All tokens of the batch."""
        return self._tokens.numel()

    def counts(self, micro_batch: MaskedBatch) -> torch.Tensor:
        """[2] int64, targets of both heads."""
        targets = (micro_batch.target_ids, micro_batch.sbo_ids)
        return torch.stack([(ids != -100).sum() for ids in targets])

    def loss(
        self, model: nn.Module, micro_batch: MaskedBatch, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Total loss and [2] detached parts."""
        output = model(
            micro_batch.input_ids,
            cu_seqlens=self._cu_seqlens,
            batch=micro_batch,
            max_seqlen=self._row_length,
            row_length=self._row_length,
            num_mlm_targets=totals[0],
            num_sbo_targets=totals[1],
        )
        return output.loss, torch.stack([output.mlm_loss, output.sbo_loss]).detach().float()


def made_up_stream(
    rows: int, length: int, vocab_size: int, device: torch.device, lengths: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens [rows * length] and cu_seqlens; `lengths` [N] fill the rows one after another,
    none of them crossing a row's end; without them every row is one sequence.
    """
    generator = torch.Generator().manual_seed(0)
    total = rows * length
    tokens = torch.randint(len(_SPECIAL_IDS), vocab_size, (total,), generator=generator)
    borders = torch.tensor([0, *(lengths or [length] * rows)]).cumsum(0)
    if int(borders[-1]) != total or not set(range(0, total, length)) <= set(borders.tolist()):
        raise ValueError(f"lengths must fill {rows} rows of {length} tokens one by one")
    tokens[borders[:-1]], tokens[borders[1:] - 1] = _CLS, _SEP
    return tokens.to(device), borders.to(device)


class PretrainStep:
    """A model, its optimizer and rows to train on; a call is one update.

    Args:
        config: of the model; weights are random.
        rows, length: tokens of a batch.
        device, precision: as in training.
        lengths: sequence lengths that fill the rows; default one sequence a row.
    """

    def __init__(
        self,
        config: SpanBertConfig,
        rows: int,
        length: int,
        device: torch.device,
        precision: str,
        lengths: Sequence[int] = (),
    ):
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        self.model = SpanBertForPreTraining(config).to(device).train()
        self.optimizer = build_optimizer(self.model, OptimizerOptions())
        starts = torch.arange(config.vocab_size) % 5 != 0
        masker = SpanMasker(
            starts, _SPECIAL_IDS, _MASK_ID, max_span_targets=config.max_span_targets
        )
        stream = made_up_stream(rows, length, config.vocab_size, device, lengths)
        self.task = MadeUpRows(*stream, masker, length)
        self.steps = 0

    def __call__(self) -> torch.Tensor:
        """One update; the loss parts [2], on the device."""
        return self._step(None)

    def parts(self) -> dict[str, float]:
        """Seconds of each of PARTS in one update."""
        marks = Marks(self.device)
        encoder = self.model.encoder

        def encoded(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            marks.mark("encoder forward")
            if hidden.requires_grad:
                hidden.register_hook(lambda _grad: marks.mark("heads and loss"))

        handle = encoder.register_forward_hook(encoded)
        try:
            self._step(marks)
        finally:
            handle.remove()
        return marks.seconds()

    def attention(self) -> str:
        """Which attention the step uses, as `attention_path` names it."""
        config = self.model.config
        width = config.hidden_size // config.num_attention_heads
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float32
        query = torch.empty(1, config.num_attention_heads, width, dtype=kind, device=self.device)
        return attention_path(query, config.attention_probs_dropout_prob)

    def _step(self, marks: Marks | None) -> torch.Tensor:
        mark = marks.mark if marks is not None else lambda _name: None
        mark("start")
        micro_batches = self.task.batches(self.steps)
        mark("masking")
        parts = accumulate(self.model, self.task, micro_batches, self.device, self.precision)
        mark("encoder backward")
        update(self.model, self.optimizer, clip_norm=1.0)
        mark("clip and AdamW")
        self.steps += 1
        return parts
