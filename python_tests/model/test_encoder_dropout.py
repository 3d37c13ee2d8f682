"""Dropout of `PackedBert`: where it draws, from what, and that all paths drop alike."""

import pytest
import torch
from encoder_cases import config, gradients, packed, padded_batch

from spanbert_ext.model import encoder, layer
from spanbert_ext.model.attention import packed_attention, packing_of
from spanbert_ext.model.encoder import PackedBert


@pytest.fixture
def padded():
    return padded_batch()


def dropping(**changes) -> PackedBert:
    torch.manual_seed(31)
    fields = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.0, **changes}
    return PackedBert(config(**fields)).train()


ATTENTION_ONLY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.4}
PLACES = [{}, {"attention_probs_dropout_prob": 0.2}, ATTENTION_ONLY]
PLACE_IDS = ["hidden", "both", "attention"]


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_dropout_follows_torchs_generator(padded, fields):
    """One draw a forward pass: a restored state repeats it, evaluation leaves the state alone."""
    model, stream = dropping(**fields), packed(*padded)
    state = torch.get_rng_state()
    first = model(*stream)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
    assert torch.equal(torch.get_rng_state(), after)
    second = model(*stream)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model(*stream), first) and torch.equal(model(*stream), second)
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(model(*stream), model(*stream))
    assert torch.equal(torch.get_rng_state(), state)
    model = dropping(hidden_dropout_prob=0.0)
    state = torch.get_rng_state()
    assert torch.equal(model(*stream), model(*stream))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_place_draws_its_own_mask(padded, monkeypatch):
    sites = []

    def recording(join):
        def call(x, residual, weight, bias, eps, p, seed, site):
            sites.append((site, p, int(seed)))
            return join(x, residual, weight, bias, eps, p, seed, site)

        return call

    def attention(q, k, v, cu_q, packing, dropout, path, most, seed, site):
        sites.append((site, dropout, int(seed)))
        return packed_attention(q, k, v, cu_q, packing, dropout, path, most, seed, site)

    after = layer.dropout_add_layer_norm
    monkeypatch.setattr(layer, "dropout_add_layer_norm", recording(after))
    before = encoder.add_layer_norm_dropout  # of the embeddings
    monkeypatch.setattr(encoder, "add_layer_norm_dropout", recording(before))
    monkeypatch.setattr(layer, "packed_attention", attention)
    dropping(num_hidden_layers=3, attention_probs_dropout_prob=0.4)(*packed(*padded))
    high = 1 << 31
    assert [s for s, _, _ in sites] == [0, high + 1, 1, 2, high + 3, 3, 4, high + 5, 5, 6]
    assert len({seed for _, _, seed in sites}) == 1 and {p for _, p, _ in sites} == {0.4}


def test_dropout_keeps_the_expectation(padded):
    """The stream behind the embeddings: zeros in 40 % of the columns, the rest divided by 0.6."""
    model, (tokens, cu_seqlens) = dropping(), packed(*padded)
    packing = packing_of(tokens, cu_seqlens, None, None, 16, None)
    plain, _ = model.eval().embeddings(tokens, packing, None)
    seed = torch.tensor([5])
    found, _ = model.train().embeddings(tokens, packing, None, seed)
    dropped = found == 0
    torch.testing.assert_close(found, torch.where(dropped, 0, plain / 0.6), rtol=1e-4, atol=1e-6)
    assert 350 < int(dropped.sum()) < 640  # of 38 * 32; 6 standard deviations are 103


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_native_and_reference_train_alike(padded, force_backend, fields):
    stream, outcomes = packed(*padded), []
    for mode in ("native", "reference"):
        force_backend(mode)
        model = dropping(**fields)
        out = model(*stream)
        out.square().sum().backward()
        outcomes.append((out.detach(), gradients(model)))
    (a, ours), (b, theirs) = outcomes
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_a_bf16_model_keeps_its_dtype(padded, fields):
    model = dropping(**fields).bfloat16()
    out = model(*packed(*padded))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
