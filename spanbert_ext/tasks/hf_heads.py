"""Other Hugging Face encoders (RoBERTa, ModernBERT ...) with their own heads, on packed batches.

They take padded batches: a stream is unpacked for them, and what they return is packed again.
"""

from __future__ import annotations

import inspect
import os

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from spanbert_ext.tasks.task import Head


class HfHead(nn.Module):
    """A `transformers` model with one of the three heads, called like ours.

    Args:
        model: of an `AutoModelFor...` class.
        head: which of them.
    """

    # Of a stream's tokens, as in `batching.pack`. Padding behind the last sequence would become
    # rows of nothing else, which some encoders refuse and the others compute for nothing.
    multiple = 1

    def __init__(self, model: PreTrainedModel, head: Head):
        super().__init__()
        self.model = model
        self._head = head
        takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        # A table of one row, as RoBERTa's, cannot tell two texts apart, whatever a tokenizer says.
        self._has_types = takes_types and getattr(model.config, "type_vocab_size", 2) > 1

    @property
    def config(self):
        """The wrapped model's."""
        return self.model.config

    def save_pretrained(self, save_directory: str | os.PathLike, state_dict=None) -> None:
        """The wrapped model as itself; `state_dict` has the names of this module."""
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): t for name, t in state_dict.items()}
        self.model.save_pretrained(save_directory, state_dict=state_dict)

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        rows: torch.Tensor | None = None,
    ) -> ModelOutput:
        """Logits of a stream [T], as `SpanBertFor...` give them; arguments as there."""
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        columns = torch.arange(max_seqlen or int(lengths.max()), device=input_ids.device)
        inside = columns < lengths.unsqueeze(1)
        index = torch.where(inside, starts.unsqueeze(1) + columns, 0)
        pad = self.config.pad_token_id or 0
        # A sequence of no token attends to one of padding: a softmax over nothing is NaN.
        mask = inside | (columns == 0)
        types = {}
        if token_type_ids is not None and self._has_types:
            types = {"token_type_ids": torch.where(inside, token_type_ids[index], 0)}
        padded = torch.where(inside, input_ids[index], pad)
        output = self.model(padded, attention_mask=mask.long(), **types)
        if self._head == "sequence-classification":
            return ModelOutput(logits=output.logits.float())
        if self._head == "question-answering":
            return ModelOutput(
                start_logits=output.start_logits[inside].float(),
                end_logits=output.end_logits[inside].float(),
            )
        logits = output.logits[inside].float()
        return ModelOutput(logits=logits if rows is None else logits[rows])
