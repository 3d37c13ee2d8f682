"""What the tests of the model share: a small model, a masked batch, runs and their comparison."""

import torch
import torch.nn.functional as F

from spanbert_ext import SpanBertConfig, SpanMasker

VOCAB, SPECIAL, MASK_ID = 67, (0, 1, 2, 3), 3
LENGTHS = torch.tensor([14, 2, 9, 0, 11])
WIDTH = 14


def config(**changes) -> SpanBertConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "position_size": 6,
        "max_span_targets": 4,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return SpanBertConfig(**{**fields, **changes})


def make_masker(**options) -> SpanMasker:
    """Many short spans, some longer than the SBO's four targets."""
    starts = [True, True, False] * 22 + [True]
    options = {"seed": 1, "mask_ratio": 0.4, "max_span_targets": 4, **options}
    return SpanMasker(starts, SPECIAL, MASK_ID, **options)


def make_ids() -> torch.Tensor:
    """[5, 14] ordinary ids; rows are used up to LENGTHS."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(len(SPECIAL), VOCAB, (len(LENGTHS), WIDTH), generator=generator)


def make_stream(ids) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [T], cu_seqlens [N + 1]): the rows of `ids` without padding, one of them empty."""
    kept = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)
    return ids[kept], F.pad(LENGTHS.cumsum(0), (1, 0))


def random_weights(model):
    """Biases and gains off their constants, which would hide a parameter that is not used."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(model, **inputs):
    """(output, gradients)"""
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    named = model.named_parameters()
    return output, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named}


def assert_same(a, b, atol=1e-11):
    """Two results of `run` agree."""
    for name in ("loss", "mlm_loss", "sbo_loss"):
        torch.testing.assert_close(a[0][name], b[0][name], rtol=0, atol=atol)
    assert a[1].keys() == b[1].keys()
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], rtol=0, atol=atol, msg=name)


def assert_same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
