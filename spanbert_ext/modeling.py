"""`SpanBertConfig` and `SpanBertForPreTraining`: encoder, MLM and span boundary head in one model.

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
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput

from spanbert_ext.cross_entropy import two_head_cross_entropy
from spanbert_ext.encoder import PackedBert
from spanbert_ext.foreign import encode_foreign, foreign_encoder
from spanbert_ext.heads import MLMHead, PreTrainingHeads, over_compact_rows, wanted_rows
from spanbert_ext.masked_batch import MaskedBatch
from spanbert_ext.sbo import GeluLayerNorm

# What a configuration says about the file it came from, not about the model.
ABOUT_THE_FILE = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype")


class SpanBertConfig(BertConfig):
    """BERT's configuration and what the pre-training heads add.

    Args:
        max_span_targets: P, positions of a span that the SBO predicts, counted from the left; at
            least 1.
        position_size: width of a position embedding of the SBO; at least 1.
        sbo_weight: weight of the SBO loss, at least 0.
        loss: "code" (means of both heads, the published runs) or "paper" (sums over the MLM count).
        encoder_config: configuration of another Hugging Face encoder, a dict with `model_type`;
            then hidden_size and vocab_size are that encoder's, and BERT's other sizes mean nothing.
        last_layer_rows: compute the last layer of our encoder only where a head reads it; same loss
            and gradients.
        weights_licence: of the weights this model started from, where they carry one; goes with it
            into every checkpoint and export.
        kwargs: fields of `BertConfig`.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "spanbert"

    # An __init__ of our own instead of dataclass fields: BertConfig is a dataclass only in later
    # 5.x releases.
    def __init__(
        self,
        max_span_targets: int = 15,
        position_size: int = 200,
        sbo_weight: float = 1.0,
        loss: str = "code",
        encoder_config: dict | None = None,
        last_layer_rows: bool = True,
        weights_licence: str | None = None,
        **kwargs,
    ):
        for name, size in (
            ("max_span_targets", max_span_targets),
            ("position_size", position_size),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {size!r}")
        if (
            isinstance(sbo_weight, bool)
            or not isinstance(sbo_weight, (int, float))
            or not sbo_weight >= 0
        ):
            raise ValueError(f"sbo_weight must be a number of at least 0; got {sbo_weight!r}")
        if loss not in ("code", "paper"):
            raise ValueError(f"loss must be code or paper; got {loss!r}")
        if not isinstance(last_layer_rows, bool):
            raise ValueError(f"last_layer_rows must be true or false; got {last_layer_rows!r}")
        if encoder_config is not None and not (
            isinstance(encoder_config, dict) and encoder_config.get("model_type")
        ):
            raise ValueError(
                f"encoder_config must be a dict with model_type; got {encoder_config!r}"
            )
        super().__init__(**kwargs)
        self.max_span_targets = max_span_targets
        self.position_size = position_size
        self.sbo_weight = float(sbo_weight)
        self.loss = loss
        self.encoder_config = encoder_config
        self.last_layer_rows = last_layer_rows
        self.weights_licence = weights_licence


@dataclass
class SpanBertOutput(ModelOutput):
    """What `SpanBertForPreTraining` returns.

    Args:
        loss: scalar, fp32; the only differentiable one of the three.
        mlm_loss, sbo_loss: scalars for logging, each head's own mean.
        last_hidden_state: [T, H] or [B, L, H], when asked for or when there is no batch of targets.
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    sbo_loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class SpanBertForPreTraining(BertPreTrainedModel):
    """SpanBERT for pre-training: MLM over masked spans, SBO from their boundaries (section 3).

    Our encoder stands under `bert` with BERT's parameter names; another encoder
    (config.encoder_config) under `backbone`. The output layer of both heads is the word embedding
    itself, with one bias per head.

    Args:
        config: `SpanBertConfig`.

    Raises:
        ValueError: the other encoder's hidden size, embedding width or vocabulary does not fit.
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
        if config.encoder_config is None:
            self.bert = PackedBert(config)
        else:
            self.backbone = foreign_encoder(config)
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
        """Pre-training around the weights of a Hugging Face encoder; both heads start anew.

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
        wanted = model.encoder.state_dict().keys()  # without a pooler where one can be left out
        weights = encoder.state_dict()
        for name in [n for n in weights if n.startswith("pooler.") and n not in wanted]:
            del weights[name]
        model.encoder.load_state_dict(weights)
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Through transformers.initialization only: it leaves alone what a file has filled.
        super()._init_weights(module)
        if isinstance(module, MLMHead):
            init.zeros_(module.bias)
        elif isinstance(module, PreTrainingHeads):
            init.zeros_(module.sbo_bias)
        elif isinstance(module, GeluLayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

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
        """As in `PreTrainedModel`, arguments too; the biases of both heads follow with zeros."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        size = embedding.weight.shape[0]
        for owner, name in ((self.cls.predictions, "bias"), (self.cls, "sbo_bias")):
            bias = getattr(owner, name)
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
        return_hidden: bool = False,
    ) -> SpanBertOutput:
        """Losses of a masked batch, or hidden states.

        Args:
            input_ids: [T] with cu_seqlens, or [B, L]; corrupted ids; default `batch.input_ids`.
            batch: targets and spans, indexing the flattened input; None: hidden states only.
            cu_seqlens, attention_mask, lengths, token_type_ids, max_seqlen, row_length: as in
                `PackedBert.forward`.
            num_mlm_targets, num_sbo_targets: divisors of the losses in place of this batch's
                counts; with the counts of the whole step, the losses of its micro-batches add up to
                the big batch's.
            return_hidden: also return the last layer, which is then computed for every token.

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
            return SpanBertOutput(last_hidden_state=self._encode(*inputs)[0])
        if batch.labels.shape != input_ids.shape:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}, the batch was made of "
                f"{tuple(batch.labels.shape)}"
            )
        batch = batch.used()
        states = None
        if self.config.encoder_config is None and self.config.last_layer_rows and not return_hidden:
            longest = self.bert.longest(input_ids, max_seqlen)
            wanted = wanted_rows(batch, input_ids.numel(), longest)
            hidden, embedding = self._encode(*inputs, wanted)
            split = batch.target_positions.shape[0]
            mlm_hidden, sbo_hidden = hidden[:split], hidden[split:]
            batch = over_compact_rows(batch)
        else:
            states, embedding = self._encode(*inputs)
            sbo_hidden = states.reshape(-1, states.shape[-1])
            mlm_hidden = sbo_hidden.index_select(0, batch.target_positions)
        loss, mlm_loss, sbo_loss = two_head_cross_entropy(
            self.cls.predictions.transform(mlm_hidden),
            self.cls.sbo(sbo_hidden, batch),
            embedding,
            batch.target_ids,
            batch.sbo_ids,
            torch.stack([self.cls.predictions.bias, self.cls.sbo_bias]),
            sbo_weight=self.config.sbo_weight,
            loss=self.config.loss,
            num_mlm_targets=num_mlm_targets,
            num_sbo_targets=num_sbo_targets,
        )
        return SpanBertOutput(loss, mlm_loss, sbo_loss, states if return_hidden else None)

    def mlm_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the MLM head: [..., H] to [..., V]."""
        rows = self.cls.predictions.transform(hidden)
        return F.linear(rows, self.get_input_embeddings().weight, self.cls.predictions.bias)

    def sbo_logits(self, hidden: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
        """Scores of the SBO head, [T, H] or [B, L, H] to [K, V]; void where sbo_ids is -100."""
        rows = self.cls.sbo(hidden, batch)
        return F.linear(rows, self.get_input_embeddings().weight, self.cls.sbo_bias)

    def _encode(
        self,
        input_ids,
        cu_seqlens,
        attention_mask,
        lengths,
        token_type_ids,
        max_seqlen,
        row_length,
        wanted=(None, None),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states, and the word embedding as the output layer is to use it."""
        if self.config.encoder_config is None:
            return self.bert(
                input_ids,
                cu_seqlens,
                attention_mask,
                lengths,
                token_type_ids,
                max_seqlen,
                row_length,
                *wanted,
                return_embedding=True,
            )
        hidden = encode_foreign(
            self.backbone,
            input_ids,
            cu_seqlens,
            attention_mask,
            lengths,
            token_type_ids,
            max_seqlen,
        )
        return hidden, self.get_input_embeddings().weight


class SpanBertModel(BertModel):
    """What `AutoModel` makes of a SpanBERT directory: transformers' own BERT, without a pooler."""

    config_class = SpanBertConfig

    def __init__(self, config: SpanBertConfig, add_pooling_layer: bool = False):
        if config.encoder_config is not None:
            kind = config.encoder_config["model_type"]
            raise ValueError(
                f"the encoder is {kind!r}, not BERT: load SpanBertForPreTraining, use its encoder"
            )
        super().__init__(config, add_pooling_layer=add_pooling_layer)


AutoConfig.register(SpanBertConfig.model_type, SpanBertConfig)
AutoModel.register(SpanBertConfig, SpanBertModel)
AutoModelForPreTraining.register(SpanBertConfig, SpanBertForPreTraining)
