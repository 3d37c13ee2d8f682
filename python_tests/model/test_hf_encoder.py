"""Other Hugging Face encoders under the span heads."""

import pytest
import torch
from model_cases import (
    LENGTHS,
    VOCAB,
    assert_same,
    assert_same_weights,
    config,
    make_ids,
    make_masker,
    make_stream,
    random_weights,
    run,
)
from strategies import rewound
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from spanbert_ext import SpanBertForPreTraining


def encoder_of(kind: str):
    """A small random encoder of another family."""
    common = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "modernbert":
        extra = {"cls_token_id": 1, "sep_token_id": 2, "reference_compile": False}
        return AutoModel.from_config(ModernBertConfig(**common, **special, **extra))
    return AutoModel.from_config(RobertaConfig(**common, **special))


@pytest.fixture
def masker():
    return make_masker()


@pytest.fixture
def ids():
    return make_ids()


@pytest.fixture
def stream(ids):
    return make_stream(ids)


@pytest.mark.parametrize("kind", ["modernbert", "roberta"])
def test_another_encoder_trains_and_round_trips(masker, stream, tmp_path, kind):
    torch.manual_seed(10)
    encoder = encoder_of(kind)
    model = SpanBertForPreTraining.from_encoder(encoder, position_size=6, max_span_targets=4)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name
    batch = masker.packed(*stream)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output = model(batch=batch, cu_seqlens=stream[1])
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    a, b = (m.eval()(batch=batch, cu_seqlens=stream[1]).loss for m in (loaded, model))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["modernbert", "roberta"])
def test_another_encoder_packed_and_padded_agree(masker, ids, stream, kind, monkeypatch):
    model = random_weights(SpanBertForPreTraining.from_encoder(encoder_of(kind))).double().eval()
    padded, packed = masker(ids, lengths=LENGTHS), rewound(masker).packed(*stream)
    expected = run(model, batch=packed, cu_seqlens=stream[1])
    assert all(g.isfinite().all() for g in expected[1].values())
    assert_same(run(model, batch=padded, lengths=LENGTHS), expected, atol=1e-9)
    # Where lengths cannot be read, every sequence has max_seqlen places, the empty one too.
    masks = []
    monkeypatch.setattr("spanbert_ext.model.hf_encoder.readable", lambda tensor: False)
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    found = run(model, batch=packed, cu_seqlens=stream[1], max_seqlen=16)
    assert masks[0].shape == (len(LENGTHS), 16)
    # Nobody attends to nothing: some kernels make NaN of it, which the gradient would spread.
    assert masks[0].sum(1).tolist() == LENGTHS.clamp(min=1).tolist()
    assert_same(found, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["modernbert", "roberta"])
def test_another_encoder_keeps_documents_apart(stream, kind):
    model = SpanBertForPreTraining.from_encoder(encoder_of(kind)).eval()
    tokens, cu_seqlens = stream
    changed = tokens.clone()
    changed[16:25] = 5
    a, b = (model(t, cu_seqlens).last_hidden_state for t in (tokens, changed))
    assert torch.equal(a[:16], b[:16]) and torch.equal(a[25:], b[25:])
    assert not torch.equal(a[16:25], b[16:25])


def test_an_encoder_that_does_not_fit():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    electra = ElectraConfig(vocab_size=VOCAB, embedding_size=16, hidden_size=32, **sizes)
    with pytest.raises(ValueError, match="word embeddings of width 16 and hidden_size 32"):
        SpanBertForPreTraining.from_encoder(AutoModel.from_config(electra))
    fields = encoder_of("roberta").config.to_dict()
    with pytest.raises(ValueError, match="must be those of encoder_config, 32 and 67; got 64"):
        SpanBertForPreTraining(config(encoder_config=fields, hidden_size=64))
    with pytest.raises(ValueError, match="is 'roberta', not BERT"):
        AutoModel.from_config(config(encoder_config=fields))
