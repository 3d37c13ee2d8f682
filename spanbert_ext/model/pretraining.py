"""`SpanBertForPreTraining`: encoder, MLM, span boundary and next sentence head in one model.

Importing this module registers `model_type: spanbert` with the Auto classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.model.config import ABOUT_THE_FILE, SpanBertConfig, check_heads, early_sbo_layer
from spanbert_ext.model.encoder import PackedBert
from spanbert_ext.model.heads import (
    HeadStates,
    MLMHead,
    PreTrainingHeads,
    first_tokens,
    mean_cross_entropy,
    over_compact_rows,
    wanted_rows,
)
from spanbert_ext.model.hf_encoder import build_hf_encoder, hf_hidden_states
from spanbert_ext.ops.cross_entropy import two_head_cross_entropy


@dataclass
class SpanBertOutput(ModelOutput):
    """What `SpanBertForPreTraining` returns.

    Args:
        loss: scalar, fp32; the only differentiable one of the four.
        mlm_loss, sbo_loss, nsp_loss: scalars for logging, each head's own mean; None without the
            head, nsp_loss also without labels.
        last_hidden_state: [T, H] or [B, L, H], when asked for or when there is no batch of targets.
        sbo_hidden_state: then also what the SBO head reads, [T, H], where config.sbo_layer is not
            the last.
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    sbo_loss: torch.Tensor | None = None
    nsp_loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    sbo_hidden_state: torch.Tensor | None = None


class SpanBertForPreTraining(BertPreTrainedModel):
    """SpanBERT for pre-training: MLM over masked spans, SBO from their boundaries (section 3), and
    BERT's next sentence prediction if the configuration asks for it.

    Our encoder stands under `bert` with BERT's parameter names; another encoder
    (config.encoder_config) under `backbone`. The output layer of MLM and SBO is the word embedding
    itself, with one bias per head.

    Args:
        config: `SpanBertConfig`.

    Raises:
        ValueError: the encoder's layers or token types, or another encoder's sizes, do not fit the
            heads.
    """

    config_class = SpanBertConfig
    # The loss is a mean already, so a Trainer that accumulates must divide it.
    accepts_loss_kwargs = False
    # Copies of tied or constant tensors that files of BERT may hold.
    _keys_to_ignore_on_load_unexpected = [
        r"cls\.predictions\.decoder\.",
        r"embeddings\.position_ids$",
    ]

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        check_heads(config)
        if config.encoder_config is None:
            self.bert = PackedBert(config, add_pooling_layer=config.nsp)
        else:
            self.backbone = build_hf_encoder(config)
        self.cls = PreTrainingHeads(config)
        self.post_init()

    @property
    def encoder(self) -> nn.Module:
        """`PackedBert`, or the other encoder."""
        return self.bert if self.config.encoder_config is None else self.backbone

    @classmethod
    def from_encoder(
        cls, encoder: PreTrainedModel | str | os.PathLike, **options
    ) -> SpanBertForPreTraining:
        """Pre-training around the weights of a Hugging Face encoder; the heads start anew.

        Args:
            encoder: an `AutoModel` encoder, a model with a head around one, or what
                `AutoModel.from_pretrained` takes.
            options: head fields of `SpanBertConfig`.

        Returns:
            A model with a copy of the weights; BERT becomes our packed encoder, others stay what
            they are.
        """
        if not isinstance(encoder, PreTrainedModel):
            encoder = AutoModel.from_pretrained(encoder)
        encoder = encoder.base_model
        fields = encoder.config.to_dict()
        kind = fields["model_type"]
        for name in ABOUT_THE_FILE:
            fields.pop(name, None)
        if kind not in ("bert", SpanBertConfig.model_type):
            vocab_size = encoder.get_input_embeddings().weight.shape[0]
            size = encoder.config.hidden_size
            own = {**fields, "model_type": kind, "vocab_size": vocab_size}
            fields = {"hidden_size": size, "vocab_size": vocab_size, "encoder_config": own}
        model = cls(SpanBertConfig(**{**fields, **options}))
        weights = encoder.state_dict()
        # A pooler is the next sentence head's: it may be missing there, or have no place here.
        own = {n: t for n, t in model.encoder.state_dict().items() if n.startswith("pooler.")}
        weights = {n: t for n, t in weights.items() if n in own or not n.startswith("pooler.")}
        model.encoder.load_state_dict({**own, **weights})
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Through transformers.initialization only: it leaves alone what a file has filled.
        super()._init_weights(module)
        if isinstance(module, MLMHead):
            init.zeros_(module.bias)
        elif isinstance(module, PreTrainingHeads) and module.sbo_bias is not None:
            init.zeros_(module.sbo_bias)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding, which is also the output layer."""
        if self.config.encoder_config is None:
            return self.bert.embeddings.word_embeddings
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding; the biases of the heads keep their length."""
        if self.config.encoder_config is None:
            self.bert.embeddings.word_embeddings = value
        else:
            self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in `PreTrainedModel`, arguments too; the biases of the heads follow with zeros."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        size = embedding.weight.shape[0]
        for owner, name in ((self.cls.predictions, "bias"), (self.cls, "sbo_bias")):
            bias = getattr(owner, name)
            if bias is None:
                continue
            grown = F.pad(bias.detach(), (0, size - bias.numel()))
            setattr(owner, name, nn.Parameter(grown, requires_grad=bias.requires_grad))
        if self.config.encoder_config is not None:
            self.config.encoder_config = {**self.config.encoder_config, "vocab_size": size}
        return embedding

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        batch: MaskedBatch | None = None,
        attention_mask: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        row_length: int | None = None,
        num_mlm_targets: torch.Tensor | int | None = None,
        num_sbo_targets: torch.Tensor | int | None = None,
        nsp_labels: torch.Tensor | None = None,
        num_nsp_targets: torch.Tensor | int | None = None,
        return_hidden: bool = False,
    ) -> SpanBertOutput:
        """Losses of a masked batch, or hidden states.

        Args:
            input_ids: [T] with cu_seqlens, or [B, L]; corrupted ids; default `batch.input_ids`.
            batch: targets and spans, indexing the flattened input; None: hidden states only.
            cu_seqlens, attention_mask, lengths, token_type_ids, max_seqlen, row_length: as in
                `PackedBert.forward`.
            num_mlm_targets, num_sbo_targets, num_nsp_targets: divisors of the losses in place of
                this batch's counts; with the counts of the whole step, the losses of its
                micro-batches add up to the big batch's.
            nsp_labels: [N] or [B] int64, 1 where the second segment of a sequence is random, 0
                where it goes on, -100 to ignore; only with config.nsp.
            return_hidden: also return the last layer, which is then computed for every token, and
                the SBO's if that is another.

        Raises:
            ValueError, TypeError, IndexError: an argument of the wrong shape, dtype, device or
                range.
        """
        if input_ids is None:
            if batch is None:
                raise ValueError("give input_ids, a batch, or both")
            input_ids = batch.input_ids
        inputs = (
            input_ids,
            cu_seqlens,
            attention_mask,
            lengths,
            token_type_ids,
            max_seqlen,
            row_length,
        )
        if batch is None:
            hidden, _, early = self._encode(inputs)
            return SpanBertOutput(last_hidden_state=hidden, sbo_hidden_state=early)
        if batch.labels.shape != input_ids.shape:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}, the batch was made of "
                f"{tuple(batch.labels.shape)}"
            )
        if nsp_labels is not None and not self.config.nsp:
            raise ValueError(
                "nsp_labels: the model has no next sentence head (config.nsp is false)"
            )
        batch = batch.used()
        firsts = None
        if nsp_labels is not None:
            firsts = first_tokens(nsp_labels, input_ids, cu_seqlens)
        states = self._states_of_heads(inputs, batch, firsts, return_hidden)
        with_sbo = self.cls.sbo is not None
        loss, mlm_loss, sbo_loss = two_head_cross_entropy(
            self.cls.predictions.transform(states.mlm),
            self.cls.sbo(states.sbo, states.spans) if with_sbo else None,
            states.embedding,
            batch.target_ids,
            batch.sbo_ids if with_sbo else None,
            self.cls.output_biases(),
            sbo_weight=self.config.sbo_weight,
            loss=self.config.loss,
            num_mlm_targets=num_mlm_targets,
            num_sbo_targets=num_sbo_targets,
        )
        nsp_loss = None
        if nsp_labels is not None:
            nsp_loss = mean_cross_entropy(
                self.nsp_logits(states.firsts), nsp_labels, num_nsp_targets
            )
            loss, nsp_loss = loss + nsp_loss, nsp_loss.detach()
        return SpanBertOutput(
            loss,
            mlm_loss,
            sbo_loss if with_sbo else None,
            nsp_loss,
            states.last if return_hidden else None,
            states.sbo if return_hidden and early_sbo_layer(self.config) is not None else None,
        )

    def nsp_logits(self, firsts: torch.Tensor) -> torch.Tensor:
        """Scores of the next sentence head: states of [CLS] [N, H] to [N, 2], 1 being random."""
        return self.cls.seq_relationship(self.bert.pooler(firsts))

    def mlm_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the MLM head: [..., H] to [..., V]."""
        rows = self.cls.predictions.transform(hidden)
        return F.linear(rows, self.get_input_embeddings().weight, self.cls.predictions.bias)

    def sbo_logits(self, hidden: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
        """Scores of the SBO head, [T, H] or [B, L, H] to [K, V]; void where sbo_ids is -100.
        `hidden` is the output's sbo_hidden_state, or last_hidden_state where there is none."""
        rows = self.cls.sbo(hidden, batch)
        return F.linear(rows, self.get_input_embeddings().weight, self.cls.sbo_bias)

    def _states_of_heads(
        self,
        inputs: tuple,
        batch: MaskedBatch,
        firsts: torch.Tensor | None,
        return_hidden: bool,
    ) -> HeadStates:
        """Encode, and pick what the heads read; arguments as in `forward`, `wanted_rows`."""
        ours = self.config.encoder_config is None
        early_sbo = early_sbo_layer(self.config) is not None
        if not ours or not self.config.last_layer_rows or return_hidden:
            states, embedding, early = self._encode(inputs)
            flat = states.reshape(-1, states.shape[-1])
            return HeadStates(
                mlm=flat.index_select(0, batch.target_positions),
                sbo=early if early_sbo else flat,
                spans=batch,
                firsts=None if firsts is None else flat.index_select(0, firsts.clamp(min=0)),
                embedding=embedding,
                last=states,
            )
        input_ids, max_seqlen = inputs[0], inputs[5]
        longest = self.bert.longest(input_ids, max_seqlen)
        spans = self.cls.sbo is not None and not early_sbo
        wanted = wanted_rows(batch, input_ids.numel(), longest, spans, firsts)
        hidden, embedding, early = self._encode(inputs, wanted)
        targets = batch.target_positions.shape[0]
        boundaries = 2 * batch.span_left.shape[0] if spans else 0
        mlm, sbo, first = hidden.tensor_split((targets, targets + boundaries))
        return HeadStates(
            mlm=mlm,
            sbo=sbo if spans else early,
            spans=over_compact_rows(batch) if spans else batch,
            firsts=first,
            embedding=embedding,
            last=None,
        )

    def _encode(
        self, inputs: tuple, wanted: tuple = (None, None)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Hidden states, the word embedding as the output layer is to use it, and the states of the
        layer before the last that the SBO reads."""
        if self.config.encoder_config is None:
            layer = early_sbo_layer(self.config)
            return self.bert(*inputs, *wanted, keep_layer=layer, return_all=True)
        *inputs, _ = inputs  # row_length is of no use there
        hidden = hf_hidden_states(self.backbone, *inputs)
        return hidden, self.get_input_embeddings().weight, None


class SpanBertModel(BertModel):
    """What `AutoModel` makes of a SpanBERT directory: transformers' own BERT, with a pooler where
    the model has one (config.nsp)."""

    config_class = SpanBertConfig

    def __init__(self, config: SpanBertConfig, add_pooling_layer: bool | None = None):
        if config.encoder_config is not None:
            kind = config.encoder_config["model_type"]
            raise ValueError(
                f"the encoder is {kind!r}, not BERT: load SpanBertForPreTraining, use its encoder"
            )
        wanted = config.nsp if add_pooling_layer is None else add_pooling_layer
        super().__init__(config, add_pooling_layer=wanted)


AutoConfig.register(SpanBertConfig.model_type, SpanBertConfig)
AutoModel.register(SpanBertConfig, SpanBertModel)
AutoModelForPreTraining.register(SpanBertConfig, SpanBertForPreTraining)
