"""`SpanBertForCoreference`: end-to-end coreference on our encoder.

Documents are read in segments, each alone through the encoder; spans, pruning and antecedents see
the whole document. Memory grows with the document's length, not with its square.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, BertConfig, BertPreTrainedModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from spanbert_ext.errors import ConfigError
from spanbert_ext.model.attention import packing_of
from spanbert_ext.model.config import ABOUT_THE_FILE
from spanbert_ext.model.encoder import PackedBert
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.decode import Span, link_clusters
from spanbert_ext.tasks.coref.model.pruning import prune_spans
from spanbert_ext.tasks.coref.model.scoring import (
    AntecedentScorer,
    SpanFacts,
    clusters_of,
    marginal_loss,
    mention_loss,
)
from spanbert_ext.tasks.coref.model.spans import Candidates, MentionScorer, candidate_spans
from spanbert_ext.training.progress import tell

# Enough to keep a device busy, and in prediction all that the encoder's inner states need room for.
_PIECES_PER_PASS = 4096


@dataclass
class CorefOutput(ModelOutput):
    """What `SpanBertForCoreference` says about a document.

    Args:
        loss: scalar, fp32; None without gold clusters.
        starts, ends: [K] int64, first and last piece of the kept spans, ascending.
        mention_scores: [K] fp32.
        antecedents: [K, c] int64, earlier spans by falling coarse score, -1 where there are fewer.
        antecedent_scores: [K, 1 + c] fp32, that of no antecedent, 0, first; minus infinity where
            there is no antecedent.
    """

    loss: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    ends: torch.Tensor | None = None
    mention_scores: torch.Tensor | None = None
    antecedents: torch.Tensor | None = None
    antecedent_scores: torch.Tensor | None = None


class CorefHead(nn.Module):
    """Everything behind the encoder.

    Args:
        hidden_size: H.
        options: of the model.
    """

    def __init__(self, hidden_size: int, options: CorefModelOptions):
        super().__init__()
        self.mentions = MentionScorer(hidden_size, options)
        self.antecedents = AntecedentScorer(sum(self.mentions.sizes), options)


class SpanBertForCoreference(BertPreTrainedModel):
    """Coarse-to-fine coreference (Lee et al. 2018) over independent segments (Joshi et al. 2019).

    The encoder stands under `bert` with BERT's parameter names, the rest under `coref`.
    `pieces_per_pass` pieces of a document go through the encoder at a time.

    Args:
        config: a `BertConfig`; its field `coref`, a dict of `CorefModelOptions`, is filled in where
            it is missing.

    Raises:
        ConfigError: an unknown or impossible option in `config.coref`.
    """

    config_class = BertConfig
    main_input_name = "input_ids"
    # One document a call: a Trainer that accumulates must divide, for the mean over documents.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [
        r"^cls\.",
        r"pooler\.",
        r"embeddings\.position_ids$",
    ]

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.options = CorefModelOptions.from_dict(getattr(config, "coref", None) or {})
        config.coref = self.options.to_dict()
        self.bert = PackedBert(config)
        self.coref = CorefHead(config.hidden_size, self.options)
        self.pieces_per_pass = _PIECES_PER_PASS
        self.post_init()

    @classmethod
    def from_encoder(
        cls, encoder: PreTrainedModel | str | os.PathLike, options: CorefModelOptions | None = None
    ) -> SpanBertForCoreference:
        """A model around the weights of a BERT; the head starts anew.

        Args:
            encoder: a Hugging Face BERT, a model with a head around one, a SpanBERT of ours, or
                what `AutoModel.from_pretrained` takes.
            options: of the head.

        Raises:
            ConfigError: the encoder is no BERT, or an option is impossible.
        """
        if not isinstance(encoder, PreTrainedModel):
            encoder = AutoModel.from_pretrained(encoder)
        source = encoder.config
        kind = source.model_type
        if kind not in ("bert", "spanbert") or getattr(source, "encoder_config", None):
            raise ConfigError(f"the encoder of a coreference model must be BERT; got {kind!r}")
        own = set(BertConfig().to_dict()) - set(ABOUT_THE_FILE)
        fields = {name: value for name, value in source.to_dict().items() if name in own}
        if getattr(source, "weights_licence", None) is not None:
            fields["weights_licence"] = source.weights_licence
        model = cls(BertConfig(**fields, coref=(options or CorefModelOptions()).to_dict()))
        weights = encoder.base_model.state_dict()
        model.bert.load_state_dict({name: weights[name] for name in model.bert.state_dict()})
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Through transformers.initialization only: it leaves alone what a file has filled.
        super()._init_weights(module)
        # Module by module: it is not called for those without a parameter of their own.
        if module in set(self.coref.modules()):
            for name, parameter in module.named_parameters(recurse=False):
                if name == "weight":
                    init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.bert.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.bert.embeddings.word_embeddings = value

    def task_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of everything behind the encoder."""
        return self.coref.named_parameters(prefix="coref")

    def forward(
        self,
        input_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        sentence_map: torch.Tensor,
        speakers: torch.Tensor | None = None,
        genre: int | torch.Tensor = 0,
        gold_starts: torch.Tensor | None = None,
        gold_ends: torch.Tensor | None = None,
        gold_clusters: torch.Tensor | None = None,
    ) -> CorefOutput:
        """Mentions and antecedents of one document, and the loss if the gold clusters are given.

        The number of kept spans depends on the document; on a GPU the host waits for it.

        Args:
            input_ids: [T] int32 or int64, the document's segments one after another, each with its
                own [CLS] and [SEP].
            cu_seqlens: [N + 1] int32 or int64, where the segments lie.
            sentence_map: [T] int64, the sentence of every piece, -1 at special tokens.
            speakers: [T] int64, who says a piece, 0 where unknown; None: all unknown.
            genre: as `CorefModelOptions.genre_id` numbers it; 0 where unknown.
            gold_starts, gold_ends, gold_clusters: [G] int64, first and last piece of the gold
                mentions and the number of their cluster, at least 0. Mentions outside the document
                or longer than a candidate match nothing.

        Raises:
            TypeError, ValueError, IndexError: an argument of the wrong dtype, shape or range.
        """
        gold = self._check(
            input_ids, sentence_map, speakers, (gold_starts, gold_ends, gold_clusters)
        )
        hidden, segments = self.encode(input_ids, cu_seqlens)
        candidates = candidate_spans(sentence_map, self.options.max_span_width)
        if not candidates.starts.numel():
            return self._nothing(hidden, gold is not None)
        if speakers is None:
            speakers = torch.zeros_like(sentence_map)
        return self._resolve(hidden, segments, candidates, speakers, genre, gold)

    def encode(
        self, input_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [T, H] of segments that do not see each other, a few of them at a time, and
        the segment of every piece [T] int64; arguments as in `forward`."""
        packing = packing_of(input_ids, cu_seqlens, max_seqlen=self.bert.max_positions)
        borders = cu_seqlens.tolist()
        hidden, first = [], 0
        for segment in range(1, len(borders)):
            following = borders[min(segment + 1, len(borders) - 1)]
            is_last = segment + 1 == len(borders)
            if is_last or following - borders[first] > self.pieces_per_pass:
                start, end = borders[first], borders[segment]
                own = cu_seqlens[first : segment + 1] - start
                hidden.append(self.bert(input_ids[start:end], own))
                first = segment
                tell("tokens", end, borders[-1])
        empty = self.bert.embeddings.word_embeddings.weight[:0]
        return (torch.cat(hidden) if hidden else empty), packing.segments(input_ids.shape[0])

    def _resolve(
        self,
        hidden: torch.Tensor,
        segments: torch.Tensor,
        candidates: Candidates,
        speakers: torch.Tensor,
        genre: int | torch.Tensor,
        gold: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> CorefOutput:
        """`forward` behind the encoder, for at least one candidate."""
        mentions, length = self.coref.mentions, hidden.shape[0]
        token_scores = mentions.token_scores(hidden)
        features = mentions.width_features(length, candidates.window)
        windows = mentions(hidden, token_scores, features)
        scores = windows[candidates.starts, candidates.widths]
        keep = min(self.options.max_spans, max(1, int(self.options.span_ratio * length)))
        ends = candidates.ends
        kept = prune_spans(candidates.starts, ends, scores.detach(), length, keep)
        starts, widths = candidates.starts[kept], candidates.widths[kept]
        vectors = mentions.represent(hidden, token_scores, features, starts, widths)
        kept_scores = scores.index_select(0, kept)
        genre = torch.as_tensor(genre, dtype=torch.int64, device=hidden.device)
        facts = SpanFacts(speakers[starts], segments[starts], genre)
        antecedents, pairs = self.coref.antecedents(vectors, kept_scores, facts)
        pairs = F.pad(pairs, (1, 0))
        loss = None
        if gold is not None:
            clusters = clusters_of(candidates.starts, ends, *gold, length)
            loss = marginal_loss(pairs, antecedents, clusters[kept])
            if self.options.singletons:
                loss = loss + mention_loss(scores, clusters >= 0, kept)
        return CorefOutput(loss, starts, ends[kept], kept_scores, antecedents, pairs)

    def _nothing(self, hidden: torch.Tensor, with_loss: bool) -> CorefOutput:
        """The output for a document without a candidate. Its loss is 0 and has a gradient, 0, for
        every parameter: other processes wait for them."""
        none = torch.zeros(0, dtype=torch.int64, device=hidden.device)
        scores = hidden.new_zeros(0, dtype=torch.float32)
        loss = None
        if with_loss:
            loss = sum(0.0 * parameter.reshape(-1)[0].float() for parameter in self.parameters())
        return CorefOutput(loss, none, none, scores, none.view(0, 0), scores.view(0, 1))

    def _check(
        self,
        input_ids: torch.Tensor,
        sentence_map: torch.Tensor,
        speakers: torch.Tensor | None,
        gold: tuple[torch.Tensor | None, ...],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """The gold mentions, if they are given; what the encoder reads is checked there."""
        pieces = [("sentence_map", sentence_map)]
        if speakers is not None:
            pieces.append(("speakers", speakers))
        named = list(zip(("gold_starts", "gold_ends", "gold_clusters"), gold, strict=True))
        given = [values is not None for values in gold]
        if any(given) and not all(given):
            missing = ", ".join(name for name, values in named if values is None)
            raise ValueError(f"gold mentions need {missing} too")
        expected = [(*item, input_ids.shape) for item in pieces]
        expected += [(*item, gold[0].shape) for item in named if all(given)]
        for name, values, shape in expected:
            if values.dtype != torch.int64:
                raise TypeError(f"{name} must be int64; got {values.dtype}")
            if values.shape != shape or values.dim() != 1:
                raise ValueError(
                    f"{name} must have shape {tuple(shape)}; got {tuple(values.shape)}"
                )
            if values.device != input_ids.device:
                raise ValueError(f"{name} must be on {input_ids.device}; got {values.device}")
        return gold if all(given) else None

    def clusters(self, output: CorefOutput) -> list[list[Span]]:
        """Clusters of (first piece, last piece), inclusive, as `link_clusters` makes them; mentions
        that nothing refers to are among them if the model was made to predict them."""
        fields = [output.starts, output.ends, output.antecedents, output.antecedent_scores]
        if self.options.singletons:
            fields.append(output.mention_scores)
        return link_clusters(*(values.detach().cpu().numpy() for values in fields))
