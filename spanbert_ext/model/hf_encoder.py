"""Other Hugging Face encoders (ModernBERT, RoBERTa ...) under the span heads.

They take padded batches; a packed stream is unpacked for them and their hidden states are packed
again.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from spanbert_ext.model.attention import Packing, check_same_shape, packing_of
from spanbert_ext.ops.registration import check_range, readable


def build_hf_encoder(config) -> PreTrainedModel:
    """The encoder of `config.encoder_config`, with random weights and without a pooler.

    Raises:
        ValueError: its hidden size, embedding width or vocabulary does not fit `config`.
    """
    fields = dict(config.encoder_config)
    own = AutoConfig.for_model(fields.pop("model_type"), **fields)
    # A pooler would be dead weight that the optimizer decays and a distributed run waits for.
    builder = MODEL_MAPPING[type(own)]
    has_pooler = "add_pooling_layer" in inspect.signature(builder.__init__).parameters
    encoder = AutoModel.from_config(own, **({"add_pooling_layer": False} if has_pooler else {}))
    vocab_size, width = encoder.get_input_embeddings().weight.shape
    if own.hidden_size != config.hidden_size or vocab_size != config.vocab_size:
        raise ValueError(
            "hidden_size and vocab_size must be those of encoder_config, "
            f"{own.hidden_size} and {vocab_size}; got {config.hidden_size} and {config.vocab_size}"
        )
    if width != own.hidden_size:
        raise ValueError(
            f"the {own.model_type} encoder has word embeddings of width {width} and hidden_size "
            f"{own.hidden_size}; the tied output layer needs them equal"
        )
    return encoder


def longest_sequence(encoder: PreTrainedModel) -> int | None:
    """Tokens of the longest sequence that its positions allow; None if they are not in a table."""
    limit = getattr(encoder.config, "max_position_embeddings", None)
    for name, module in encoder.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("embeddings.position_embeddings") and padding is not None:
            return limit - padding - 1  # RoBERTa's family counts from behind the padding id
    return limit


def hf_hidden_states(
    encoder: PreTrainedModel,
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    max_seqlen: int | None,
) -> torch.Tensor:
    """Last hidden state, [T, H] or [B, L, H]; arguments and errors as in `PackedBert.forward`.

    On a GPU every sequence of a stream is padded to max_seqlen (default: the encoder's longest), so
    give it.
    """
    longest = max_seqlen or encoder.config.max_position_embeddings
    packing = packing_of(input_ids, cu_seqlens, attention_mask, lengths, longest)
    check_range("input_ids", input_ids, encoder.get_input_embeddings().weight.shape[0])
    types = {}
    if token_type_ids is not None:
        check_same_shape("token_type_ids", token_type_ids, input_ids)
        types = {"token_type_ids": token_type_ids}
    if input_ids.dim() == 1:
        return _through_padding(encoder, input_ids, packing, types)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    # pack_padded makes two sequences of a row: its tokens and its padding. A row without tokens
    # attends to one padding token: a softmax over nothing would be NaN, also in the gradient.
    mask = (columns < packing.cu_seqlens.diff()[::2].unsqueeze(1)) | (columns == 0)
    return encoder(input_ids, attention_mask=mask.long(), **types).last_hidden_state


def _through_padding(
    encoder: nn.Module, tokens: torch.Tensor, packing: Packing, types: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Hidden states [T, H] of a stream from an encoder that takes padded batches only."""
    total = tokens.shape[0]
    if total == 0:
        return encoder.get_input_embeddings().weight.new_zeros(0, encoder.config.hidden_size)
    starts, lengths = packing.cu_seqlens[:-1], packing.cu_seqlens.diff()
    segments, places = packing.segments(total), packing.positions(total)
    width = packing.max_seqlen
    if readable(tokens):
        kept = lengths > 0
        segments = (kept.cumsum(0) - 1).index_select(0, segments)
        starts, lengths = starts[kept], lengths[kept]
        width = int(lengths.max()) if lengths.numel() else 1
    columns = torch.arange(width, device=tokens.device)
    inside = columns < lengths.unsqueeze(1)
    index = torch.where(inside, starts.unsqueeze(1) + columns, 0)
    # An empty sequence attends to one padding token, as in a padded batch.
    mask = inside | (columns == 0)
    pad = encoder.config.pad_token_id or 0
    padded = torch.where(inside, tokens[index], pad)
    types = {name: torch.where(inside, ids[index], 0) for name, ids in types.items()}
    hidden = encoder(padded, attention_mask=mask.long(), **types).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, segments * width + places)
