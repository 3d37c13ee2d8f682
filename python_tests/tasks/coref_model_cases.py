"""What the tests of the coreference model share: a small model and a made-up document."""

import torch
from transformers import BertConfig

from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference

HEAD = {"max_span_width": 3, "ffnn_size": 24, "feature_size": 4, "max_antecedents": 8}
CLS, SEP, VOCAB = 1, 2, 40


def config(**head) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        coref={**HEAD, **head},
    )


def make_model(**head) -> SpanBertForCoreference:
    torch.manual_seed(1)
    return SpanBertForCoreference(config(**head)).eval()


def document(segments=3, size=10, seed=0) -> dict[str, torch.Tensor]:
    """Segments of `size` pieces with specials, sentences of four."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (segments, size), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    sentences = torch.arange(segments * size).view(segments, size) // 4
    sentences[:, 0] = sentences[:, -1] = -1
    return {
        "input_ids": ids.view(-1),
        "cu_seqlens": torch.arange(segments + 1) * size,
        "sentence_map": sentences.view(-1),
    }


def gold(*clusters):
    mentions = [(*span, number) for number, spans in enumerate(clusters) for span in spans]
    columns = torch.tensor(mentions, dtype=torch.int64).view(-1, 3).unbind(1)
    return dict(zip(("gold_starts", "gold_ends", "gold_clusters"), columns, strict=True))


GOLD = [(1, 2), (5, 5), (24, 25)], [(6, 7), (14, 14)]
