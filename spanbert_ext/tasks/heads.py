"""Hugging Face's three task heads on our packed encoder.

Parameter names are those of `BertForQuestionAnswering`, `BertForTokenClassification` and
`BertForSequenceClassification`, and that is what a saved model says it is: plain transformers loads
it. A batch is packed (`cu_seqlens`) or padded (`attention_mask`), so the classes also work in
`transformers.Trainer`.
"""

from __future__ import annotations

import os
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertPreTrainedModel
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from spanbert_ext.model.encoder import PackedBert
from spanbert_ext.model.plain_modules import is_plain
from spanbert_ext.ops import backend
from spanbert_ext.tasks.losses import label_loss, span_loss


class _HeadModel(BertPreTrainedModel):
    """An encoder with a head; what the three have in common."""

    config_class = BertConfig
    # The losses are means already, so a Trainer that accumulates must divide them.
    accepts_loss_kwargs = False
    # Constant buffers, a pooler that the head does not read, and pre-training heads.
    _keys_to_ignore_on_load_unexpected = [
        r"embeddings\.position_ids$",
        r"^bert\.pooler\.",
        r"^cls\.",
    ]
    saved_as: ClassVar[str]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As in `PreTrainedModel`; the directory names the class of transformers that loads it."""
        super().save_pretrained(save_directory, **kwargs)
        self.config.architectures = [self.saved_as]
        self.config.save_pretrained(save_directory)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding, which grows with the tokenizer."""
        return self.bert.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace it."""
        self.bert.embeddings.word_embeddings = value

    def _types(self, token_type_ids: torch.Tensor | None) -> torch.Tensor | None:
        """None where the model has a single token type: it reads two texts as one."""
        return None if self.config.type_vocab_size < 2 else token_type_ids

    def _head(self, layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        """The last product in fp32: it is small, and 16-bit scores tie. A changed layer (adapters)
        is called in its own dtype."""
        with torch.autocast(hidden.device.type, enabled=False):
            if is_plain(layer, nn.Linear):
                return F.linear(hidden.float(), layer.weight.float(), layer.bias.float())
            own = next((p.dtype for p in layer.parameters() if p.is_floating_point()), hidden.dtype)
            return layer(hidden.to(own)).float()


def _places(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(starts [N], lengths [N], bound of a length) of the sequences in the flattened input."""
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().long()
        on_host = input_ids.device.type == "cpu" and not backend.cuda_path(input_ids.device)
        width = int(lengths.max()) if on_host and lengths.numel() else None
        return cu_seqlens[:-1].long(), lengths, width or input_ids.shape[0]
    rows, width = input_ids.shape
    starts = torch.arange(rows, device=input_ids.device) * width
    if attention_mask is None:
        return starts, torch.full_like(starts, width), width
    return starts, (attention_mask != 0).sum(1), width


class SpanBertForQuestionAnswering(_HeadModel):
    """Scores of every token for being the first and the last of the answer (paper section 4.3).

    Saved as `BertForQuestionAnswering`.

    Args:
        config: `BertConfig`.
    """

    saved_as = "BertForQuestionAnswering"

    def __init__(self, config: BertConfig):
        config.num_labels = 2  # by which transformers sizes this head
        super().__init__(config)
        self.bert = PackedBert(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Logits, and with positions the loss.

        Args:
            input_ids: [T] with cu_seqlens [N + 1], or [B, L]; further inputs as in
                `PackedBert.forward`.
            start_positions, end_positions: [N] or [B] int64, places in their sequence, 0 for a
                sequence without an answer; outside of it: ignored.
        """
        types = self._types(token_type_ids)
        hidden = self.bert(input_ids, cu_seqlens, attention_mask, None, types, max_seqlen)
        logits = self._head(self.qa_outputs, hidden)
        loss = None
        if start_positions is not None and end_positions is not None:
            starts, lengths, width = _places(input_ids, cu_seqlens, attention_mask)
            positions = torch.stack([start_positions, end_positions], -1).reshape(-1, 2)
            loss = span_loss(logits.reshape(-1, 2), starts, lengths, max_seqlen or width, positions)
        return QuestionAnsweringModelOutput(loss, logits[..., 0], logits[..., 1])


class SpanBertForTokenClassification(_HeadModel):
    """A label for tokens; saved as `BertForTokenClassification`.

    Args:
        config: `BertConfig` with the labels.
    """

    saved_as = "BertForTokenClassification"

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = PackedBert(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        rows: torch.Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Logits, and with labels the loss.

        Args:
            input_ids: [T] with cu_seqlens [N + 1], or [B, L]; further inputs as in
                `PackedBert.forward`.
            rows: [R] int64, flat indices of the tokens to label; the last layer is computed for
                them alone. Default all.
            labels: like input_ids, or [R]; int64, -100 to ignore.
        """
        types = self._types(token_type_ids)
        hidden = self.bert(
            input_ids, cu_seqlens, attention_mask, None, types, max_seqlen, rows=rows
        )
        logits = self._head(self.classifier, self.dropout(hidden))
        loss = None
        if labels is not None:
            loss = label_loss(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        return TokenClassifierOutput(loss, logits)


class SpanBertForSequenceClassification(_HeadModel):
    """A label, or a number, for a sequence, from the pooled [CLS]; saved as
    `BertForSequenceClassification`.

    Args:
        config: `BertConfig` with the labels; one label is a regression.
    """

    saved_as = "BertForSequenceClassification"
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$", r"^cls\."]

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = PackedBert(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> SequenceClassifierOutput:
        """Logits [N, C] or [B, C], and with labels the loss.

        Args:
            input_ids: [T] with cu_seqlens [N + 1], or [B, L]; further inputs as in
                `PackedBert.forward`. No sequence may be empty.
            labels: [N] or [B]; int64, -100 to ignore, or floating-point for a regression.
        """
        starts, _, _ = _places(input_ids, cu_seqlens, attention_mask)
        hidden = self.bert(
            input_ids,
            cu_seqlens,
            attention_mask,
            None,
            self._types(token_type_ids),
            max_seqlen,
            rows=starts,
            max_queries=1,
        )
        logits = self._head(self.classifier, self.dropout(self.bert.pooler(hidden)))
        loss = None
        if labels is not None:
            regression = self.num_labels == 1
            loss = label_loss(logits, labels.float() if regression else labels)
        return SequenceClassifierOutput(loss, logits)


def _classifier_dropout(config: BertConfig) -> float:
    own = config.classifier_dropout
    return float(config.hidden_dropout_prob if own is None else own)


HEADS = {
    "question-answering": SpanBertForQuestionAnswering,
    "token-classification": SpanBertForTokenClassification,
    "sequence-classification": SpanBertForSequenceClassification,
}
