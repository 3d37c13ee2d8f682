"""`SpanBertForPreTraining`: losses, layouts, row subsets, files and other encoders."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import (
    LENGTHS,
    VOCAB,
    WIDTH,
    assert_same,
    assert_same_weights,
    config,
    make_ids,
    make_masker,
    make_stream,
    random_weights,
    run,
)
from safetensors.torch import load_file, save_file
from strategies import marks_for, maskers, rewound, sequences
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
)

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.model.heads import over_compact_rows, wanted_rows


@pytest.fixture
def masker():
    return make_masker()


@pytest.fixture
def ids():
    return make_ids()


@pytest.fixture
def stream(ids):
    return make_stream(ids)


def naive_losses(model, hidden, batch):
    """The definition in torch's own words: hidden [T, H] to (mlm, sbo) means."""
    weight, used = model.get_input_embeddings().weight, batch.target_ids != -100
    mlm = model.cls.predictions
    rows = mlm.transform.dense(hidden[batch.target_positions[used]])
    norm = mlm.transform.LayerNorm
    rows = F.layer_norm(F.gelu(rows), rows.shape[-1:], norm.weight, norm.bias, norm.eps)
    mlm_loss = F.cross_entropy(rows @ weight.T + mlm.bias, batch.target_ids[used])
    head, used = model.cls.sbo, batch.sbo_ids != -100
    span = batch.target_spans[used]
    place = head.position_embeddings.weight[batch.target_offsets[used]]
    x = torch.cat([hidden[batch.span_left[span]], hidden[batch.span_right[span]], place], 1)
    for linear, norm in ((head.linear1, head.layer_norm1), (head.linear2, head.layer_norm2)):
        x = F.gelu(linear(x))
        x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return mlm_loss, F.cross_entropy(x @ weight.T + model.cls.sbo_bias, batch.sbo_ids[used])


@pytest.mark.parametrize("endpoints", ["external", "internal"])
@pytest.mark.parametrize("rows", [False, True])
def test_losses_are_the_definition(stream, rows, endpoints):
    model = random_weights(SpanBertForPreTraining(config(last_layer_rows=rows, sbo_weight=0.5)))
    model.double()
    batch = make_masker(endpoints=endpoints).packed(*stream)
    assert (batch.sbo_ids != -100).sum() > 3
    mlm, sbo = naive_losses(model, model.bert(batch.input_ids, stream[1]), batch)
    (mlm + 0.5 * sbo).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    output, found = run(model, batch=batch, cu_seqlens=stream[1])
    torch.testing.assert_close(output.loss, mlm + 0.5 * sbo, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.mlm_loss, mlm.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(output.sbo_loss, sbo.detach(), rtol=0, atol=1e-12)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("loss", ["code", "paper"])
def test_needed_rows_only_changes_nothing(masker, stream, loss):
    model = random_weights(SpanBertForPreTraining(config(loss=loss))).double()
    batch = masker.packed(*stream)
    results = []
    for rows in (True, False):
        model.config.last_layer_rows = rows
        results.append(run(model, batch=batch, cu_seqlens=stream[1]))
    assert_same(*results)


def test_padded_and_packed_agree(masker, ids, stream):
    model = random_weights(SpanBertForPreTraining(config())).double()
    padded, packed = masker(ids, lengths=LENGTHS), rewound(masker).packed(*stream)
    mask = (torch.arange(WIDTH) < LENGTHS.unsqueeze(1)).long()
    assert torch.equal(padded.input_ids[mask.bool()], packed.input_ids)
    expected = run(model, batch=packed, cu_seqlens=stream[1])
    assert_same(run(model, input_ids=padded.input_ids, batch=padded, lengths=LENGTHS), expected)
    assert_same(run(model, batch=padded, attention_mask=mask), expected)
    model.config.last_layer_rows = False
    assert_same(run(model, batch=padded, attention_mask=mask), expected)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("rows", [False, True])
def test_all_slots_or_the_used_ones(masker, ids, stream, monkeypatch, layout, rows):
    # On a GPU the unused slots stay: they must not change a loss or gradient.
    model = random_weights(SpanBertForPreTraining(config(last_layer_rows=rows))).double()
    packed = layout == "packed"
    batch = masker.packed(*stream) if packed else masker(ids, lengths=LENGTHS)
    where = {"cu_seqlens": stream[1]} if packed else {"lengths": LENGTHS}
    assert batch.used().target_ids.numel() < batch.target_ids.numel()
    assert batch.used().span_left.numel() < batch.span_left.numel()
    expected = run(model, batch=batch, **where)
    monkeypatch.setattr(MaskedBatch, "used", lambda batch: batch)
    assert_same(run(model, batch=batch, **where), expected)


def masked_batch(**fields) -> MaskedBatch:
    """A batch of the given fields; the others are empty."""
    empty = {f.name: torch.zeros(0, dtype=torch.int64) for f in dataclasses.fields(MaskedBatch)}
    return MaskedBatch(**{**empty, **{k: torch.tensor(v) for k, v in fields.items()}})


def test_wanted_rows_literal():
    batch = masked_batch(
        target_positions=[4, 5, 10, 0], target_ids=[7, 8, 9, -100],
        span_left=[3, 0, 9, 0], span_right=[6, 0, 11, 0],
    )  # fmt: skip
    # Twelve slots over 24 tokens: slot i, if unused, names token 2 i.
    rows, most = wanted_rows(batch, 24, 8)
    assert rows.tolist() == [4, 5, 10, 6, 3, 10, 9, 14, 6, 18, 11, 22]
    assert most == 12
    assert wanted_rows(batch, 24, 3)[1] == 2 * 3 + 2
    nothing = wanted_rows(masked_batch(), 0, 8)
    assert nothing[0].shape == (0,) and nothing[1] == 0


@given(texts=st.lists(sequences(60), min_size=1, max_size=12), masker=maskers())
@settings(max_examples=100)
def test_no_sequence_has_more_rows_than_promised(texts, masker):
    tokens = torch.tensor([i for t in texts for i in t], dtype=torch.int64)
    cu_seqlens = torch.tensor([0, *(len(t) for t in texts)]).cumsum(0)
    longest, sequence = int(cu_seqlens.diff().max()), torch.arange(len(texts))
    sequence = sequence.repeat_interleave(cu_seqlens.diff())
    batch = masker.packed(tokens, cu_seqlens, **marks_for(masker, tokens, len(texts)))
    for kept in (batch, batch.used()):
        rows, most = wanted_rows(kept, tokens.numel(), longest)
        assert not rows.numel() or sequence[rows].bincount().max() <= most
        used, slots = kept.target_ids != -100, kept.target_ids.shape[0]
        assert torch.equal(rows[:slots][used], kept.target_positions[used])


def test_compact_rows_literal():
    batch = over_compact_rows(masked_batch(span_left=[3, 0, 9, 0], span_right=[6, 0, 11, 0]))
    assert batch.span_left.tolist() == [0, 0, 2, 0]
    assert batch.span_right.tolist() == [4, 0, 6, 0]


def test_used_slots_literal():
    batch = masked_batch(
        target_ids=[5, 6, 7, -100, -100], target_spans=[0, 0, 2, 0, 0], target_positions=[1] * 5,
        target_offsets=[0] * 5, sbo_ids=[5, 6, -100, -100, -100],
        span_left=[1, 2, 3, 0], span_right=[4, 5, 6, 0],
    )  # fmt: skip
    used = batch.used()
    assert used.target_ids.tolist() == [5, 6, 7] and used.sbo_ids.tolist() == [5, 6, -100]
    assert used.span_right.tolist() == [4, 5, 6]


@pytest.mark.parametrize("rows", [False, True])
def test_a_batch_without_targets_costs_nothing(masker, rows):
    model = SpanBertForPreTraining(config(last_layer_rows=rows))
    batch = masker(torch.zeros(2, 5, dtype=torch.int64))
    output, gradients = run(model, batch=batch)
    assert output.loss == output.mlm_loss == output.sbo_loss == 0
    assert all(not g.any() for g in gradients.values())


def test_micro_batches_add_up(masker, ids):
    model = random_weights(SpanBertForPreTraining(config())).double()
    whole = masker(ids, lengths=LENGTHS)
    expected = run(model, batch=whole, lengths=LENGTHS)
    counts = {
        "num_mlm_targets": (whole.target_ids != -100).sum(),
        "num_sbo_targets": (whole.sbo_ids != -100).sum(),
    }
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 5)):
        lengths, sample_ids = LENGTHS[part], torch.arange(5)[part]
        batch = masker(ids[part].contiguous(), lengths=lengths, sample_ids=sample_ids)
        model(batch=batch, lengths=lengths, **counts).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[1][name], rtol=0, atol=1e-11)


def test_hidden_states_on_request(masker, stream):
    model = SpanBertForPreTraining(config())
    batch = masker.packed(*stream)
    asked = model(batch=batch, cu_seqlens=stream[1], return_hidden=True)
    plain = model(batch.input_ids, stream[1])
    assert plain.loss is None
    assert torch.equal(asked.last_hidden_state, plain.last_hidden_state)
    assert model(batch=batch, cu_seqlens=stream[1]).last_hidden_state is None


def test_logits_of_both_heads_are_what_the_loss_sees(masker, stream):
    model = random_weights(SpanBertForPreTraining(config())).double()
    batch = masker.packed(*stream)
    output = model(batch=batch, cu_seqlens=stream[1], return_hidden=True)
    hidden = output.last_hidden_state
    mlm = F.cross_entropy(model.mlm_logits(hidden[batch.target_positions]), batch.target_ids)
    sbo = F.cross_entropy(model.sbo_logits(hidden, batch), batch.sbo_ids)
    torch.testing.assert_close(mlm.detach(), output.mlm_loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(sbo.detach(), output.sbo_loss, rtol=0, atol=1e-12)


def test_autocast_bf16_trains(masker, stream):
    model = SpanBertForPreTraining(config())
    batch = masker.packed(*stream)
    exact = model(batch=batch, cu_seqlens=stream[1]).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch=batch, cu_seqlens=stream[1]).loss
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss - exact) < 0.05 * exact
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_round_trip_is_bit_for_bit(tmp_path):
    model = random_weights(SpanBertForPreTraining(config(loss="paper", sbo_weight=0.25)))
    model.save_pretrained(tmp_path)
    for loader in (SpanBertForPreTraining, AutoModelForPreTraining):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is SpanBertForPreTraining
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert (loaded.config.loss, loaded.config.sbo_weight) == ("paper", 0.25)
        assert_same_weights(loaded, model)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "spanbert"


def test_auto_model_reads_the_encoder(tmp_path, stream):
    model = random_weights(SpanBertForPreTraining(config())).eval()
    model.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    ids = stream[0][:14].unsqueeze(0)
    torch.testing.assert_close(
        theirs(ids).last_hidden_state, model(ids).last_hidden_state, rtol=0, atol=1e-5
    )


def test_nothing_is_left_uninitialised_by_from_pretrained(tmp_path):
    # from_pretrained builds on the meta device: what _init_weights forgets comes out as garbage.
    torch.manual_seed(6)
    BertForMaskedLM(BertConfig(**small_bert())).save_pretrained(tmp_path)
    torch.manual_seed(6)
    model = SpanBertForPreTraining.from_pretrained(tmp_path, config=config(initializer_range=0.02))
    assert not dict(model.named_buffers())
    for name, tensor in model.cls.sbo.named_parameters():
        if "layer_norm" in name and name.endswith("weight"):
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            assert 0.015 < tensor.std() < 0.025 and tensor.abs().max() < 0.1, name
    assert (model.cls.sbo_bias == 0).all()


def test_what_is_missing_in_a_file_leaves_its_neighbours_alone(tmp_path):
    model = random_weights(SpanBertForPreTraining(config()))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = {
        "cls.predictions.transform.LayerNorm.bias",
        "cls.sbo.layer_norm1.bias",
        "cls.sbo_bias",
    }
    kept = {n: t for n, t in weights.items() if n not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = SpanBertForPreTraining.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], torch.zeros_like(tensor) if name in missing else tensor), (
            name
        )


def small_bert() -> dict:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "max_position_embeddings", "initializer_range")  # fmt: skip
    return {name: getattr(config(), name) for name in names}


def test_fresh_weights_follow_bert():
    torch.manual_seed(8)
    model = SpanBertForPreTraining(config(initializer_range=0.02))
    for name, tensor in model.named_parameters():
        norm = "norm" in name.lower()
        if tensor.dim() == 1:
            assert (tensor == (1 if norm and name.endswith("weight") else 0)).all(), name
        else:
            assert 0.015 < tensor.std() < 0.025, name
    assert model.bert.embeddings.word_embeddings.weight[0].any()  # [PAD] is drawn like the others


def test_trainers_are_told_that_the_loss_is_a_mean():
    assert SpanBertForPreTraining.accepts_loss_kwargs is False


def test_gradient_checkpointing_through_transformers(masker, stream):
    model = random_weights(SpanBertForPreTraining(config())).double().train()
    batch = masker.packed(*stream)
    expected = run(model, batch=batch, cu_seqlens=stream[1])
    # The second name replaces the first in later 5.x releases.
    old = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", old)()
    assert model.bert.encoder.gradient_checkpointing
    assert_same(run(model, batch=batch, cu_seqlens=stream[1]), expected)


def test_resizing_the_vocabulary_keeps_the_heads_in_step(masker, stream):
    model = random_weights(SpanBertForPreTraining(config()))
    bias = model.cls.sbo_bias.detach().clone()
    model.resize_token_embeddings(VOCAB + 3)
    assert model.config.vocab_size == VOCAB + 3
    assert torch.equal(model.cls.sbo_bias[:VOCAB], bias) and not model.cls.sbo_bias[VOCAB:].any()
    assert run(model, batch=masker.packed(*stream), cu_seqlens=stream[1])[0].loss.isfinite()


def test_from_encoder_makes_bert_packed(tmp_path, stream):
    torch.manual_seed(12)
    bert = BertForMaskedLM(BertConfig(**small_bert())).eval()
    model = SpanBertForPreTraining.from_encoder(bert, loss="paper").eval()
    assert model.config.encoder_config is None and model.config.loss == "paper"
    ids = stream[0][:14].unsqueeze(0)
    expected = bert.bert(ids).last_hidden_state
    torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=0, atol=1e-5)
    bert.bert.save_pretrained(tmp_path)
    loaded = SpanBertForPreTraining.from_encoder(tmp_path)
    assert_same_weights(loaded.bert, model.bert)
    model.save_pretrained(tmp_path)
    assert_same_weights(SpanBertForPreTraining.from_encoder(tmp_path).bert, model.bert)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("max_span_targets must be an integer of at least 1; got 0", {"max_span_targets": 0}),
        ("position_size", {"position_size": 2.0}),
        ("sbo_weight must be a number of at least 0; got nan", {"sbo_weight": float("nan")}),
        ("sbo_weight", {"sbo_weight": "1"}),
        ("loss must be code or paper; got 'mean'", {"loss": "mean"}),
        ("last_layer_rows", {"last_layer_rows": 1}),
        ("encoder_config must be a dict with model_type", {"encoder_config": {"hidden_size": 3}}),
    ],
)
def test_impossible_settings(message, fields):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_bad_calls(masker, ids, stream):
    model = SpanBertForPreTraining(config())
    batch = masker(ids, lengths=LENGTHS)
    with pytest.raises(ValueError, match="give input_ids, a batch, or both"):
        model()
    with pytest.raises(ValueError, match=r"shape \(36,\), the batch was made of \(5, 14\)"):
        model(*stream, batch=batch)
    wrong = dataclasses.replace(batch, target_positions=batch.target_positions + 5 * WIDTH)
    with pytest.raises(IndexError, match="rows must lie in"):
        model(batch=wrong, lengths=LENGTHS)
    assert copy.deepcopy(model).config.loss == "code"
