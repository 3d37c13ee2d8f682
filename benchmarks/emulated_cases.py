"""What a pre-training step launches, at the published base shapes, and the least each kernel moves.

Every operation runs with the shapes and the dtypes a step gives it, on fewer rows: what a row costs
does not depend on them. `least` counts each input of a kernel once and each output once, in bytes:
whatever a kernel hands to the next one, as partial sums, is the output of the one and the input of
the other. Ids and gradients of ignored rows are counted where the kernel has to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks import workloads
from benchmarks.harness import DTYPES
from spanbert_ext.ops import backend, sbo_rows
from spanbert_ext.ops.cross_entropy_rows import cross_entropy_rows_
from spanbert_ext.ops.reference.sbo import IGNORE
from spanbert_ext.training.config import RuntimeOptions
from spanbert_ext.training.step_timer import PretrainStep

C = backend.native_module
HIDDEN, POSITIONS, VOCAB, STRIDE = 768, workloads.SLOTS, workloads.VOCAB, 29056
ROWS = 4  # of 512 tokens
MASKED_ROWS = 64  # the vocabulary's table, read once, counts less
WIDE = 4  # bytes of a working value
INDEX = 8  # bytes of an id or index


@dataclass(frozen=True)
class Operation:
    """One native call.

    Args:
        name: of the operation.
        dtype: of its rows.
        shapes: what it ran on.
        run: the call.
        least: bytes of each of its kernels.
        whole: the least the operation moves, without what its kernels hand to each other.
    """

    name: str
    dtype: str
    shapes: dict[str, int]
    run: Callable[[], object]
    least: dict[str, int]
    whole: int


def operations() -> Iterator[Operation]:
    """All operations of a step in bf16 under autocast, where the residual stream is fp32, and of
    one in fp32."""
    batch = workloads.masker()(
        workloads.text_rows(ROWS), sample_ids=torch.arange(ROWS)
    )  # with its unused slots, as on a GPU
    yield masking()
    for dtype in ("bf16", "fp32"):
        yield from residual(dtype, "fp32")
        yield from boundaries(batch, dtype)
        yield from first_layer(batch, dtype)
        yield from gelu_layer_norm(dtype, batch.sbo_ids)
        yield loss(batch, dtype)


def launched_by_a_step(precision: str) -> Callable[[], None]:
    """One whole step of the published base model with a single layer, on short rows."""
    config = workloads.model_config("base", 0.0, num_hidden_layers=1)
    return PretrainStep(
        config, 2, 64, torch.device("cpu"), precision, (), RuntimeOptions(graph="off")
    )


def _random(*shape: int, dtype: str, seed: int) -> torch.Tensor:
    return workloads.random_like_hidden(*shape, dtype=DTYPES[dtype], device="cpu", seed=seed)


def _parameters(*shape: int) -> list[torch.Tensor]:
    return [_random(*shape, dtype="fp32", seed=seed) for seed in (11, 12)]


def _chunk_sum(chunks: int, columns: int, out: int) -> int:
    """Partial sums read once, sums of `out` bytes written."""
    return chunks * columns * WIDE + out


def masking() -> Operation:
    """Tokens are read, ids and labels written; then the targets of the batch are listed."""
    tokens = workloads.text_rows(MASKED_ROWS)
    masker, total = workloads.masker(), tokens.numel()
    batch = masker(tokens, sample_ids=torch.arange(MASKED_ROWS))
    targets, used = len(batch.target_ids), int((batch.target_ids != IGNORE).sum())
    spans = len(batch.span_left)
    bounds = 3 * INDEX * MASKED_ROWS + INDEX  # starts, ends, sample ids; epoch
    bits = INDEX * (total // 64)  # of the eligible pieces, and as many of those masked
    sums = 2 * INDEX * (MASKED_ROWS + 1)
    table = len(tokens.unique())  # a byte of the vocabulary's for each kind of token
    replaced = int((batch.input_ids.view(-1) != tokens.view(-1)).sum())
    return Operation(
        "span_mask", "int64", {"rows": MASKED_ROWS, "length": workloads.LENGTH, "targets": used},
        lambda: masker(tokens, sample_ids=torch.arange(MASKED_ROWS)),
        {
            "span_sample": 3 * INDEX * total + table + bounds + 2 * bits + sums,
            "running_sums": 2 * sums,
            # Of a target: its token, its id and label again, and at most one draw from the pool.
            "span_emit": bounds + 2 * bits + sums + INDEX * (5 * targets + 2 * spans + 1)
            + 3 * INDEX * used + INDEX * (replaced // 9),
        },
        3 * INDEX * total + table + bounds + INDEX * (5 * targets + 2 * spans + 1),
    )  # fmt: skip


def residual(dtype: str, stream: str) -> Iterator[Operation]:
    """LN(dropout(x) + residual) behind both halves of a layer."""
    rows, threshold, seed = ROWS * workloads.LENGTH, 6554, torch.tensor([5])
    x, base = (
        _random(rows, HIDDEN, dtype=dtype, seed=1),
        _random(rows, HIDDEN, dtype=stream, seed=2),
    )
    grad, (weight, bias) = _random(rows, HIDDEN, dtype=stream, seed=3), _parameters(HIDDEN)
    operation = torch.ops.spanbert_ext
    _, mean, rstd = operation.dropout_norm(x, base, weight, bias, 1e-12, threshold, seed, 1, False)
    chunks = -(-rows // C.norm_rows_per_chunk(rows))
    narrow, wide = x.element_size() * HIDDEN, base.element_size() * HIDDEN
    moments, sums = 2 * WIDE * rows, 2 * HIDDEN
    least = rows * (narrow + 2 * wide) + moments + sums * WIDE + INDEX
    back = rows * (2 * narrow + 3 * wide) + moments + HIDDEN * WIDE + INDEX
    shapes = {"rows": rows, "hidden": HIDDEN}
    yield Operation(
        "dropout_norm", dtype, shapes,
        lambda: operation.dropout_norm(x, base, weight, bias, 1e-12, threshold, seed, 1, False),
        {"dropout_norm": least},
        least,
    )  # fmt: skip
    yield Operation(
        "dropout_norm_backward", dtype, shapes,
        lambda: operation.dropout_norm_backward(
            grad, x, base, weight, mean, rstd, threshold, seed, 1, False
        ),
        {
            "dropout_norm_backward": back + chunks * sums * WIDE,
            "sum_chunks": _chunk_sum(chunks, sums, sums * WIDE),
        },
        back + sums * WIDE,
    )  # fmt: skip


def gelu_layer_norm(dtype: str, ids: torch.Tensor) -> Iterator[Operation]:
    """LN(GELU(x)), the second layer of the SBO head: rows [R] without an id are zero."""
    rows, used = len(ids), int((ids != IGNORE).sum())
    x, grad = (_random(rows, HIDDEN, dtype=dtype, seed=seed) for seed in (4, 5))
    weight, bias = _parameters(HIDDEN)
    _, mean, rstd = sbo_rows.norm(x, ids, weight, bias, 1e-12)
    row, chunks = x.element_size() * HIDDEN, -(-rows // C.rows_per_chunk)
    moments, looked_at = 2 * WIDE, INDEX * rows
    least = row * (used + rows) + moments * rows + looked_at + 2 * HIDDEN * WIDE
    back = row * (2 * used + rows) + moments * used + looked_at + HIDDEN * WIDE
    name = "gelu_layer_norm, SBO"
    shapes = {"rows": rows, "used": used, "hidden": HIDDEN}
    yield Operation(
        name, dtype, shapes, lambda: sbo_rows.norm(x, ids, weight, bias, 1e-12),
        {"gelu_layer_norm": least},
        least,
    )  # fmt: skip
    yield Operation(
        name.replace("norm", "norm_backward"), dtype, shapes,
        lambda: sbo_rows.norm_backward(grad, x, ids, weight, mean, rstd),
        {
            "gelu_layer_norm_backward": back + chunks * 3 * HIDDEN * WIDE,
            "sum_gradients": _chunk_sum(chunks, 3 * HIDDEN, 3 * HIDDEN * WIDE),
        },
        back + 3 * HIDDEN * WIDE,
    )  # fmt: skip


def boundaries(batch, dtype: str) -> Iterator[Operation]:
    """The tokens beside each span; a token between two spans is read once, and written once."""
    left, right, tokens = batch.span_left, batch.span_right, batch.labels.numel()
    inside = right > 0
    ends = len(torch.cat((left[inside], right[inside])).unique())
    hidden = _random(tokens, HIDDEN, dtype=dtype, seed=6)
    pairs = sbo_rows.gather(hidden, left, right)
    spans, used, row = len(left), int(inside.sum()), hidden.element_size() * HIDDEN
    least = 2 * INDEX * spans + row * (ends + 2 * spans)
    back = 2 * INDEX * spans + row * (2 * used + ends)
    shapes = {"spans": spans, "used": used, "hidden": HIDDEN}
    yield Operation(
        "gather_boundaries", dtype, shapes, lambda: sbo_rows.gather(hidden, left, right),
        {"gather_boundaries": least},
        least,
    )  # fmt: skip
    yield Operation(  # what no span's end is, a fill of memory has written before
        "gather_boundaries_backward", dtype, shapes,
        lambda: sbo_rows.gather_backward(pairs, left, right, tokens),
        {"gather_boundaries_backward": back},
        back,
    )  # fmt: skip


def first_layer(batch, dtype: str) -> Iterator[Operation]:
    """LN(GELU(span row + position row)) of each target that has boundaries."""
    index = batch.target_spans, batch.target_offsets, batch.sbo_ids
    wanted = batch.sbo_ids != IGNORE
    targets, spans, used = len(wanted), len(batch.span_left), int(wanted.sum())
    used_spans = len(batch.target_spans[wanted].unique())
    span_rows = _random(spans, HIDDEN, dtype=dtype, seed=7)
    position_rows = _random(POSITIONS, HIDDEN, dtype=dtype, seed=8)
    grad, (weight, bias) = _random(targets, HIDDEN, dtype=dtype, seed=9), _parameters(HIDDEN)
    _, mean, rstd = sbo_rows.first_layer(span_rows, position_rows, *index, weight, bias, 1e-12)
    row, chunks = span_rows.element_size() * HIDDEN, -(-spans // C.spans_per_chunk)
    tables = row * (used_spans + len(batch.target_offsets[wanted].unique()))
    listed = INDEX * (targets + 2 * used)  # ids; spans and offsets where there is one
    least = tables + listed + row * targets + 2 * WIDE * (targets + HIDDEN)
    back = tables + listed + row * (used + spans) + 2 * WIDE * used + WIDE * HIDDEN
    sums = 2 * HIDDEN * WIDE + POSITIONS * row
    columns, shapes = (2 + POSITIONS) * HIDDEN, {"targets": targets, "used": used, "spans": spans}
    yield Operation(
        "sbo_first_layer", dtype, shapes,
        lambda: sbo_rows.first_layer(span_rows, position_rows, *index, weight, bias, 1e-12),
        {"sbo_first_layer": least},
        least,
    )  # fmt: skip
    yield Operation(
        "sbo_first_layer_backward", dtype, shapes,
        lambda: sbo_rows.first_layer_backward(
            grad, span_rows, position_rows, *index, weight, mean, rstd
        ),
        {
            "first_targets": INDEX * (targets + used + used_spans),
            "sbo_first_layer_backward": back + INDEX * spans + chunks * columns * WIDE,
            "sum_gradients": _chunk_sum(chunks, columns, sums),
        },
        back + sums,
    )  # fmt: skip


def loss(batch, dtype: str) -> Operation:
    """The vocabulary loss of as many MLM rows as SBO rows, one chunk of bias gradients: losses, and
    gradients in place of the logits."""
    half = C.column_rows_per_chunk // 2
    targets = torch.cat((batch.target_ids[:half], batch.sbo_ids[:half]))
    rows, used = len(targets), int((targets != IGNORE).sum())
    head = torch.arange(rows) // half
    logits = _random(rows, STRIDE, dtype=dtype, seed=10)
    bias, _ = _parameters(2, VOCAB)
    scale, chunks = torch.full((rows,), 1 / used), -(-rows // C.column_rows_per_chunk)
    read, sums = used * VOCAB * logits.element_size(), 2 * VOCAB
    listed = INDEX * (rows + used)  # targets, and the heads of those that count
    least = read + rows * STRIDE * logits.element_size() + listed + WIDE * (used + rows + sums)
    return Operation(
        "cross_entropy", dtype, {"rows": rows, "used": used, "vocabulary": VOCAB, "stride": STRIDE},
        lambda: cross_entropy_rows_(logits, targets, bias, head, scale, VOCAB),
        {
            "cross_entropy_rows": least,
            "bias_gradient": read + listed + WIDE * chunks * sums,
            "sum_chunks": _chunk_sum(chunks, sums, sums * WIDE),
        },
        least + sums * WIDE,
    )  # fmt: skip
