"""One pre-training step on synthetic rows, timed as a whole and in its parts.

The step is the training loop's own: gather, mask, forward, backward, clip, AdamW, from rows on the
device. Rows are random, so nothing but the corpus itself is missing from what `spanbert pretrain`
does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from spanbert_ext.masking.masker import SpanMasker
from spanbert_ext.model.attention import attention_path
from spanbert_ext.model.pretraining import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.training.config import OptimizerOptions, PretrainConfig, RuntimeOptions
from spanbert_ext.training.device_step import DeviceStep
from spanbert_ext.training.graphed_step import WARM_UP_STEPS, GraphedStep
from spanbert_ext.training.loop import Step, accumulate, update
from spanbert_ext.training.objective import LoopSettings
from spanbert_ext.training.optimizer import build_optimizer
from spanbert_ext.training.pretrain import PretrainObjective
from spanbert_ext.training.pretrain_batches import MicroBatch
from spanbert_ext.training.resident import ResidentRows
from spanbert_ext.training.run_step import build_replica, choose_compile, describe_step

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


class SyntheticRows:
    """`device_step.DeviceBatches` over the same random rows in every step, in another order and
    masked anew each time.

    Args:
        tokens: [T] int64 on the device.
        cu_seqlens: [N + 1] int64, borders of the sequences.
        masker: over the model's vocabulary.
        row_length: every multiple of it is a border of two sequences.
    """

    num_micro_batches = 1

    def __init__(
        self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, masker: SpanMasker, row_length: int
    ):
        self._count, self._capacity = tokens.numel(), cu_seqlens.numel() - 1
        self._masker, self._row_length = masker, row_length
        self._num_rows = tokens.numel() // row_length
        rows = torch.arange(self._num_rows + 1, device=tokens.device)
        self._rows = ResidentRows(
            tokens.view(-1, row_length).to(torch.int32),
            torch.searchsorted(cu_seqlens, rows * row_length),
            cu_seqlens.diff(),
            torch.arange(self._capacity, device=tokens.device),
            self._capacity,
        )
        self.step_counter = torch.zeros(1, dtype=torch.int64, device=tokens.device)

    def seek(self, step: int) -> int:
        """All tokens of the batch; the counter moves by `advance` alone."""
        return self._count

    def advance(self) -> None:
        """The counter goes to the next step."""
        self.step_counter.add_(1)

    def batch_on_device(self, micro: torch.Tensor | int) -> MicroBatch:
        """The rows, rotated by the step, with the masks of epoch `step`."""
        device = self.step_counter.device
        row_ids = (torch.arange(self._num_rows, device=device) + self.step_counter) % self._num_rows
        tokens, cu_seqlens, sample_ids = self._rows.batch(row_ids, self._capacity)
        masked = self._masker.packed(tokens, cu_seqlens, sample_ids, epoch=self.step_counter)
        length = self._row_length
        return MicroBatch(masked, cu_seqlens, self._count, length, length)


def synthetic_stream(
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
        options: graphs and torch.compile, as in training; `auto` as a run chooses.
    """

    def __init__(
        self,
        config: SpanBertConfig,
        rows: int,
        length: int,
        device: torch.device,
        precision: str,
        lengths: Sequence[int] = (),
        options: RuntimeOptions | None = None,
    ):
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        self.model = SpanBertForPreTraining(config).to(device).train()
        self.optimizer = build_optimizer(self.model, OptimizerOptions())
        starts = torch.arange(config.vocab_size) % 5 != 0
        masker = SpanMasker(
            starts, _SPECIAL_IDS, _MASK_ID, max_span_targets=config.max_span_targets
        )
        stream = synthetic_stream(rows, length, config.vocab_size, device, lengths)
        objective = PretrainObjective(PretrainConfig())
        objective.data = self._data = SyntheticRows(*stream, masker, length)
        self._objective = objective
        options = options or RuntimeOptions()
        self.compiled = choose_compile(options.compile)
        replica = build_replica(self.model, self.compiled)
        settings = LoopSettings(1_000_000, 1e-4, 10_000, 1.0, precision, 100)
        self._eager = DeviceStep(self.model, self.optimizer, objective, settings, replica)
        self._step: Step = self._eager
        if device.type == "cuda" and options.graph != "off":
            self._step = GraphedStep(self._eager, required=options.graph == "on")
        self.steps = 0

    def __call__(self) -> None:
        """One update."""
        self._step(self.steps)
        self.steps += 1

    def warm_up(self) -> None:
        """The updates before the first that is a replay, and that one."""
        for _ in range(WARM_UP_STEPS + 1 if isinstance(self._step, GraphedStep) else 1):
            self()

    def losses(self) -> list[float]:
        """Means of both losses since the last call; waits."""
        return self._step.totals.read()[0]

    def describe(self) -> str:
        """What runs: kind of step and attention."""
        kind = describe_step(self._step, self.compiled)
        if isinstance(self._step, GraphedStep) and not self._step.captured:
            kind += " (not captured)"
        return f"{kind}, attention {self.attention()}"

    def parts(self) -> dict[str, float]:
        """Seconds of each of PARTS in one update, done operation by operation."""
        marks = Marks(self.device)

        def encoded(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            marks.mark("encoder forward")
            if hidden.requires_grad:
                hidden.register_hook(lambda _grad: marks.mark("heads and loss"))

        handle = self.model.encoder.register_forward_hook(encoded)
        try:
            marks.mark("start")
            micro = self._data.batch_on_device(0)
            marks.mark("masking")
            accumulate(self.model, self._objective, [micro], self.device, self.precision)
            marks.mark("encoder backward")
            update(self.model, self.optimizer, clip_norm=1.0)
            self._data.advance()
            marks.mark("clip and AdamW")
        finally:
            handle.remove()
        self.steps += 1
        return marks.seconds()

    def attention(self) -> str:
        """Which attention the step uses, as `attention_path` names it."""
        config = self.model.config
        width = config.hidden_size // config.num_attention_heads
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float32
        query = torch.empty(1, config.num_attention_heads, width, dtype=kind, device=self.device)
        return attention_path(query, config.attention_probs_dropout_prob)
