"""What the tests of the encoder share: a small BERT's configuration, a batch, its stream."""

import torch
import torch.nn.functional as F
from transformers import BertConfig

VOCAB, WIDTH = 61, 13
LENGTHS = (13, 1, 7, 7, 10)


def config(**changes) -> BertConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    }
    return BertConfig(**{**fields, **changes})


def padded_batch():
    """(ids [B, L], attention mask [B, L])"""
    torch.manual_seed(5)
    ids = torch.randint(0, VOCAB, (len(LENGTHS), WIDTH))
    return ids, (torch.arange(WIDTH) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def packed(ids, mask):
    """(tokens [T], cu_seqlens [N + 1]), with two empty sequences among them."""
    lengths = torch.cat([mask.sum(1)[:2], torch.tensor([0]), mask.sum(1)[2:], torch.tensor([0])])
    return ids[mask.bool()], F.pad(lengths.cumsum(0), (1, 0))


def gradients(model):
    named = model.named_parameters()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}
