"""BERT's post-LN encoder on a packed stream, with the parameter names of Hugging Face BERT (Devlin
et al. 2019).

A stream is tokens [T] and cu_seqlens [N + 1]; no token attends outside its sequence. A padded batch
[B, L] takes the same path (`attention.py`). The last layer may be computed on the rows somebody
reads and on no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spanbert_ext.model.attention import Packing, check_same_shape, packing_of
from spanbert_ext.model.layer import PackedLayer, residual_norm
from spanbert_ext.model.plain_modules import is_plain
from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout
from spanbert_ext.ops.registration import check_range
from spanbert_ext.ops.tied_embedding import tied_lookup

# Tokens of predictions from which on prepared parameters cost less than they save: between 1000 and
# 2000, measured on a CPU with encoders of 11 and of 85 million parameters.
_WORTH_PREPARING = 2048


class PackedEmbeddings(nn.Module):
    """Word, position and token type embeddings, added, normalised and dropped out."""

    def __init__(self, config):
        super().__init__()
        # No padding_idx: nobody attends to padding, and [PAD] is an ordinary row of the output
        # layer.
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(float(config.hidden_dropout_prob))

    def forward(
        self,
        tokens: torch.Tensor,
        packing: Packing,
        token_type_ids: torch.Tensor | None,
        seed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens [T] and token_type_ids [T] (None: all 0) to [T, H], and the word embedding [V, H]
        for the output layer (`tied_lookup`); dropout draws by seed [1] int64 at site 0."""
        table = self.token_type_embeddings
        if token_type_ids is None and is_plain(table, nn.Embedding):
            types = table.weight[0]
        else:
            types = table(torch.zeros_like(tokens) if token_type_ids is None else token_type_ids)
        places = self.position_embeddings(packing.positions(tokens.shape[0]))
        if is_plain(self.word_embeddings, nn.Embedding):
            words, weight = tied_lookup(self.word_embeddings.weight, tokens)
        else:
            words, weight = self.word_embeddings(tokens), self.word_embeddings.weight
        join = add_layer_norm_dropout
        hidden = residual_norm(join, words, places + types, self.LayerNorm, self.dropout, seed, 0)
        return hidden, weight


class PackedLayers(nn.Module):
    """The stack of layers; the last one may be computed on chosen rows only."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(PackedLayer(config) for _ in range(config.num_hidden_layers))
        # transformers' gradient_checkpointing_enable() sets this flag.
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden: torch.Tensor,
        packing: Packing,
        rows: torch.Tensor | None = None,
        max_queries: int | None = None,
        seed: torch.Tensor | None = None,
        keep_layer: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, H] to [T, H], or to [R, H], and the output [T, H] of layer `keep_layer`, which is not
        the last; other arguments as in `PackedLayer.forward`."""
        last = len(self.layer) - 1
        checkpointed = self.gradient_checkpointing and self.training
        if checkpointed and torch.compiler.is_compiling():
            # A checkpointed layer may not add to `packing` while it is traced. If no layer reads
            # the mask, it falls out of the graph.
            packing.block_mask(hidden.shape[0])
        kept = None
        for index, layer in enumerate(self.layer):
            wanted = (rows, max_queries) if index == last else (None, None)
            arguments = (hidden, packing, *wanted, seed, 1 + 2 * index)
            if checkpointed:
                hidden = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden = layer(*arguments)
            if index == keep_layer:
                kept = hidden
        return hidden, kept


class Pooler(nn.Module):
    """tanh(W h + b) of the first token of a sequence."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """[N, H] to [N, H]."""
        return torch.tanh(self.dense(first))


class PackedBert(nn.Module):
    """BERT on a packed stream or a padded batch; equal to `transformers.BertModel`.

    Args:
        config: a `BertConfig` or anything with its fields; hidden_act must be "gelu".
        add_pooling_layer: have a `pooler`, which the caller applies to first tokens.

    Raises:
        ValueError: an activation other than gelu, no layer, or heads that do not divide the hidden
            size.
    """

    def __init__(self, config, add_pooling_layer: bool = False):
        super().__init__()
        if config.hidden_act != "gelu":
            raise ValueError(f"hidden_act must be 'gelu'; got {config.hidden_act!r}")
        if config.num_hidden_layers < 1:
            raise ValueError(
                f"num_hidden_layers must be at least 1; got {config.num_hidden_layers}"
            )
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                "hidden_size must be a multiple of num_attention_heads; "
                f"got {config.hidden_size} and {config.num_attention_heads}"
            )
        self.max_positions = int(config.max_position_embeddings)
        self.embeddings = PackedEmbeddings(config)
        self.encoder = PackedLayers(config)
        if add_pooling_layer:
            self.pooler = Pooler(config.hidden_size)

    def longest(self, input_ids: torch.Tensor, max_seqlen: int | None = None) -> int:
        """Upper bound of a sequence's length; arguments as in `forward`."""
        if input_ids.dim() == 2:
            return input_ids.shape[1]
        return min(max_seqlen or self.max_positions, self.max_positions)

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        row_length: int | None = None,
        rows: torch.Tensor | None = None,
        max_queries: int | None = None,
        keep_layer: int | None = None,
        return_all: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Hidden states of the last layer.

        Args:
            input_ids: [T] with cu_seqlens, or [B, L]; int32 or int64.
            cu_seqlens: [N + 1] int32 or int64, only with [T]; repeated entries are empty sequences.
            attention_mask: [B, L], non-zero at tokens, which must come first in each row.
            lengths: [B] integer, the same as a mask; with neither, every row is full.
            token_type_ids: like input_ids; default all 0.
            max_seqlen: upper bound of a sequence's length; default the config's
                max_position_embeddings.
            row_length: with a stream, a promise that every multiple of it is a border of two
                sequences; makes the masked attention that serves dropout on a GPU three times
                cheaper.
            rows: [R] int64, flat indices of the tokens whose states are wanted, in any order,
                repeats allowed. The last layer is computed for them alone.
            max_queries: a promise that no sequence has more of the rows, which saves launches on a
                GPU; default R.
            keep_layer: index of a layer before the last whose output is to be returned too.
            return_all: also return the word embedding as an output layer must use it for one
                gradient buffer (`tied_lookup`), and the output of `keep_layer`.

        Returns:
            [T, H] or [B, L, H], or [R, H] in the order of `rows`; if asked for all, with the
            embedding [V, H] and the states [T, H] of `keep_layer`, None without.

        Raises:
            ValueError, TypeError: shape, dtype or device of an argument.
            IndexError: an id, a row or a length out of range (on a GPU a device assertion).
        """
        longest = self.longest(input_ids, max_seqlen)
        packing = packing_of(input_ids, cu_seqlens, attention_mask, lengths, longest, row_length)
        if input_ids.dim() == 2 and input_ids.shape[1] > self.max_positions:
            raise ValueError(
                f"rows of {input_ids.shape[1]} tokens; the model has {self.max_positions} positions"
            )
        tokens = input_ids.reshape(-1)
        if token_type_ids is not None:
            check_same_shape("token_type_ids", token_type_ids, input_ids)
            token_type_ids = token_type_ids.reshape(-1)
            check_range(
                "token_type_ids",
                token_type_ids,
                self.embeddings.token_type_embeddings.num_embeddings,
            )
        check_range("input_ids", tokens, self.embeddings.word_embeddings.num_embeddings)
        seed = self._dropout_seed(tokens.device)
        hidden, embedding = self.embeddings(tokens, packing, token_type_ids, seed)
        if rows is None:
            hidden, kept = self.encoder(hidden, packing, seed=seed, keep_layer=keep_layer)
            hidden = hidden.view(*input_ids.shape, hidden.shape[-1])
        else:
            check_range("rows", rows, tokens.shape[0])
            ascending, order = rows.sort(stable=True)
            places = torch.arange(order.shape[0], device=order.device)
            back = torch.empty_like(order).scatter_(0, order, places)
            hidden, kept = self.encoder(hidden, packing, ascending, max_queries, seed, keep_layer)
            hidden = hidden.index_select(0, back)
        return (hidden, embedding, kept) if return_all else hidden

    def _dropout_seed(self, device: torch.device) -> torch.Tensor | None:
        """[1] int64 from torch's generator of the device, whose state a checkpoint keeps and a CUDA
        graph advances: one draw keys every dropout of a forward pass, but not that of attention on
        a GPU. None if nothing is dropped."""
        layers = self.encoder.layer
        places = (self.embeddings.dropout, *(layer.dropout for layer in layers))
        inside = any(layer.training and layer.attention_dropout > 0 for layer in layers)
        plain = [place for place in places if isinstance(place, nn.Dropout)]
        if not inside and not any(place.training and place.p > 0 for place in plain):
            return None
        return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64, device=device)


@contextmanager
def for_predictions(model: nn.Module, tokens: int) -> Iterator[None]:
    """Makes encoders of a model faster as long as no parameter changes and nobody needs gradients.

    Under autocast the sum that goes from layer to layer is kept in autocast's dtype; it is added
    and normalised in fp32 all the same.

    Args:
        tokens: how many are to come; with many, parameters are prepared for the products once.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedLayer)]
    for layer in layers:
        layer._narrow = True
        layer._kept = {} if tokens >= _WORTH_PREPARING else None
    try:
        yield
    finally:
        for layer in layers:
            layer._narrow, layer._kept = False, None
