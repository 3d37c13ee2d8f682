"""Attention of a packed stream on the CPU, where lengths are free to read.

In fp32, neighbouring sequences of equal length form one dense batch and nothing is padded. A 16-bit
product is prepared by the library for every shape it has not seen: on a CPU with AMX that takes 20
to 150 ms, for each of the products of a length, where the attention of a sequence takes one. There,
sequences of like length are padded to a common one, a multiple of 32, of which there are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

from spanbert_ext.model.chunked_attention import dropped_attention, without_gradient

# Lengths that sequences are padded to in 16 bits.
_MULTIPLE = 32
# A group of sequences may hold so many times their own positions when it is padded.
_MOST_PADDING = 1.5


def attention_in_runs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    dropout: float,
    seed: torch.Tensor | None = None,
    site: int = 0,
) -> torch.Tensor:
    """Softmax attention inside each sequence, as `attention.packed_attention` has it.

    Args:
        q: [Tq, heads, D]; k, v: [T, heads, D].
        cu_q, cu_k: [N + 1] borders of the sequences among queries and keys.
        dropout: probability of dropping an attention weight.
        seed, site: what dropout draws by, as in `dropped_attention`; without a seed torch's
            generator draws, several times as slowly.

    Returns:
        [Tq, heads, D].
    """
    if dropout > 0 and seed is not None:
        return dropped_attention(q, k, v, cu_q, cu_k, dropout, seed, site)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if dropout == 0 and not wanted:
        out = without_gradient(q, k, v, cu_q, cu_k)
        if out is not None:
            return out
    lengths_q, lengths_k = cu_q.diff().tolist(), cu_k.diff().tolist()
    if q.dtype.itemsize == 2 and len({length for length in lengths_k if length}) > 1:
        return _padded(q, k, v, lengths_q, lengths_k, dropout)
    outputs, start_q, start_k = [], 0, 0
    for (length_q, length_k), run in groupby(zip(lengths_q, lengths_k, strict=True)):
        count = len(list(run))
        end_q, end_k = start_q + count * length_q, start_k + count * length_k
        if end_q > start_q:
            query, key, value = (
                x.unflatten(0, (count, -1)).transpose(1, 2)
                for x in (q[start_q:end_q], k[start_k:end_k], v[start_k:end_k])
            )
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        start_q, start_k = end_q, end_k
    return torch.cat(outputs)


def _padded(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    dropout: float,
) -> torch.Tensor:
    sizes_q, sizes_k = torch.tensor(lengths_q), torch.tensor(lengths_k)
    starts_q, starts_k = sizes_q.cumsum(0) - sizes_q, sizes_k.cumsum(0) - sizes_k
    outputs, places = [], []
    for group in _groups(lengths_q, lengths_k):
        members = torch.tensor(group)
        index_q, inside_q = _windows(starts_q[members], sizes_q[members])
        index_k, inside_k = _windows(starts_k[members], sizes_k[members])
        query = _spread(q, index_q)
        key, value = _spread(k, index_k), _spread(v, index_k)
        mask = inside_k.view(len(group), 1, 1, -1)
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        kept = inside_q.flatten().nonzero().squeeze(1)
        outputs.append(out.transpose(1, 2).flatten(0, 1).index_select(0, kept))
        places.append(index_q.flatten().index_select(0, kept))
    # Every query is in one group; put them back in their order.
    order = torch.cat(places)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return torch.cat(outputs).index_select(0, back)


def _groups(lengths_q: Sequence[int], lengths_k: Sequence[int]) -> Iterator[list[int]]:
    """Sequences with queries, those of like length together."""
    there = [i for i, length in enumerate(lengths_q) if length]
    there.sort(key=lambda i: lengths_k[i], reverse=True)
    group, own, width = [], 0, 0
    for i in there:
        width = width or _rounded(lengths_k[i])
        if group and (len(group) + 1) * width > _MOST_PADDING * (own + lengths_k[i]):
            yield group
            group, own, width = [], 0, _rounded(lengths_k[i])
        group.append(i)
        own += lengths_k[i]
    if group:
        yield group


def _rounded(length: int) -> int:
    return length + -length % _MULTIPLE


def _windows(starts: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of the stream [n, L], which of them are the sequence's own [n, L])"""
    columns = torch.arange(_rounded(int(sizes.max())))
    inside = columns < sizes.unsqueeze(1)
    return torch.where(inside, starts.unsqueeze(1) + columns, 0), inside


def _spread(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[T, heads, D] to [n, heads, L, D]."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
