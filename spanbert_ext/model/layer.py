"""One post-LN transformer layer on a packed stream: attention, then the inner layer, each added to
the stream and normalised (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from spanbert_ext.model.attention import Packing, attention_path, packed_attention
from spanbert_ext.model.plain_modules import has_affine, is_plain
from spanbert_ext.model.products import Prepared, can_be_prepared
from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout, dropout_add_layer_norm
from spanbert_ext.ops.registration import working_dtype

# Sites of dropout draws: 0 is the embeddings', 1 + 2 i and 2 + 2 i are those behind attention and
# inner layer of layer i, and the weights of its attention have the first one plus this.
_ATTENTION_SITE = 1 << 31


def residual_norm(
    join: Callable[..., torch.Tensor],
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: nn.LayerNorm,
    dropout: nn.Dropout,
    seed: torch.Tensor | None,
    site: int,
) -> torch.Tensor:
    """`join` of `ops/dropout_norm.py` with the parameters of two modules, or the modules themselves
    where one of them is changed, whose dropout torch's generator draws. The stream keeps the wider
    dtype: under autocast a bf16 branch is added to an fp32 residual."""
    dtype = torch.promote_types(x.dtype, residual.dtype)
    if not (is_plain(norm, nn.LayerNorm) and has_affine(norm) and is_plain(dropout, nn.Dropout)):
        if join is add_layer_norm_dropout:
            return dropout(norm(x.to(dtype) + residual)).to(dtype)
        return norm(dropout(x).to(dtype) + residual).to(dtype)
    if x.dtype.itemsize > 2:
        x = x.to(dtype)
    wide = working_dtype(dtype)
    p = dropout.p if dropout.training else 0.0
    weight, bias = norm.weight.to(wide), norm.bias.to(wide)
    return join(x, residual.to(dtype), weight, bias, norm.eps, p, seed, site)


class _Node(nn.Module):
    """A name in the parameter tree; what its children compute stands in `PackedLayer`."""

    def __init__(self, children: dict[str, nn.Module]):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class PackedLayer(nn.Module):
    """One post-LN transformer layer: attention, then the inner layer, each added and normalised."""

    def __init__(self, config):
        super().__init__()
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.attention_dropout = float(config.attention_probs_dropout_prob)
        projections = _Node({n: nn.Linear(hidden, hidden) for n in ("query", "key", "value")})

        def merge(width: int) -> _Node:
            norm = nn.LayerNorm(hidden, eps=eps)
            return _Node({"dense": nn.Linear(width, hidden), "LayerNorm": norm})

        self.attention = _Node({"self": projections, "output": merge(hidden)})
        self.intermediate = _Node({"dense": nn.Linear(hidden, inner)})
        self.output = merge(inner)
        self.dropout = nn.Dropout(float(config.hidden_dropout_prob))
        # Set in `for_predictions`: whether the stream has autocast's dtype, and the products that
        # have been prepared, None if none is to be.
        self._narrow = False
        self._kept: dict[tuple, Prepared] | None = None

    def forward(
        self,
        hidden: torch.Tensor,
        packing: Packing,
        rows: torch.Tensor | None = None,
        max_queries: int | None = None,
        seed: torch.Tensor | None = None,
        site: int = 0,
    ) -> torch.Tensor:
        """[T, H] to [T, H], or to [R, H] for ascending rows [R] int64, at most max_queries of a
        sequence. Dropout draws by seed [1] int64 (needed in training) at `site`, the next, and
        `site` + 2^31."""
        device = hidden.device.type
        if self._narrow and torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        context = self._attend(hidden, packing, rows, max_queries, seed, site + _ATTENTION_SITE)
        if rows is not None:
            hidden = hidden.index_select(0, rows)
        attention, output = self.attention.output, self.output
        join, drop = dropout_add_layer_norm, self.dropout
        branch = self._product(context, attention.dense)
        hidden = residual_norm(join, branch, hidden, attention.LayerNorm, drop, seed, site)
        branch = self._product(self._inner(hidden), output.dense)
        return residual_norm(join, branch, hidden, output.LayerNorm, drop, seed, site + 1)

    def _prepared(self, x: torch.Tensor, *projections: nn.Module) -> Prepared | None:
        """Projections of x as one product; None where the modules must be called."""
        wanted = self._kept is not None and not torch.compiler.is_compiling()
        if not wanted or not all(can_be_prepared(p) for p in projections):
            return None
        key = x.dtype, *projections
        if key not in self._kept:
            self._kept[key] = Prepared(projections, x.dtype)
        return self._kept[key]

    def _product(self, x: torch.Tensor, dense: nn.Module) -> torch.Tensor:
        return (self._prepared(x, dense) or dense)(x)

    def _inner(self, hidden: torch.Tensor) -> torch.Tensor:
        dense = self.intermediate.dense
        prepared = self._prepared(hidden, dense)
        return F.gelu(dense(hidden)) if prepared is None else prepared(hidden, gelu=True)

    def _by_heads(self, hidden: torch.Tensor, *projections: nn.Module) -> list[torch.Tensor]:
        """[T, H] to a [T, heads, D] of each projection: for predictions as one product. In training
        that was no faster on a CPU, for all that rows are converted once."""
        joined = self._prepared(hidden, *projections)
        if joined is None:
            parts = [p(hidden) for p in projections]
        else:
            parts = joined(hidden).chunk(len(projections), -1)
        return [x.unflatten(-1, (self.heads, -1)) for x in parts]

    def _attend(
        self,
        hidden: torch.Tensor,
        packing: Packing,
        rows: torch.Tensor | None,
        max_queries: int | None,
        seed: torch.Tensor | None,
        site: int,
    ) -> torch.Tensor:
        """[T, H] to the attention's context [T or R, H]."""
        node = self.attention.self
        dropout = self.attention_dropout if self.training else 0.0
        cu_seqlens = packing.cu_seqlens
        if rows is None:
            q, k, v = self._by_heads(hidden, node.query, node.key, node.value)
        else:
            k, v = self._by_heads(hidden, node.key, node.value)
        path = attention_path(k, dropout)
        subset = rows is not None and path != "blocks"
        if subset:
            hidden = hidden.index_select(0, rows)
            cu_seqlens = torch.searchsorted(rows, cu_seqlens.to(rows.dtype))
        if rows is not None:
            (q,) = self._by_heads(hidden, node.query)
        most = max_queries if subset else None
        context = packed_attention(
            q, k, v, cu_seqlens, packing, dropout, path, most, seed, site
        ).flatten(1)
        return context if rows is None or subset else context.index_select(0, rows)
