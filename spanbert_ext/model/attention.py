"""Attention inside the sequences of a packed stream, and where those sequences lie.

A stream is tokens [T] and cu_seqlens [N + 1]: sequence i is the tokens from cu_seqlens[i]
up to cu_seqlens[i + 1]. A padded batch [B, L] is the same thing flattened, every row cut in two
sequences, its tokens and its padding. So there is one code path, and padding reaches no token.

On a GPU nothing is read back: shapes follow from the input's shapes and the int `max_seqlen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from spanbert_ext.model.cpu_attention import attention_in_runs
from spanbert_ext.ops.registration import check_range, readable
from spanbert_ext.ops.torch_private import assert_later

# Head sizes and dtypes of the flash kernel behind varlen_attn.
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_MAX_HEAD = 256


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a stream lie.

    Args:
        cu_seqlens: [N + 1] int32 or int64, 0 first, T last, never falling; repeats are empty
            sequences.
        max_seqlen: upper bound of a sequence's length.
        row_length: every multiple of it is a border of two sequences (a padded batch has L); None
            if unknown.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    row_length: int | None = None
    _kept: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def segments(self, total: int) -> torch.Tensor:
        """[total] int64, every position's sequence; N for positions behind the last one."""
        positions = torch.arange(total, device=self.cu_seqlens.device, dtype=self.cu_seqlens.dtype)
        return torch.searchsorted(self.cu_seqlens[1:].contiguous(), positions, right=True)

    def positions(self, total: int) -> torch.Tensor:
        """[total] int64, the place of every token in its sequence."""
        starts = self.cu_seqlens.index_select(0, self.segments(total))
        return torch.arange(total, device=starts.device) - starts

    def blocks(self, total: int) -> tuple[int, int]:
        """(tokens of a block, how many blocks on either side it sees) on the path "blocks"."""
        if self.row_length:
            return self.row_length, 0
        return max(1, min(self.max_seqlen, total)), 1

    def block_mask(self, total: int) -> torch.Tensor:
        """[blocks, 1, block, (1 + 2 reach) * block] bool, whether a token sees another.

        Computed once for all layers; `total` is T, the same at every call.
        """
        # No functools.cached_property: torch.compile cannot trace its lock (Python 3.11 and older).
        if "block_mask" not in self._kept:
            block, reach = self.blocks(total)
            # Around the stream lies sequence -1; its queries see their own, so no softmax is over
            # nothing.
            own = _padded(self.segments(total), 0, -total % block, -1)
            seen = _windows(_padded(own, reach * block, reach * block, -1), block, reach)
            self._kept["block_mask"] = own.view(-1, 1, block, 1) == seen.unsqueeze(1).unsqueeze(1)
        return self._kept["block_mask"]


def pack_padded(shape: Sequence[int], lengths: torch.Tensor) -> Packing:
    """The packing of a flattened padded batch: sequence 2b is row b's tokens, 2b + 1 its padding.

    Args:
        shape: (B, L).
        lengths: [B] integer, used tokens of each row, in [0, L].
    """
    rows, width = shape
    starts = torch.arange(rows, device=lengths.device) * width
    borders = torch.stack([starts, starts + lengths.to(torch.int64)], dim=1).reshape(-1)
    end = torch.full((1,), rows * width, dtype=torch.int64, device=lengths.device)
    return Packing(torch.cat([borders, end]), max(width, 1), max(width, 1))


def packing_of(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    max_seqlen: int = 512,
    row_length: int | None = None,
) -> Packing:
    """The packing of a stream [T] with cu_seqlens, or of a batch [B, L] with a mask or lengths.

    Arguments as in `PackedBert.forward`, which see; raises what it raises.
    """
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"input_ids must be int32 or int64; got {input_ids.dtype}")
    if input_ids.dim() not in (1, 2):
        raise ValueError(f"input_ids must be [T] or [B, L]; got shape {tuple(input_ids.shape)}")
    if input_ids.dim() == 1:
        if cu_seqlens is None:
            raise ValueError(
                "input_ids is a stream [T]: cu_seqlens [N + 1] must say where its sequences lie"
            )
        if attention_mask is not None or lengths is not None:
            raise ValueError(
                "attention_mask and lengths belong to a padded batch [B, L]; a stream has "
                "cu_seqlens"
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
            raise ValueError(f"cu_seqlens must be [N + 1]; got shape {tuple(cu_seqlens.shape)}")
        _check_integers("cu_seqlens", cu_seqlens, input_ids)
        _check_borders(cu_seqlens, input_ids.numel(), max_seqlen)
        packing = Packing(cu_seqlens, max_seqlen, row_length)
        if row_length is not None:
            _check_rows(packing, input_ids.numel())
        return packing
    if cu_seqlens is not None:
        raise ValueError(
            f"cu_seqlens belongs to a stream [T]; input_ids has shape {tuple(input_ids.shape)}"
        )
    if attention_mask is not None and lengths is not None:
        raise ValueError("give attention_mask or lengths, not both")
    if attention_mask is not None:
        lengths = _lengths_of(attention_mask, input_ids)
    elif lengths is None:
        lengths = torch.full(input_ids.shape[:1], input_ids.shape[1], device=input_ids.device)
    if lengths.shape != input_ids.shape[:1]:
        raise ValueError(
            f"lengths must be [{input_ids.shape[0]}]; got shape {tuple(lengths.shape)}"
        )
    _check_integers("lengths", lengths, input_ids)
    check_range("lengths", lengths, input_ids.shape[1] + 1)
    return pack_padded(input_ids.shape, lengths)


def check_same_shape(name: str, values: torch.Tensor, input_ids: torch.Tensor) -> None:
    """ValueError unless `values` has the shape of input_ids and lies on its device."""
    if values.shape != input_ids.shape or values.device != input_ids.device:
        expected = f"{tuple(input_ids.shape)} on {input_ids.device}, like input_ids"
        raise ValueError(f"{name} must be {expected}; got {tuple(values.shape)} on {values.device}")


def _check_integers(name: str, values: torch.Tensor, input_ids: torch.Tensor) -> None:
    if values.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64; got {values.dtype}")
    if values.device != input_ids.device:
        raise ValueError(
            f"{name} must be on {input_ids.device}, like input_ids; got {values.device}"
        )


def _check_borders(cu_seqlens: torch.Tensor, total: int, max_seqlen: int) -> None:
    lengths = cu_seqlens.diff()
    fine = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == total)
    rule = f"cu_seqlens must start at 0, never fall and end at the number of tokens, {total}"
    if readable(cu_seqlens):
        if not bool(fine & (lengths >= 0).all()):
            raise ValueError(f"{rule}; got {_excerpt(cu_seqlens)}")
        if lengths.numel() and int(lengths.max()) > max_seqlen:
            raise ValueError(
                f"a sequence has {int(lengths.max())} tokens; at most {max_seqlen} are allowed"
            )
    else:
        fine = fine & ((lengths >= 0) & (lengths <= max_seqlen)).all()
        assert_later(fine, f"{rule}; no sequence longer than {max_seqlen}")


def _check_rows(packing: Packing, total: int) -> None:
    """ValueError unless a sequence starts at every multiple of row_length."""
    if packing.row_length < 1:
        raise ValueError(f"row_length must be at least 1; got {packing.row_length}")
    fine = (packing.positions(total)[:: packing.row_length] == 0).all()
    rule = f"row_length {packing.row_length}: no sequence may cross a multiple of it"
    if not readable(fine):
        assert_later(fine, rule)
    elif not bool(fine):
        raise ValueError(f"{rule}; got {_excerpt(packing.cu_seqlens)}")


def _excerpt(values: torch.Tensor) -> str:
    shown = values[:8].tolist()
    return f"{shown}" if values.numel() <= 8 else f"{shown[:-1]} ... {int(values[-1])}"


def _lengths_of(attention_mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """[B] int64; the tokens of a row must come first."""
    check_same_shape("attention_mask", attention_mask, input_ids)
    used = attention_mask != 0
    fine = (used[:, 1:] <= used[:, :-1]).all()
    rule = "attention_mask must be non-zero at the first tokens of each row and zero behind them"
    if not readable(used):
        assert_later(fine, rule)
    elif not bool(fine):
        row = int((used[:, 1:] > used[:, :-1]).any(1).nonzero()[0])
        raise ValueError(f"{rule}; row {row} has a token behind padding")
    return used.sum(1)


def attention_path(q: torch.Tensor, dropout: float) -> str:
    """How `packed_attention` serves queries [T, heads, D]: "runs", "varlen" or "blocks".

    ========  ================================================  ===================================
    path      taken for                                         because
    ========  ================================================  ===================================
    runs      CPU                                               lengths are free to read there
    varlen    GPU of 8.0 and newer, bf16 or fp16, no dropout,   nothing is computed between
              heads of a multiple of 8 up to 256 numbers        sequences; unmeasured
    blocks    everything else on a GPU                          only it has dropout; unmeasured
    ========  ================================================  ===================================

    "Unmeasured": no row of benchmarks/results/attention.csv speaks of a GPU yet. `python -m
    benchmarks.gpu --only attention --build never --out DIR` writes one for every candidate, shape
    and dropout, and prints where another than the one above was fastest; change the table by those
    rows.
    """
    if readable(q):
        return "runs"
    fits = q.dtype in _VARLEN_DTYPES and q.shape[-1] % 8 == 0 and q.shape[-1] <= _VARLEN_MAX_HEAD
    # The varlen kernel has no attention dropout.
    if q.device.type != "cuda" or not fits or dropout != 0:
        return "blocks"
    return "varlen" if torch.cuda.get_device_capability(q.device) >= (8, 0) else "blocks"


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    packing: Packing,
    dropout: float = 0.0,
    path: str | None = None,
    max_queries: int | None = None,
    seed: torch.Tensor | None = None,
    site: int = 0,
) -> torch.Tensor:
    """Softmax attention inside each sequence of a stream; differentiable in q, k and v.

    Args:
        q: [Tq, heads, D]; k, v: [T, heads, D].
        cu_seqlens_q: [N + 1], the queries of sequence i. The path "blocks" needs packing.cu_seqlens
            itself.
        packing: of k and v.
        dropout: probability of dropping an attention weight; 0 in evaluation.
        path: as returned by `attention_path`, which chooses if it is None.
        max_queries: upper bound of a sequence's queries; None: max_seqlen if cu_seqlens_q is
            packing.cu_seqlens itself, else Tq. The path "varlen" starts that many for every
            sequence.
        seed: [1] int64 that keys dropout on the path "runs", where a draw is a pure function of
            (seed, site, head, place of the query in q, place of the key in its sequence). Without
            it, and on the path "blocks", torch's generator draws.
        site: 32-bit number of this place in the model.

    Returns:
        [Tq, heads, D].

    Raises:
        ValueError: a sequence has more than max_queries (on a GPU a device assertion).
    """
    path = path or attention_path(q, dropout)
    if q.shape[0] == 0:
        return q
    if max_queries is not None:
        _check_queries(cu_seqlens_q, max_queries)
    if path == "runs":
        return attention_in_runs(q, k, v, cu_seqlens_q, packing.cu_seqlens, dropout, seed, site)
    if path == "varlen":
        return _attention_varlen(q, k, v, cu_seqlens_q, packing, max_queries)
    if cu_seqlens_q is not packing.cu_seqlens:
        raise ValueError(
            'path "blocks" takes a query for every key: cu_seqlens_q must be packing.cu_seqlens'
        )
    return _attention_in_blocks(q, k, v, packing, dropout)


def _check_queries(cu_seqlens_q: torch.Tensor, max_queries: int) -> None:
    # The varlen kernel would leave what lies beyond the bound as it found it.
    fine = (cu_seqlens_q.diff() <= max_queries).all()
    rule = f"no sequence may have more than max_queries = {max_queries} queries"
    if not readable(fine):
        assert_later(fine, rule)
    elif not bool(fine):
        raise ValueError(f"{rule}; got {int(cu_seqlens_q.diff().max())}")


def _attention_varlen(q, k, v, cu_q, packing: Packing, max_q: int | None) -> torch.Tensor:
    """CUDA: the flash kernel that takes cu_seqlens."""
    from torch.nn.attention.varlen import varlen_attn

    cu_k = packing.cu_seqlens.to(torch.int32)
    whole = cu_q is packing.cu_seqlens
    cu_q = cu_k if whole else cu_q.to(torch.int32)
    if max_q is None:
        # A subset may name one token many times: only their number bounds a sequence's queries.
        max_q = packing.max_seqlen if whole else q.shape[0]
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, packing.max_seqlen)


def _attention_in_blocks(q, k, v, packing: Packing, dropout: float) -> torch.Tensor:
    """Everywhere: dense attention of blocks of the stream under a mask of equal sequences.

    With a row length, a block is a row and sees itself. Without, a block is max_seqlen long and
    sees its neighbours too, since a sequence that long reaches into them. Memory and work depend on
    T, not on N, which may be a capacity far above the sequences that are there.
    """
    total = q.shape[0]
    (block, reach), mask = packing.blocks(total), packing.block_mask(total)
    tail, border = -total % block, reach * block
    query = _windows(_padded(q, 0, tail), block, 0).transpose(1, 2)
    key, value = (
        _windows(_padded(x, border, tail + border), block, reach).transpose(1, 2) for x in (k, v)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)[:total]


def _padded(x: torch.Tensor, before: int, after: int, value: int = 0) -> torch.Tensor:
    """[n, ...] to [before + n + after, ...]; `x` itself where that is the same, since F.pad copies
    even then."""
    if before == after == 0:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 1) + (before, after), value=value)


def _windows(x: torch.Tensor, block: int, reach: int) -> torch.Tensor:
    """[(count + 2 reach) * block, ...] to overlapping [count, (1 + 2 reach) * block, ...]; a view
    of `x` if nothing overlaps."""
    blocks = x.unflatten(0, (-1, block))
    if reach == 0:
        return blocks
    count = blocks.shape[0] - 2 * reach
    return torch.cat([blocks[i : i + count] for i in range(2 * reach + 1)], dim=1)
