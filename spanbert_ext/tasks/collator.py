"""Packed batches for `transformers.Trainer`: what `data_collator=` takes with our heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spanbert_ext.tasks.batching import pack
from spanbert_ext.tasks.task import Feature, Head

_ANSWER = ("start_positions", "end_positions")


class PackedCollator:
    """Makes one stream of a batch's rows for `SpanBertForQuestionAnswering` and its siblings, so
    that a Trainer computes no padding either.

    Args:
        head: question-answering, token-classification or sequence-classification.
        pad_token_id: of the tokenizer; fills the end of the stream.

    Called with rows as a tokenised dataset gives them, unpadded: `input_ids`, `token_type_ids` or
    none, and for training `start_positions` and `end_positions`, `labels` [n] with -100 where there
    is none, or `labels`, a number. Other columns are left alone.
    """

    def __init__(self, head: Head, pad_token_id: int = 0):
        self._head, self._pad_token_id = head, pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Arguments of the model's forward."""
        batch = pack([self._feature(i, row) for i, row in enumerate(rows)], self._head,
                     self._pad_token_id)  # fmt: skip
        inputs = {name: value for name, value in batch.inputs().items() if value is not None}
        if batch.labels is None:
            return inputs
        if self._head == "question-answering":
            return inputs | dict(zip(_ANSWER, batch.labels.unbind(1), strict=True))
        return inputs | {"labels": batch.labels}

    def _feature(self, number: int, row: Mapping[str, Any]) -> Feature:
        ids = np.asarray(row["input_ids"], np.int64)
        types = row.get("token_type_ids")
        labels, rows = row.get("labels"), None
        if self._head == "question-answering":
            labels = None
            if row.get(_ANSWER[0]) is not None:
                labels = np.array([int(row[name]) for name in _ANSWER], np.int64)
        elif self._head == "token-classification":
            rows = np.arange(len(ids))
            if labels is not None:
                labels = np.asarray(labels, np.int64)
                rows = np.flatnonzero(labels != -100)
                labels = labels[rows]
        elif labels is not None:
            labels = np.asarray(labels)
            floating = np.issubdtype(labels.dtype, np.floating)
            labels = labels.astype(np.float32 if floating else np.int64)
        types = None if types is None else np.asarray(types, np.int64)
        return Feature(number, ids, types, rows, labels)
