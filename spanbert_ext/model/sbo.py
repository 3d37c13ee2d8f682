"""The span boundary objective's head (paper section 3.2).

For target i of a span with boundary tokens x_l and x_r and position embedding p_i:

    h0 = [x_l; x_r; p_i]     h1 = LN(GELU(W1 h0 + b1))     y = LN(GELU(W2 h1 + b2))

W1 h0 + b1 is exactly (W1_l x_l + W1_r x_r) + (W1_p p_i + b1): the first product runs once for a
span, not once for a target, and the second is a table of P rows. Predicting the vocabulary from y
is the caller's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.model.plain_modules import is_plain
from spanbert_ext.ops.reference.sbo import IGNORE, gather_boundaries
from spanbert_ext.ops.registration import check_float
from spanbert_ext.ops.sbo_head import check_indices, sbo_head


class SBOHead(nn.Module):
    """Representation of every span target from the two tokens around its span.

    Args:
        hidden_size: H, of the encoder and of the result.
        max_span_targets: P, number of position embeddings; at least the masker's max_span_targets
            (with fewer there, the last embeddings are not trained).
        position_size: E, width of a position embedding.
        layer_norm_eps: of both LayerNorms.

    A head whose layers are as they were made runs as one operation; where one was replaced,
    parametrised or given a hook, the layers are called.

    Parameters: position_embeddings [P, E], linear1 (2H + E to H), layer_norm1, linear2 (H to H),
        layer_norm2.
    Weights start from N(0, 0.02), biases from 0, as in BERT.
    """

    def __init__(
        self,
        hidden_size: int,
        max_span_targets: int = 15,
        position_size: int = 200,
        layer_norm_eps: float = 1e-12,
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.max_span_targets = max_span_targets
        self.position_embeddings = nn.Embedding(max_span_targets, position_size)
        self.linear1 = nn.Linear(2 * hidden_size + position_size, hidden_size)
        self.layer_norm1 = nn.LayerNorm(hidden_size, layer_norm_eps)
        self.linear2 = nn.Linear(hidden_size, hidden_size)
        self.layer_norm2 = nn.LayerNorm(hidden_size, layer_norm_eps)
        for weight in (self.position_embeddings.weight, self.linear1.weight, self.linear2.weight):
            nn.init.normal_(weight, std=0.02)
        for layer in (self.linear1, self.linear2):
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
        """Rows for the vocabulary loss.

        Args:
            hidden: [B, L, H] or [T, H], what the encoder made of `batch.input_ids`.
            batch: where the spans and targets are.

        Returns:
            [K, H]; rows whose `sbo_ids` is -100 are zero and pass no gradient.

        Raises:
            ValueError: the hidden size differs.
            IndexError: the masker's max_span_targets is more than the head has, or a span or offset
                lies outside (on CUDA a device assertion).
        """
        if hidden.shape[-1] != self.hidden_size:
            raise ValueError(
                f"hidden must be [..., {self.hidden_size}]; got shape {tuple(hidden.shape)}"
            )
        check_float("hidden", hidden, hidden.dim())
        if batch.sbo_ids.device != hidden.device:
            raise ValueError(f"batch must be on {hidden.device}; got {batch.sbo_ids.device}")
        capacity = batch.sbo_ids.shape[0]
        needed = batch.max_span_targets
        if needed is not None and needed > self.max_span_targets:
            raise IndexError(
                f"target_offsets can reach {needed - 1}: the batch was masked with "
                f"max_span_targets={needed}, this head has max_span_targets="
                f"{self.max_span_targets}; give both the same number"
            )
        batch = batch.used()
        hidden = hidden.reshape(-1, self.hidden_size).contiguous()
        if not self._is_plain():
            rows = self._through_modules(hidden, batch)
            return F.pad(rows, (0, 0, 0, capacity - rows.shape[0]))
        return sbo_head(
            hidden,
            batch.span_left,
            batch.span_right,
            batch.target_spans,
            batch.target_offsets,
            batch.sbo_ids,
            self._parameters_in_order(),
            self.layer_norm1.eps,
            self._row_dtype(hidden),
            capacity,
        )

    def _is_plain(self) -> bool:
        """Whether nobody replaced a layer (adapters, quantisation) or hung a hook on one."""
        linear = all(
            is_plain(layer, nn.Linear) and layer.bias is not None
            for layer in (self.linear1, self.linear2)
        )
        norms = (self.layer_norm1, self.layer_norm2)
        return (
            linear
            and is_plain(self.position_embeddings, nn.Embedding)
            and all(is_plain(norm, nn.LayerNorm) for norm in norms)
        )

    def _through_modules(self, hidden: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
        """The same rows by calling every layer once: [T, H] to [K, H]."""
        index = (batch.span_left, batch.span_right, batch.target_spans)
        index += (batch.target_offsets, batch.sbo_ids)
        # No kernel asserts here, and torch would count a negative index from the end.
        check_indices(hidden, index, self.max_span_targets, kernel_asserts=False)
        pairs = gather_boundaries(hidden, batch.span_left, batch.span_right)
        used = batch.sbo_ids != IGNORE
        offsets = torch.where(used, batch.target_offsets, 0)
        positions = self.position_embeddings(offsets).to(pairs.dtype)
        pairs = pairs.index_select(0, torch.where(used, batch.target_spans, 0))
        rows = self.layer_norm1(F.gelu(self.linear1(torch.cat([pairs, positions], 1))))
        rows = self.layer_norm2(F.gelu(self.linear2(rows)))
        return torch.where(used.unsqueeze(1), rows, 0)

    def _parameters_in_order(self) -> tuple[torch.Tensor, ...]:
        """As `sbo_head.PARAMETERS` names them."""
        layers = (self.linear1, self.layer_norm1, self.linear2, self.layer_norm2)
        pairs = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return self.position_embeddings.weight, *pairs

    def _row_dtype(self, hidden: torch.Tensor) -> torch.dtype:
        """That of `hidden`, or autocast's where it would apply to a linear layer."""
        kind = hidden.device.type
        if hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        weight = self.linear1.weight
        if weight.dtype != hidden.dtype:
            raise TypeError(f"hidden must be {weight.dtype}, as the head; got {hidden.dtype}")
        return hidden.dtype
