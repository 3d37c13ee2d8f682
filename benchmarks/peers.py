"""What a user could pick instead of our operations: other people's code as it is installed, and
formulas written from their descriptions (SpanBERT paper sections 3.1 and 3.2, torch documentation).

Each peer gets its inputs in the form that suits it best; nothing it needs is prepared inside the
timed call that a user could prepare outside.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.workloads import CLS, FIRST_CONTINUATION, IGNORE, MASK, SEP, tokenizer

# Masking -----------------------------------------------------------------------------------------


def transformers_collator(ids: torch.Tensor, whole_words: bool) -> Callable[[], object]:
    """transformers' own collator, called behind its padding: ids and word borders are tensors."""
    from transformers import DataCollatorForLanguageModeling

    # With whole words it replaces by [MASK] only.
    replace = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if whole_words else {}
    collator = DataCollatorForLanguageModeling(tokenizer(), whole_word_mask=whole_words, **replace)
    special = ((ids == CLS) | (ids == SEP)).long()
    offsets = _offsets(ids) if whole_words else None
    return lambda: collator.torch_mask_tokens(
        ids.clone(), special_tokens_mask=special, offset_mapping=offsets
    )


def _offsets(ids: torch.Tensor) -> torch.Tensor:
    """[B, L, 2] character borders: pieces of a word touch, words have a space between them."""
    gaps = 1 + (ids < FIRST_CONTINUATION).long()
    starts = gaps.cumsum(1)
    return torch.stack([starts, starts + 1], dim=2)


def python_span_masking(ids: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The published span masking in plain Python and numpy, a row at a time.

    Draws a length in words and an anchor, draws again while the anchor is masked, moves to the
    start of the word, adds pieces until the words or the budget of 15 % are used up; touching spans
    are merged and share one 80/10/10 draw.

    Returns:
        (ids after masking [B, L], labels [B, L])
    """
    random = np.random.default_rng(seed)
    lengths = np.arange(1, 11)
    weights = 0.2 * 0.8 ** (lengths - 1)
    weights /= weights.sum()
    corrupted, labels = ids.copy(), np.full_like(ids, IGNORE)
    for row in range(len(ids)):
        inner = ids[row, 1:-1]
        masked = _sample_spans(inner < FIRST_CONTINUATION, random, lengths, weights)
        for first, last in _merge(sorted(masked)):
            place = slice(first + 1, last + 2)
            labels[row, place] = ids[row, place]
            draw = random.random()
            if draw < 0.8:
                corrupted[row, place] = MASK
            elif draw < 0.9:
                pool = random.integers(0, ids.size, last - first + 1)
                corrupted[row, place] = ids.reshape(-1)[pool]
    return corrupted, labels


def _sample_spans(starts, random, lengths, weights) -> set[int]:
    """Positions masked in one block, whose words begin where `starts` is set."""
    size = len(starts)
    budget = -(-15 * size // 100)
    masked: set[int] = set()
    while len(masked) < budget:
        words = random.choice(lengths, p=weights)
        anchor = random.choice(size)
        if anchor in masked:
            continue
        while anchor > 0 and not starts[anchor]:
            anchor -= 1
        taken = 0
        while anchor < size and len(masked) < budget:
            taken += bool(starts[anchor]) or not taken
            if taken > words:
                break
            masked.add(anchor)
            anchor += 1
    return masked


def _merge(positions: list[int]) -> list[tuple[int, int]]:
    """Maximal runs of ascending positions, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for place in positions:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


# Span boundary objective -------------------------------------------------------------------------


def ragged_sbo(hidden, left, right, offsets, head):
    """The paper's formula on the targets that exist: one row [x_left; x_right; p] a target.

    hidden [T, H]; left, right and offsets [n] of every target. Returns [n, H].
    """
    x = torch.cat([hidden[left], hidden[right], head.position_embeddings.weight[offsets]], dim=1)
    return _two_layers(x, head)


def padded_sbo(hidden, pairs, head):
    """The original module: every row's spans padded to the longest list, every slot computed.

    hidden [B, L, H]; pairs [B, pairs, 2] int64, positions in the row, (0, 0) where there is none.
    Returns [B, pairs, slots, H].
    """
    rows, width = pairs.shape[:2]
    slots, positions = head.position_embeddings.weight.shape
    index = pairs.reshape(rows, 2 * width, 1).expand(-1, -1, hidden.shape[-1])
    pair = hidden.gather(1, index).view(rows, width, 1, -1).expand(-1, -1, slots, -1)
    table = head.position_embeddings.weight.expand(rows, width, slots, positions)
    return _two_layers(torch.cat([pair, table], dim=3), head)


def _two_layers(x, head):
    for linear, norm in ((head.linear1, head.layer_norm1), (head.linear2, head.layer_norm2)):
        x = F.gelu(F.linear(x, linear.weight, linear.bias))
        x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return x


@dataclasses.dataclass(frozen=True)
class RaggedTargets:
    """What `ragged_sbo` reads: [n] int64 each, and which of the batch's slots they are."""

    left: torch.Tensor
    right: torch.Tensor
    offsets: torch.Tensor
    slots: torch.Tensor


def ragged_targets(batch) -> RaggedTargets:
    """The targets of a batch that the SBO has."""
    slots = (batch.sbo_ids != IGNORE).nonzero().squeeze(1)
    spans = batch.target_spans[slots]
    offsets = batch.target_offsets[slots]
    return RaggedTargets(batch.span_left[spans], batch.span_right[spans], offsets, slots)


@dataclasses.dataclass(frozen=True)
class PaddedTargets:
    """What `padded_sbo` reads, and where in its result the targets lie.

    pairs [B, P, 2]; row, pair and slot [n] of every target; ids [B, P, slots] with -100 elsewhere.
    """

    pairs: torch.Tensor
    row: torch.Tensor
    pair: torch.Tensor
    slot: torch.Tensor
    ids: torch.Tensor


def padded_targets(batch, length: int, slots: int) -> PaddedTargets:
    """The same targets in the original's layout, rows padded to the most spans of a row."""
    rows = batch.labels.numel() // length
    left, right = batch.span_left.cpu(), batch.span_right.cpu()
    valid = right > left
    row_of_span = torch.where(valid, left // length, -1)
    rank = torch.full_like(left, -1)
    for row in range(rows):
        own = row_of_span == row
        rank[own] = torch.arange(int(own.sum()))
    width = int(rank.max()) + 1
    pairs = torch.zeros(rows, width, 2, dtype=torch.int64)
    pairs[row_of_span[valid], rank[valid], 0] = left[valid] % length
    pairs[row_of_span[valid], rank[valid], 1] = right[valid] % length
    ids = torch.full((rows, width, slots), IGNORE)
    used = (batch.sbo_ids != IGNORE).nonzero().squeeze(1).cpu()
    spans, slot = batch.target_spans.cpu()[used], batch.target_offsets.cpu()[used]
    row, pair = row_of_span[spans], rank[spans]
    ids[row, pair, slot] = batch.sbo_ids.cpu()[used]
    return PaddedTargets(*(t.to(batch.labels.device) for t in (pairs, row, pair, slot, ids)))


# Vocabulary loss ---------------------------------------------------------------------------------


def eager_loss(rows, weight, bias, targets):
    """Logits in the rows' dtype, softmax and loss in fp32; bias [V]."""
    logits = F.linear(rows, weight).float() + bias
    return F.cross_entropy(logits, targets)


def low_precision_loss(rows, weight, bias, targets):
    """Everything in the rows' dtype: faster, and less accurate in bf16."""
    return F.cross_entropy(F.linear(rows, weight, bias.to(rows.dtype)), targets).float()


def torch_chunked_loss() -> Callable | None:
    """torch.nn.functional.linear_cross_entropy in chunks, where this torch has it."""
    if not hasattr(F, "linear_cross_entropy") or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    options = torch.nn.LinearCrossEntropyOptions()

    def loss(rows, weight, bias, targets):
        own = bias.to(rows.dtype)
        return F.linear_cross_entropy(rows, weight, targets, linear_bias=own, options=options)

    return loss


def liger_loss() -> Callable | None:
    """Liger's fused linear cross entropy (Triton), where it is installed and can run."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    own = LigerFusedLinearCrossEntropyLoss()
    return lambda rows, weight, bias, targets: own(weight, rows, targets, bias.to(rows.dtype))


def auto_chunked_loss() -> Callable | None:
    """The eager loss under inductor's chunker, where this torch has one."""
    from torch._inductor import config

    if not hasattr(config, "auto_chunker"):
        return None
    return torch.compile(eager_loss, options={"auto_chunker.enable": True}, dynamic=False)
