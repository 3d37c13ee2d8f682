"""Fill a masked span with both heads of SpanBERT.

The MLM head reads each masked position; the SBO head predicts the same piece from the two tokens
around the span and its place in it (paper section 3.2). Either gives a distribution for every
position, and a filling's probability is the product over positions: the k best fillings of a
product are found exactly, best first (`k_best`). `refine` asks the MLM again after each piece
instead.

"combined" is the log-linear mixture of both: p(piece) proportional to mlm(piece)^w1 sbo(piece)^w2,
normalised at every position.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.filling.gaps import Gap, GapReader
from spanbert_ext.filling.search import (
    Found,
    MaskedSpan,
    batch_of_spans,
    begun_span,
    best_pieces,
    sequences,
)
from spanbert_ext.model.pretraining import SpanBertForPreTraining
from spanbert_ext.threads import alone_with
from spanbert_ext.weights import conversion

HEADS = ("combined", "mlm", "sbo")
# Fillings of one length that are looked at, for each that is asked for; some are no text.
_LOOKED_AT, _AT_LEAST = 4, 64
# Rows of vocabulary scores computed at a time: 60 MB with 30,000 pieces.
_MOST_TARGETS = 512
_MOST_TOKENS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Filling:
    """What may stand in a gap.

    Args:
        text: of the filling.
        filled: the whole text with it; `filled[start:end] == text`.
        start, end: its place there, in characters.
        pieces: of the vocabulary.
        score: mean log-probability (nats) of a piece under the heads that were asked; comparable
            over different numbers of pieces.
        mlm: log-probability by the MLM head, summed over the pieces.
        sbo: the same by the SBO head, over the first `sbo_pieces`; None where that is 0.
        sbo_pieces: pieces that the SBO head predicts: none where the span has no token on one side,
            at most the `max_span_targets` it was trained with. The others are scored by the MLM
            head alone, whatever was asked.
    """

    text: str
    filled: str
    start: int
    end: int
    pieces: tuple[str, ...]
    score: float
    mlm: float
    sbo: float | None
    sbo_pieces: int


class SpanFiller:
    """Proposes text for a gap. Threads may share one: their calls take turns.

    Args:
        model: a `SpanBertForPreTraining`, or the directory of a run, a checkpoint or a BERT.
        tokenizer: fast tokenizer or a directory; default the model's directory.
        device: auto, cpu, cuda or cuda:N; auto leaves a given model where it is and puts a loaded
            one on the GPU if there is one.
        max_length: most tokens that are read, special ones included; what lies farther from the gap
            is left out. Default what the model has positions for.
        untrained_heads: use heads that still have the weights they began with.

    Raises:
        ConfigError: no tokenizer, one of another vocabulary, or an untrained MLM head.
        DataError, StorageError: the directory holds no model, or a damaged one.
    """

    def __init__(
        self,
        model: SpanBertForPreTraining | str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike | None = None,
        device: str = "auto",
        max_length: int | None = None,
        untrained_heads: bool = False,
    ):
        if not isinstance(model, SpanBertForPreTraining):
            # Only a directory needs to know how a run is laid out.
            from spanbert_ext.training.checkpoint import model_directory

            folder = model_directory(Path(model))
            if not folder.exists():
                raise ConfigError(
                    f"{model}: there is no such directory; name a run, a checkpoint or a BERT"
                )
            if not folder.is_dir():
                raise ConfigError(f"{model} is not a directory of a run, a checkpoint or a BERT")
            tokenizer = folder if tokenizer is None else tokenizer
            model, _ = conversion.from_bert(folder)
            if device == "auto" and torch.cuda.is_available():
                device = "cuda"
        if tokenizer is None:
            raise ConfigError("tokenizer: a model in memory does not name its own; give one")
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._model = model.eval() if device == "auto" else model.eval().to(device)
        self._reader = GapReader(tokenizer)
        self._max_length = _longest(model, max_length)
        size, own = model.get_input_embeddings().num_embeddings, self._reader.info.vocab_size
        if own > size:
            raise ConfigError(f"tokenizer: it has {own} pieces, the model {size}; give the model's")
        self._untrained = [] if untrained_heads else _untrained_heads(model)
        if "MLM" in self._untrained:
            raise ConfigError(
                "the model's MLM head has never been trained (the file holds an encoder alone), so "
                "it cannot fill anything; pre-train it first: spanbert pretrain --init"
            )

    def __call__(
        self,
        text: str | Sequence[str],
        span: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        pieces: int | None = None,
        max_pieces: int = 5,
        top_k: int = 5,
        by: str = "combined",
        weights: tuple[float, float] = (1.0, 1.0),
        refine: int = 0,
    ) -> list[Filling] | list[list[Filling]]:
        """The best fillings of a text, or of each of several.

        Args:
            text: with one gap: `[MASK]` or the tokenizer's own mark, once for every piece, or
                `[SPAN]` or at least three underscores for any number. White space around it stays;
                without, the filling continues the word beside it.
            span: in place of a mark, the range of characters that is hidden; for several texts one
                for each.
            pieces: how many are missing; None takes the number of marks, and tries 1 to
                `max_pieces` where a blank or a range leaves it open.
            max_pieces: most pieces tried then. Fillings of different lengths are ranked by their
                mean log-probability per piece.
            top_k: how many to return; fewer where fewer make sense. No two have the same text.
            by: heads that decide: combined, mlm or sbo.
            weights: of MLM and SBO in "combined".
            refine: 0 takes positions as independent. Otherwise the width of a search from left to
                right, and the most fillings of a length, that asks the MLM again with each piece it
                has chosen; `mlm` is the sum of those. The SBO goes on seeing the whole span masked.

        Returns:
            Best first.

        Raises:
            DataError: a text without a gap, or with several.
            ConfigError: an argument out of range, or the SBO head was never trained.
        """
        self._check(by, weights, pieces, max_pieces, top_k, refine)
        texts = [text] if isinstance(text, str) else list(text)
        ranges = [span] if isinstance(text, str) else [None] * len(texts) if span is None else span
        if len(ranges) != len(texts):
            raise ConfigError(f"span: {len(ranges)} ranges for {len(texts)} texts")
        with alone_with(self._model, self._reader):
            gaps = [self._read(n, texts[n], ranges[n], pieces) for n in range(len(texts))]
            sizes = [[gap.pieces] if gap.pieces else range(1, max_pieces + 1) for gap in gaps]
            owned = [gap for gap, own in zip(gaps, sizes, strict=True) for _ in own]
            spans = [self._frame(gap, n) for gap, own in zip(gaps, sizes, strict=True) for n in own]
            if refine:
                found = iter(self._refined(spans, owned, (by, *weights), refine))
            else:
                limit = max(_AT_LEAST, _LOOKED_AT * top_k)
                found = iter(self._independent(spans, owned, (by, *weights), limit))
            parts = [list(itertools.islice(found, len(own))) for own in sizes]
            fillings = [self._fillings(g, part, top_k) for g, part in zip(gaps, parts, strict=True)]
        return fillings[0] if isinstance(text, str) else fillings

    def _check(self, by, weights, pieces, max_pieces, top_k, refine) -> None:
        if by not in HEADS:
            raise ConfigError(f"by: must be one of {', '.join(HEADS)}; got {by!r}")
        if len(weights) != 2 or not (min(weights) >= 0 and 0 < max(weights) < float("inf")):
            raise ConfigError(f"weights: two numbers of at least 0, not both 0; got {weights!r}")
        counts = {"pieces": pieces, "max_pieces": max_pieces, "top_k": top_k}
        for name, value in (*counts.items(), ("refine", refine)):
            least = 0 if name == "refine" else 1
            if value is not None and value < least:
                raise ConfigError(f"{name}: must be at least {least}; got {value}")
        if "SBO" in self._untrained and by != "mlm":
            raise ConfigError(
                f"by: {by} asks the SBO head, which this model has never trained (BERT has none); "
                "take by=mlm, or pre-train it first"
            )

    def _read(self, number: int, text: str, span, pieces: int | None) -> Gap:
        try:
            return self._reader.read(text, span, pieces)
        except (DataError, ConfigError) as error:
            raise type(error)(f"text {number}: {error}") from None

    def _frame(self, gap: Gap, size: int) -> MaskedSpan:
        """As much of the text around the gap as is read, as even on both sides as it goes."""
        room = self._max_length - 2 - size
        if room < 0:
            raise ConfigError(
                f"pieces: a gap of {size} does not fit into the {self._max_length} tokens that the "
                "model reads"
            )
        wanted = max(room // 2, room - len(gap.right))
        left = gap.left[max(0, len(gap.left) - wanted) :]
        right = gap.right[: room - len(left)]
        info = self._reader.info
        sides = bool(left and right) and not {left[-1], right[0]} & set(info.special_ids)
        predicted = min(size, self._model.config.max_span_targets) if sides else 0
        first = 1 + len(left)
        return MaskedSpan(
            tokens=[info.cls_id, *left, *[info.mask_id] * size, *right, info.sep_id],
            first=first,
            stop=first + size,
            sbo_pieces=0 if "SBO" in self._untrained else predicted,
        )

    def _independent(
        self, spans: list[MaskedSpan], gaps: list[Gap], mix: tuple, limit: int
    ) -> list[Iterator[Found]]:
        """The best fillings of every span, positions being independent."""
        found = []
        for gap, (mlm, sbo) in zip(gaps, self._predictions(spans), strict=True):
            allowed = [gap.first, *[self._reader.ordinary] * (len(mlm) - 1)]
            columns = best_pieces(mlm, sbo, mix, allowed, limit)
            found.append(itertools.islice(sequences(columns), limit))
        return found

    def _refined(
        self, spans: list[MaskedSpan], gaps: list[Gap], mix: tuple, width: int
    ) -> list[list[Found]]:
        """The best fillings found from left to right, each piece given those before it."""
        beams = [[Found()] for _ in spans]
        by_sbo = [sbo for _, sbo in self._predictions(spans)]
        for place in range(max((span.stop - span.first for span in spans), default=0)):
            open_spans = [n for n, s in enumerate(spans) if s.first + place < s.stop]
            tried = [(n, begun) for n in open_spans for begun in beams[n]]
            asked = [begun_span(spans[n], begun.ids) for n, begun in tried]
            grown: dict[int, list[Found]] = {n: [] for n in open_spans}
            for (n, begun), (mlm, _) in zip(tried, self._predictions(asked), strict=True):
                allowed = self._reader.ordinary if place else gaps[n].first
                sbo = by_sbo[n][place : place + 1]
                (column,) = best_pieces(mlm, sbo, mix, [allowed], width)
                grown[n] += [begun.followed_by(piece) for piece in column]
            for n, longer in grown.items():
                beams[n] = sorted(longer, key=lambda found: -found.total)[:width]
        return beams

    def _predictions(self, spans: list[MaskedSpan]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities of every span by both heads: [n, V], and [sbo_pieces, V]."""
        part: list[MaskedSpan] = []
        tokens = targets = 0
        for span in spans:
            tokens, targets = tokens + len(span.tokens), targets + span.stop - span.first
            if part and (tokens > _MOST_TOKENS or targets > _MOST_TARGETS):
                yield from self._predict(part)
                part, tokens, targets = [], len(span.tokens), span.stop - span.first
            part.append(span)
        yield from self._predict(part) if part else ()

    @torch.inference_mode()
    def _predict(self, spans: list[MaskedSpan]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batch, cu_seqlens = batch_of_spans(spans)
        device = self._model.device
        batch, cu_seqlens = batch.to(device), cu_seqlens.to(device)
        longest = max(len(span.tokens) for span in spans)
        output = self._model(batch.input_ids, cu_seqlens=cu_seqlens, max_seqlen=longest)
        hidden = output.last_hidden_state
        heads = [self._model.mlm_logits(hidden[batch.target_positions])]
        if any(span.sbo_pieces for span in spans):
            early = output.sbo_hidden_state  # where the SBO reads another layer
            heads.append(self._model.sbo_logits(hidden if early is None else early, batch))
        widths = [span.stop - span.first for span in spans]
        rows = [head.float().log_softmax(-1).split(widths) for head in heads]
        by_sbo = rows[-1]  # those of the MLM where no span has boundaries; none is taken then
        return [(m, s[: n.sbo_pieces]) for m, s, n in zip(rows[0], by_sbo, spans, strict=True)]

    def _fillings(self, gap: Gap, found: list[Iterable[Found]], top_k: int) -> list[Filling]:
        """The first different texts, over all lengths; those of one length come best first."""
        fillings: dict[str, Filling] = {}
        for sequence in heapq.merge(*found, key=lambda sequence: -sequence.score):
            text = self._reader.write(gap, sequence.ids)
            if text is None or text in fillings:
                continue
            start = len(gap.before)
            fillings[text] = Filling(
                text=text,
                filled=gap.before + text + gap.after,
                start=start,
                end=start + len(text),
                pieces=tuple(self._reader.info.pieces[i] for i in sequence.ids),
                score=sequence.score,
                mlm=sequence.mlm,
                sbo=sequence.sbo if sequence.sbo_pieces else None,
                sbo_pieces=sequence.sbo_pieces,
            )
            if len(fillings) == top_k:
                break
        return list(fillings.values())


def _longest(model: SpanBertForPreTraining, asked: int | None) -> int:
    """Most tokens of a sequence."""
    other, most = model.config.encoder_config, model.config.max_position_embeddings
    if other is not None:
        # RoBERTa and its kin have two positions that no token takes.
        most = other.get("max_position_embeddings", 512) - 2
    if asked is not None and not 3 <= asked <= most:
        raise ConfigError(
            f"max_length: must lie in [3, {most}] (positions of the model); got {asked}"
        )
    return asked or most


def _untrained_heads(model: SpanBertForPreTraining) -> list[str]:
    """Heads as they were made: all their biases are 0, which the first update ends."""
    untrained = []
    for head, start in (("MLM", "predictions."), ("SBO", "sbo")):
        named = model.cls.named_parameters()
        biases = [p for name, p in named if name.startswith(start) and name.endswith("bias")]
        if not any(bias.any() for bias in biases):
            untrained.append(head)
    return untrained


def table(fillings: Sequence[Filling]) -> list[str]:
    """Fillings as lines with their scores; "-" where the SBO head predicts nothing."""
    width = max([7, *(len(filling.text) for filling in fillings)])
    lines = [f"{'filling':{width}s}  {'score':>7s}  {'MLM':>7s}  {'SBO':>7s}  pieces"]
    for f in fillings:
        sbo = "-" if f.sbo is None else f"{f.sbo:.2f}"
        numbers = f"{f.score:7.2f}  {f.mlm:7.2f}  {sbo:>7s}"
        lines.append(f"{f.text:{width}s}  {numbers}  {' '.join(f.pieces)}")
    return lines
