"""Pre-training steps of others: transformers' masked language model as it is, the strongest model
one can put together from existing parts, and the original SpanBERT's arithmetic.

Each gets batches that are masked already and the same optimizer, clipping and precision as ours.
The first two do masked language modelling alone, which is less work than ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from benchmarks import peers, workloads
from spanbert_ext import SBOHead
from spanbert_ext.training.loop import autocast

_PADDED_VOCAB = -(-workloads.VOCAB // 128) * 128


class PeerStep:
    """A model and its optimizer; a call is one update on a batch prepared outside.

    Args:
        model: returns a loss for `inputs`.
        inputs: keyword arguments of the model.
        mode: None for eager, else the mode of torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        device: str,
        precision: str,
        mode: str | None = None,
    ):
        self.model = model.to(device).train()
        self.inputs = {name: value.to(device) for name, value in inputs.items()}
        self._device, self._precision, self._mode = torch.device(device), precision, mode
        self._forward: Callable = model
        if mode is not None:
            self._forward = torch.compile(model, mode=mode, dynamic=False)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> torch.Tensor:
        """One update; the loss."""
        if self._mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(self._device, self._precision):
            loss = self._forward(**self.inputs)
        loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def bert_config(config) -> BertConfig:
    """transformers' configuration of the same encoder."""
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "layer_norm_eps",
    )  # fmt: skip
    return BertConfig(**{name: getattr(config, name) for name in names})


def transformers_step(config, batch, device: str, precision: str, mode: str | None) -> PeerStep:
    """BertForMaskedLM with its default attention; logits of every token, as it does."""
    inputs = {"input_ids": batch.input_ids, "labels": batch.labels}
    return PeerStep(BertForMaskedLM(bert_config(config)), inputs, device, precision, mode)


class Assembly(nn.Module):
    """transformers' encoder, the head on masked tokens only, a vocabulary padded to 128."""

    def __init__(self, config):
        super().__init__()
        config = bert_config(config)
        config.vocab_size = _PADDED_VOCAB
        size = config.hidden_size
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dense, self.norm = nn.Linear(size, size), nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(_PADDED_VOCAB))

    def forward(self, input_ids, positions, targets):
        """input_ids [B, L]; positions [K] flat and targets [K] int64."""
        hidden = self.bert(input_ids=input_ids).last_hidden_state.flatten(0, 1)
        rows = self.norm(F.gelu(self.dense(hidden[positions])))
        logits = F.linear(rows, self.bert.embeddings.word_embeddings.weight, self.bias)
        return F.cross_entropy(logits.float(), targets)


def assembly_step(config, batch, device: str, precision: str, mode: str | None) -> PeerStep:
    """`Assembly`; compiled, as one would."""
    inputs = {
        "input_ids": batch.input_ids,
        "positions": batch.target_positions,
        "targets": batch.target_ids,
    }
    return PeerStep(Assembly(config), inputs, device, precision, mode)


class Original(nn.Module):
    """The original's arithmetic: logits of every token and of every slot of every padded span."""

    def __init__(self, config):
        super().__init__()
        own = BertForMaskedLM(bert_config(config))
        self.bert, self.cls = own.bert, own.cls
        self.sbo = SBOHead(config.hidden_size, config.max_span_targets)
        self.sbo_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, input_ids, labels, pairs, pair_ids):
        """input_ids, labels [B, L]; pairs [B, P, 2]; pair_ids [B, P, slots], -100 ignored."""
        hidden = self.bert(input_ids=input_ids).last_hidden_state
        scores = self.cls(hidden)
        rows = peers.padded_sbo(hidden, pairs, self.sbo)
        embedding = self.bert.embeddings.word_embeddings.weight
        slots = F.linear(rows, embedding, self.sbo_bias)
        return F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten()) + F.cross_entropy(
            slots.flatten(0, 2).float(), pair_ids.flatten()
        )


def original_step(config, batch, device: str, precision: str, mode: str | None) -> PeerStep:
    """`Original`, eager unless a mode is given."""
    length = batch.input_ids.shape[1]
    padded = peers.padded_targets(batch, length, config.max_span_targets)
    inputs = {
        "input_ids": batch.input_ids,
        "labels": batch.labels,
        "pairs": padded.pairs,
        "pair_ids": padded.ids,
    }
    return PeerStep(Original(config), inputs, device, precision, mode)
