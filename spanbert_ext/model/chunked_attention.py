"""Attention of a packed stream on the CPU: torch's products around our softmax.

torch's fused attention has no dropout on a CPU; its other path goes through memory a dozen times.
In 16 bits and without a gradient the fused one took a third to a half longer than this, too. Here
sequences are padded to a multiple of a few positions and taken in chunks whose scores stay in
the second-level cache. A chunk has one sequence, or a power of two of short ones, so that products
come in few shapes: a 16-bit one is prepared by the library for every shape it has not seen, which
takes 20 to 150 ms. Only the probabilities are kept for the backward pass, with the mask in their
sign; everything else is written to the same memory again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spanbert_ext.ops import attention_weights as attention_op
from spanbert_ext.ops import backend
from spanbert_ext.ops.reference import dropout as dropout_reference
from spanbert_ext.ops.reference.dropout import mask_threshold
from spanbert_ext.ops.registration import check_draws, check_float

# What lengths are padded to a multiple of, by bytes of a number.
_MULTIPLES = {2: 32, 4: 16, 8: 16}
# Scores of a chunk of several sequences; two buffers of so many 16-bit numbers fit in 2 MB.
_CHUNK_SCORES = 1 << 19
# The same where nothing is kept: fewer chunks have fewer waits for the other threads.
_CHUNK_SCORES_WITHOUT_GRADIENT = 1 << 22
# Scores of a sequence's head above which torch's attention is better, which never has all of them.
_MOST_SCORES = 1 << 20


def dropped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    dropout: float,
    seed: Tensor,
    site: int,
) -> Tensor:
    """Softmax attention inside each sequence with dropout of its weights.

    Args:
        q: [Tq, heads, D]; k, v: [T, heads, D].
        cu_q, cu_k: [N + 1] borders of the sequences among queries and keys.
        dropout: probability of dropping a weight, rounded to a multiple of 2^-16.
        seed: [1] int64; a draw is a pure function of (seed, site, head, place of the query in q,
            place of the key in its sequence).
        site: 32-bit number of this place in the model.

    Returns:
        [Tq, heads, D]; 0 for queries of a sequence without keys. Differentiable once, in q, k, v.

    Raises:
        TypeError, ValueError: shape, dtype or device of an argument, borders outside the stream.
    """
    threshold = mask_threshold(dropout)
    _check(q, k, v)
    check_draws(q, seed, site, threshold)
    with torch.autocast(q.device.type, enabled=False):
        if not backend.use_native(q.device):
            return dropout_reference.dropped_attention(q, k, v, cu_q, cu_k, threshold, seed, site)
        kind = backend.product_dtype(q.device, q.dtype)
        plan = _Plan.of(
            *_all_lengths(q, k, cu_q, cu_k), q.shape[1], _MULTIPLES[kind.itemsize], _CHUNK_SCORES
        )
        return _Attention.apply(q, k, v, seed, plan, threshold, site, kind)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_float("k", k, 3)
    for name, x, shape in (("q", q, (q.shape[0], *k.shape[1:])), ("v", v, k.shape)):
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}; got {tuple(x.shape)}")
        if x.dtype != k.dtype or x.device != k.device:
            raise TypeError(f"{name} must be {k.dtype} on {k.device}, like k; got {x.dtype}")


def _all_lengths(q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor) -> tuple[tuple[int, ...], ...]:
    return _lengths("cu_q", cu_q, q), _lengths("cu_k", cu_k, k)


def _lengths(name: str, borders: Tensor, x: Tensor) -> tuple[int, ...]:
    lengths = tuple(borders.diff().tolist())
    if min(lengths, default=0) < 0 or sum(lengths) > x.shape[0]:
        raise ValueError(f"{name} must not fall or end behind {x.shape[0]}; lengths {lengths[:8]}")
    return lengths


@dataclass(frozen=True)
class _Side:
    """The queries or the keys of a chunk of n sequences, padded to one length.

    Args:
        starts, sizes: [n] int64, where the sequences lie in the stream.
        length: what they are padded to.
    """

    starts: Tensor
    sizes: Tensor
    length: int

    def take(self, x: Tensor, room: Tensor) -> Tensor:
        """[T, heads, D] to [n * heads, L, D] in memory of `room`, with zeros as padding."""
        rows = _shaped(room, len(self.sizes) * x.shape[1], self.length, x.shape[2])
        self._move(True, x, rows)
        return rows

    def put(self, rows: Tensor, out: Tensor) -> None:
        """[n * heads, L, D] to the sequences' places in `out` [T, heads, D]."""
        self._move(False, out, rows)

    def _move(self, pad: bool, x: Tensor, rows: Tensor) -> None:
        size = x.element_size()
        backend.native_module.move_heads(
            pad, x.data_ptr(), (x.stride(0) * size, x.stride(1) * size), self.starts.data_ptr(),
            self.sizes.data_ptr(), rows.data_ptr(),
            (len(self.sizes), x.shape[1], self.length, x.shape[2] * size),
        )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """The chunks, and how many queries and keys are in one."""

    chunks: Sequence[tuple[_Side, _Side]]
    queries: int
    keys: int

    @property
    def scores(self) -> int:
        """Most scores of one head of a sequence, padded."""
        return max((q.length * k.length for q, k in self.chunks), default=0)

    @classmethod
    @lru_cache(maxsize=8)  # all layers of a model have the same sequences
    def of(
        cls,
        lengths_q: tuple[int, ...],
        lengths_k: tuple[int, ...],
        heads: int,
        multiple: int,
        most: int,
    ) -> _Plan:
        """Lengths are padded to a `multiple`; several sequences of a chunk have at most `most`
        scores."""
        sides = [(_starts(lengths), lengths) for lengths in (lengths_q, lengths_k)]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, sizes in enumerate(zip(lengths_q, lengths_k, strict=True)):
            if min(sizes):
                padded = tuple(size + -size % multiple for size in sizes)
                alike.setdefault(padded, []).append(i)
        chunks = []
        for shape, members in alike.items():
            for part in _parts(members, most // (heads * shape[0] * shape[1])):
                chunks.append(
                    tuple(
                        _Side(*(torch.tensor([of[i] for i in part]) for of in side), length)
                        for side, length in zip(sides, shape, strict=True)
                    )
                )
        used = [i for members in alike.values() for i in members]
        return cls(chunks, *(sum(sizes[i] for i in used) for sizes in (lengths_q, lengths_k)))

    def buffers(self, x: Tensor, names: str) -> list[Tensor]:
        """Memory for each letter: a chunk's "q"ueries [n * heads, Lq, D], "k"eys
        [n * heads, Lk, D], or "s"cores [n * heads, Lq, Lk]."""
        most = dict.fromkeys("qks", 0)
        for queries, keys in self.chunks:
            rows = len(queries.sizes) * x.shape[1]
            sizes = queries.length * x.shape[2], keys.length * x.shape[2]
            for name, size in zip("qks", (*sizes, queries.length * keys.length), strict=True):
                most[name] = max(most[name], rows * size)
        return [x.new_empty(most[name]) for name in names]


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]


def _parts(members: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Powers of two of the members, none above `most` but single ones."""
    start = 0
    while start < len(members):
        count = max(1, min(most, len(members) - start))
        count = 1 << (count.bit_length() - 1)
        yield members[start : start + count]
        start += count


def _shaped(memory: Tensor, *shape: int) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return memory[:count].view(shape)


def _multiplied(x: Tensor, kind: torch.dtype) -> Tensor:
    """x [T, heads, D] in the dtype of the products, with rows in one piece."""
    x = x.to(kind)
    return x if x.stride(-1) == 1 else x.contiguous()


def _result_like(x: Tensor, written: int) -> Tensor:
    """Memory for results, of which `written` rows are in a chunk; the others are 0."""
    return x.new_empty(x.shape) if written == x.shape[0] else x.new_zeros(x.shape)


def without_gradient(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor | None:
    """Softmax attention inside each sequence, not differentiable; arguments and result as in
    `dropped_attention`. None where torch's is better: outside 16 bits, without our kernels or the
    hardware's 16-bit products, or for sequences whose scores are far too many to stay in a cache.
    """
    if (
        q.dtype.itemsize != 2
        or not backend.use_native(q.device)
        or backend.product_dtype(q.device, q.dtype) != q.dtype
    ):
        return None
    _check(q, k, v)
    lengths = _all_lengths(q, k, cu_q, cu_k)
    plan = _Plan.of(*lengths, q.shape[1], _MULTIPLES[2], _CHUNK_SCORES_WITHOUT_GRADIENT)
    if plan.scores > _MOST_SCORES:
        return None
    return _forward(*(_multiplied(x, q.dtype) for x in (q, k, v)), plan)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: _Plan,
    threshold: int = 0,
    seed: Tensor | None = None,
    site: int = 0,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """The parts of a chunk are those of `dropout_reference.dropped_attention`; `kept` gets the
    probabilities of every chunk, with the mask in their sign."""
    scale, heads, out = q.shape[-1] ** -0.5, q.shape[1], _result_like(q, plan.queries)
    memory_q, memory_k, memory_v, memory_o, memory_w = plan.buffers(q, "qkkqs")
    for queries, keys in plan.chunks:
        query, key = queries.take(q, memory_q), keys.take(k, memory_k)
        value = keys.take(v, memory_v)
        shape = len(queries.sizes), heads, queries.length, keys.length
        weights = _shaped(memory_w, *shape)
        scores = weights if kept is None else q.new_empty(shape)
        torch.bmm(query, key.transpose(1, 2), out=scores.flatten(0, 1))
        # Weights, or the probabilities, take the place of the scores.
        attention_op.run(
            scores, queries.starts, queries.sizes, keys.sizes, scale, threshold, seed, site,
            (weights, None if kept is None else scores),
        )  # fmt: skip
        result = _shaped(memory_o, *query.shape)
        queries.put(torch.bmm(weights.flatten(0, 1), value, out=result), out)
        if kept is not None:
            kept.append(scores)
    return out


class _Attention(torch.autograd.Function):
    """All sequences."""

    @staticmethod
    def forward(ctx, q, k, v, seed, plan, threshold, site, kind):
        inputs, kept = (q, k, v), []
        own = (_multiplied(x, kind) for x in inputs)
        out = _forward(*own, plan, threshold, seed, site, kept)
        ctx.save_for_backward(*inputs, *kept)
        ctx.settings = plan, threshold, kind
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        dtype, scale = q.dtype, q.shape[-1] ** -0.5
        plan, threshold, kind = ctx.settings
        q, k, v, grad = (_multiplied(x, kind) for x in (q, k, v, grad))
        results = [_result_like(q, plan.queries)] + [_result_like(x, plan.keys) for x in (k, v)]
        memory = plan.buffers(q, "qkkqqkss")
        for (queries, keys), signed_probs in zip(plan.chunks, kept, strict=True):
            query, key = queries.take(q, memory[0]), keys.take(k, memory[1])
            value, grad_out = keys.take(v, memory[2]), queries.take(grad, memory[3])
            scores, weights = (_shaped(m, *signed_probs.shape) for m in memory[6:])
            torch.bmm(grad_out, value.transpose(1, 2), out=scores.flatten(0, 1))
            attention_op.run_backward(
                scores, signed_probs, queries.sizes, keys.sizes, scale, threshold, (scores, weights)
            )
            scores, weights = scores.flatten(0, 1), weights.flatten(0, 1)
            for side, part, other, room, result in (
                (queries, scores, key, memory[4], results[0]),
                (keys, scores.transpose(1, 2), query, memory[5], results[1]),
                (keys, weights.transpose(1, 2), grad_out, memory[5], results[2]),
            ):
                rows = _shaped(room, part.shape[0], part.shape[1], other.shape[2])
                side.put(torch.bmm(part, other, out=rows), result)
        return *(x.to(dtype) for x in results), None, None, None, None, None
