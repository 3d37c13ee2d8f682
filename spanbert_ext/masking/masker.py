"""Masking of batches (paper sections 3.1 and 6.1): `SpanMasker`, which returns a `MaskedBatch`.

A sequence's mask is a pure function of (seed, epoch, sample id): the same on every device, in every
batch, on any number of workers, behind any padding. Shapes depend on the input's shape alone, so a
step can be captured in a CUDA graph.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import torch

from spanbert_ext.errors import DataError
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.masking.checks import check_ids, check_like, check_vector
from spanbert_ext.masking.sample_ids import SampleIdCounter
from spanbert_ext.masking.settings import (
    CANDIDATE_SCHEMES,
    SCHEMES,
    check_choice,
    check_probability,
    length_moments,
    lookup_tables,
    sampler_settings,
    span_lengths,
)
from spanbert_ext.ops import span_mask as mask_op
from spanbert_ext.ops.reference.span_mask import CANDIDATE_CONTINUES, budget_of
from spanbert_ext.ops.registration import check_range

# Standard deviations between the expected number of spans and the capacity: a normal tail below
# 1e-9.
_SPAN_MARGIN = 6.5


class SpanMasker:
    """Masks spans, words or pieces and lists the targets of the MLM and SBO heads.

    Args:
        word_starts: [V] bool, whether a piece begins a word.
        special_ids: ids that are never masked and end a span ([CLS], [SEP], [PAD], [MASK] ...).
        mask_id: id of [MASK].
        seed: key of the generator, any integer in [-2**63, 2**64).
        mask_ratio: share of the eligible pieces of a sequence that is masked, in (0, 1]; the count
            is ceil(mask_ratio * eligible), hit exactly. Held as a fraction with denominator up to a
            million.
        geometric_p: p of the geometric length distribution, in (0, 1]; truncated to
            min_words..max_words. Scheme span alone draws lengths.
        min_words, max_words: bounds of the length that is drawn for a span, in words. A span is
            shorter than min_words where a special token or the end of its sequence comes first, and
            where it is the last one drawn: it ends where the count of masked pieces is reached. It
            is longer than max_words where spans touch or overlap, which makes them one.
        replacement: "span" draws [MASK] / random / keep once for a merged span, "piece" for every
            piece, as the scheme piece always does.
        mask_prob, random_prob: probabilities of [MASK] and of random pieces; the rest is kept.
        random_tokens: [R] pool of ids for random pieces, drawn uniformly; None: all ordinary ids.
        max_span_targets: how many pieces of a span, counted from the left, are SBO targets.
        scheme: what is selected: "span" (SpanBERT), "piece" (BERT: single pieces, none of them an
            SBO target), "word" (whole words), "entity" and "phrase" (candidate spans that come with
            the tokens, and whole words).
        candidate_prob: probability that a draw of the scheme entity or phrase takes a candidate
            span and not a word, while the sequence has one that is not wholly masked.
        endpoints: "external", the SBO predicts a span from its neighbours, where both are ordinary
            tokens; "internal", from its own first and last token, whatever they became. A span of
            one token that begins its sequence has no internal endpoints: its boundaries would read
            as those of an unused slot; behind a [CLS] there is no such span.

    Called without sample_ids, a masker gives the rows the ids that follow those of the call before,
    so every batch has new draws; `next_sample_id` says where it stands, may be set, and is part of
    copies and pickles. In a `DataLoader`'s worker it starts from the worker's seed, so that no two
    workers and no two epochs repeat each other. Other processes with copies of one masker (ranks,
    pools) all begin with the same draws: give them sample_ids, or seeds of their own.

    Source: paper sections 3.1, 3.2 and 6.1; the rules are those of the published settings.
    """

    def __init__(
        self,
        word_starts: torch.Tensor | Sequence[bool],
        special_ids: Sequence[int],
        mask_id: int,
        seed: int = 0,
        mask_ratio: float = 0.15,
        geometric_p: float = 0.2,
        min_words: int = 1,
        max_words: int = 10,
        replacement: str = "span",
        mask_prob: float = 0.8,
        random_prob: float = 0.1,
        random_tokens: torch.Tensor | Sequence[int] | None = None,
        max_span_targets: int = 15,
        scheme: str = "span",
        candidate_prob: float = 0.5,
        endpoints: str = "external",
    ):
        check_choice("scheme", scheme, SCHEMES)
        check_probability("geometric_p", geometric_p, allow_zero=False)
        lengths = span_lengths(scheme, geometric_p, min_words, max_words)
        self.scheme = scheme
        self.settings = sampler_settings(
            scheme,
            lengths,
            mask_id,
            seed,
            mask_ratio,
            replacement,
            mask_prob,
            random_prob,
            max_span_targets,
            candidate_prob,
            endpoints,
        )
        self._lengths = length_moments(*lengths)
        self._vocabulary, self._random_tokens = lookup_tables(
            scheme, word_starts, special_ids, mask_id, random_tokens
        )
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._sample_ids = SampleIdCounter()

    @classmethod
    def from_tokenizer(cls, tokenizer, seed: int = 0, **options) -> SpanMasker:
        """A masker for a Hugging Face tokenizer (WordPiece, byte-level BPE or SentencePiece).

        Args:
            tokenizer: a transformers fast tokenizer, the directory of a saved one, or a hub name.
            seed, options: as in the constructor.

        Raises:
            DataError: there is no tokenizer of that name, or it lacks a special token.
        """
        from spanbert_ext.text.vocabulary import VocabularyInfo

        if isinstance(tokenizer, (str, os.PathLike)) and not os.path.exists(tokenizer):
            tokenizer = _named_tokenizer(str(tokenizer))
        info = VocabularyInfo.from_tokenizer(tokenizer)
        return cls(info.word_starts, info.special_ids, info.mask_id, seed=seed, **options)

    @property
    def vocab_size(self) -> int:
        """Number of ids the masker knows."""
        return self._vocabulary.numel()

    @property
    def needs_candidates(self) -> bool:
        """Whether batches must come with `candidates`."""
        return self.scheme in CANDIDATE_SCHEMES

    @property
    def next_sample_id(self) -> int:
        """Sample id of the first row of the next call without sample_ids, in [0, 2**62); 0 at
        first, in a worker of a `DataLoader` what its seed gives."""
        return self._sample_ids.next

    @next_sample_id.setter
    def next_sample_id(self, value: int) -> None:
        self._sample_ids.next = value

    def __setstate__(self, state):
        self.__dict__.update({"_sample_ids": SampleIdCounter(), **state})

    def __getstate__(self):
        return {**self.__dict__, "_on_device": {}}  # device copies are remade where they are needed

    def __call__(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor = 0,
        attention_mask: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a padded batch.

        Args:
            input_ids: [B, L] int32 or int64, contiguous.
            lengths: [B] integer, used tokens of each row; default all L.
            sample_ids: [B] int64, what makes each row's mask its own, such as its index in the
                data; default the next ids, which gives every call new draws. A step captured in a
                CUDA graph must pass them.
            epoch: int, or a [1] int64 tensor on the input's device (for captured steps). The same
                sample in the same epoch is masked the same way.
            attention_mask: [B, L], 0 at positions that must not be masked. A row begins at its
                first position that is not 0, so padding on the left changes no mask; without
                attention_mask it is part of the row.
            candidates: [B, L] uint8, where the candidate spans of the scheme entity or phrase are:
                1 begins one, 2 continues it, 0 belongs to none. Special tokens end them. Other
                schemes take None.
            token_type_ids: not read; here so that `masker(**encoding)` takes what a tokenizer of
                transformers returns.

        Raises:
            TypeError, ValueError: wrong dtype, shape, device or layout of an argument.
            IndexError: an id outside the vocabulary or a length outside the row (on CUDA a device
                assertion).
            RuntimeError: no sample_ids while a CUDA graph is captured.
        """
        check_ids("input_ids", input_ids, 2)
        rows, width = input_ids.shape
        device = input_ids.device
        starts = torch.arange(rows, device=device) * width
        ends = starts + width
        if lengths is not None:
            if isinstance(lengths, torch.Tensor) and lengths.shape == input_ids.shape:
                raise ValueError(
                    f"lengths must have shape ({rows},); got {tuple(lengths.shape)}, the shape of "
                    "input_ids: pass an attention mask as attention_mask="
                )
            check_vector("lengths", lengths, rows, device)
            check_range("lengths", lengths, width + 1, kernel_asserts=True)
            ends = starts + lengths
        flat = input_ids.view(-1)
        kept = None
        self._check_candidates(candidates, input_ids)
        if attention_mask is not None:
            check_like("attention_mask", attention_mask, input_ids)
            kept = attention_mask != 0
            if width:
                # Draws of replacements are counted from the start of a row, so that is no padding.
                first = kept.to(torch.uint8).argmax(1)
                starts = torch.minimum(starts + first, ends)
            kept = kept.reshape(-1)
            flat = torch.where(kept, flat, self.settings.mask_id)  # a special id, so never masked
        targets = rows * budget_of(width, self.settings.ratio)
        spans = self._span_capacity(rows, rows * width, targets)
        marks = None if candidates is None else candidates.view(-1)
        batch = self._mask(flat, starts, ends, sample_ids, epoch, targets, spans, marks)
        ids = (
            batch.input_ids
            if kept is None
            else torch.where(kept, batch.input_ids, input_ids.view(-1))
        )
        return dataclasses.replace(
            batch, input_ids=ids.view(rows, width), labels=batch.labels.view(rows, width)
        )

    def packed(
        self,
        tokens: torch.Tensor,
        cu_seqlens: torch.Tensor,
        sample_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor = 0,
        candidates: torch.Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a stream of sequences laid end to end.

        Args:
            tokens: [T] int32 or int64, contiguous.
            cu_seqlens: [N + 1] int32 or int64, 0 first, T last, never falling; repeats are empty
                sequences.
            sample_ids, epoch, candidates: as for a padded batch, sample_ids being [N] and
                candidates [T].

        Raises:
            TypeError, ValueError, IndexError, RuntimeError: as for a padded batch; ValueError (on
                CUDA a device assertion) where cu_seqlens is not what it must be.
        """
        check_ids("tokens", tokens, 1)
        self._check_candidates(candidates, tokens)
        if not isinstance(cu_seqlens, torch.Tensor):
            raise TypeError(f"cu_seqlens must be a tensor; got {type(cu_seqlens).__name__}")
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
            raise ValueError(f"cu_seqlens must be [N + 1]; got shape {tuple(cu_seqlens.shape)}")
        check_vector("cu_seqlens", cu_seqlens, cu_seqlens.numel(), tokens.device)
        cu_seqlens = cu_seqlens.to(torch.int64)
        total, sequences = tokens.numel(), cu_seqlens.numel() - 1
        mask_op.check_cu_seqlens(cu_seqlens, total)
        # Each of N ceilings adds less than one to the ratio of the whole.
        targets = min(total, budget_of(total, self.settings.ratio) + max(sequences - 1, 0))
        spans = self._span_capacity(sequences, total, targets)
        return self._mask(
            tokens, cu_seqlens[:-1], cu_seqlens[1:], sample_ids, epoch, targets, spans, candidates
        )

    def _check_candidates(self, candidates: torch.Tensor | None, ids: torch.Tensor) -> None:
        if not self.needs_candidates:
            if candidates is not None:
                raise ValueError(
                    f"the scheme {self.scheme} has no use for candidates; leave it out"
                )
            return
        if candidates is None:
            raise ValueError(
                f"the scheme {self.scheme} needs candidates: {tuple(ids.shape)} uint8, 1 where a "
                "candidate span begins, 2 where it goes on, 0 elsewhere"
            )
        check_like("candidates", candidates, ids)
        if candidates.dtype != torch.uint8:
            raise TypeError(f"candidates must be uint8; got {candidates.dtype}")
        if not candidates.is_contiguous():
            raise ValueError(f"candidates must be contiguous; got strides {candidates.stride()}")
        check_range("candidates", candidates, CANDIDATE_CONTINUES + 1)

    def _mask(
        self, tokens, starts, ends, sample_ids, epoch, targets, spans, candidates
    ) -> MaskedBatch:
        device = tokens.device
        count = starts.numel()
        if sample_ids is None:
            sample_ids = self._sample_ids.take(count, device)
        check_vector("sample_ids", sample_ids, count, device)
        if not isinstance(epoch, torch.Tensor):
            epoch = torch.full((1,), int(epoch), dtype=torch.int64, device=device)
        check_vector("epoch", epoch, 1, device)
        epoch = epoch.to(torch.int64)
        vocabulary, random_tokens = self._tables_on(device)
        batch = MaskedBatch(
            *mask_op.span_mask(
                tokens,
                starts,
                ends,
                sample_ids.to(torch.int64),
                epoch,
                vocabulary,
                random_tokens,
                self.settings,
                targets,
                spans,
                candidates,
            )
        )
        return dataclasses.replace(batch, max_span_targets=self.settings.max_span_targets)

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # The first call for a device copies the tables and waits; do it before capturing a graph.
        if device not in self._on_device:
            self._on_device[device] = (
                self._vocabulary.to(device),
                self._random_tokens.to(device),
            )
        return self._on_device[device]

    def _span_capacity(self, sequences: int, total: int, targets: int) -> int:
        """Room for the merged spans of a batch, below `targets` unless spans are single pieces.

        The number of draws that fill a budget is a renewal process over span lengths (words are at
        least one piece): mean budget / mu + (mu^2 + var) / (2 mu^2) a sequence, variance budget *
        var / mu^3. The end of a sequence cuts draws short, which costs up to half a draw more for
        each mean length's worth of sequence; merging only lowers the count.
        """
        mean, variance = self._lengths
        if sequences == 0 or targets == 0:
            return targets
        cut = mean * mean / (2 * max(total / sequences, mean))
        effective = max(1.0, mean - cut)
        first = (mean * mean + variance) / (2 * mean * mean) + 0.5
        expected = targets / effective + sequences * first
        deviation = math.sqrt(targets * variance / effective**3 + sequences)
        return min(targets, math.ceil(expected + _SPAN_MARGIN * deviation))


def _named_tokenizer(name: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} is no directory here, and transformers finds no tokenizer of that name "
            f"({str(error).splitlines()[0]}): give the directory of a saved tokenizer, a name on "
            "the hub, or a tokenizer object"
        ) from error
