"""Next sentence prediction, and heads that are left out or read another layer."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import (
    LENGTHS,
    MASK_ID,
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
from safetensors.torch import load_file
from test_modeling import naive_losses, small_bert
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
)

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.model.heads import first_tokens, wanted_rows
from spanbert_ext.weights.conversion import export_bert, from_bert

LABELS = torch.tensor([1, 0, 1, -100, 0])
# Where the second segment of each row begins.
SPLITS = torch.tensor([5, 1, 8, 0, 3])


@pytest.fixture
def pairs():
    """(padded batch, packed batch, token types [B, L], cu_seqlens) of the same five pairs; the
    segments are masked apart."""
    ids, masker = make_ids(), make_masker()
    tokens, cu_seqlens = make_stream(ids)
    starts = cu_seqlens[:-1]
    borders = torch.cat([torch.stack([starts, starts + SPLITS], 1).flatten(), cu_seqlens[-1:]])
    packed = masker.packed(tokens, borders)
    inside = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)
    padded = torch.full_like(ids, MASK_ID)
    padded[inside] = packed.input_ids
    types = (torch.arange(WIDTH) >= SPLITS.unsqueeze(1)).long() * inside
    return padded, packed, types, cu_seqlens


def plain_bert(model, **fields) -> BertForPreTraining:
    """transformers' own model with the weights of ours."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    dropout = {name: getattr(model.config, name) for name in names}
    theirs = BertForPreTraining(BertConfig(**{**small_bert(), **dropout, **fields})).double()
    found = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all("predictions.decoder" in name for name in found.missing_keys)
    theirs.tie_weights()
    theirs.cls.predictions.decoder.bias = theirs.cls.predictions.bias
    return theirs


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("rows", [False, True])
def test_losses_and_gradients_are_transformers_own(pairs, layout, rows):
    ids, packed, types, cu_seqlens = pairs
    fields = {"nsp": True, "sbo_weight": 0, "last_layer_rows": rows}
    model = random_weights(SpanBertForPreTraining(config(**fields))).double()
    theirs = plain_bert(model)
    inside = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)
    labels = torch.full_like(ids, -100)
    labels[inside] = packed.labels
    expected = theirs(
        ids,
        attention_mask=inside.long(),
        token_type_ids=types,
        labels=labels,
        next_sentence_label=LABELS,
    )
    expected.loss.backward()
    if layout == "packed":
        inputs = {"cu_seqlens": cu_seqlens, "token_type_ids": types[inside], "batch": packed}
    else:
        places = torch.arange(WIDTH * len(LENGTHS)).view_as(ids)[inside]
        at = places[packed.target_positions]
        batch = MaskedBatch(
            **{**vars(packed), "input_ids": ids, "labels": labels, "target_positions": at}
        )
        inputs = {"lengths": LENGTHS, "token_type_ids": types, "batch": batch}
    output, found = run(model, nsp_labels=LABELS, **inputs)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.mlm_loss + output.nsp_loss, output.loss.detach())
    named = dict(theirs.named_parameters())
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} <= found.keys() & named.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=0, atol=1e-11, msg=name)


def test_micro_batches_add_up(pairs):
    """An update does not depend on how its batch is cut: ratio 1 for every gradient."""
    ids, masker = make_ids(), make_masker()
    model = random_weights(SpanBertForPreTraining(config(nsp=True))).double()
    whole = masker(ids, lengths=LENGTHS)
    _, expected = run(model, batch=whole, lengths=LENGTHS, nsp_labels=LABELS)
    counts = {
        "num_mlm_targets": (whole.target_ids != -100).sum(),
        "num_sbo_targets": (whole.sbo_ids != -100).sum(),
        "num_nsp_targets": (LABELS != -100).sum(),
    }
    model.zero_grad()
    for part in (slice(0, 1), slice(1, 5)):
        lengths, sample_ids = LENGTHS[part], torch.arange(5)[part]
        batch = masker(ids[part].contiguous(), lengths=lengths, sample_ids=sample_ids)
        model(batch=batch, lengths=lengths, nsp_labels=LABELS[part], **counts).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("fields", [{}, {"sbo_layer": 0}, {"sbo_weight": 0}, {"loss": "paper"}])
def test_needed_rows_and_unused_slots_change_nothing(pairs, monkeypatch, fields):
    _, packed, types, cu_seqlens = pairs
    model = random_weights(SpanBertForPreTraining(config(nsp=True, **fields))).double()
    types = types[torch.arange(WIDTH) < LENGTHS.unsqueeze(1)]
    inputs = {"batch": packed, "cu_seqlens": cu_seqlens, "token_type_ids": types}
    expected = run(model, nsp_labels=LABELS, return_hidden=True, **inputs)
    for used in (MaskedBatch.used, lambda batch: batch):  # the second is what a GPU does
        monkeypatch.setattr(MaskedBatch, "used", used)
        found = run(model, nsp_labels=LABELS, **inputs)
        assert_same_parts(found, expected)


def assert_same_parts(found, expected):
    names = [n for n in ("loss", "mlm_loss", "sbo_loss", "nsp_loss") if n in expected[0]]
    assert names == [n for n in ("loss", "mlm_loss", "sbo_loss", "nsp_loss") if n in found[0]]
    for name in names:
        torch.testing.assert_close(found[0][name], expected[0][name], rtol=0, atol=1e-11)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=0, atol=1e-11, msg=name)


def test_first_tokens_literal(pairs):
    ids, packed, _, cu_seqlens = pairs
    assert first_tokens(LABELS, packed.input_ids, cu_seqlens).tolist() == [0, 14, 16, -1, 25]
    assert first_tokens(LABELS, ids, None).tolist() == [0, 14, 28, -1, 56]


def test_first_tokens_keep_the_promise_of_rows_in_a_sequence():
    masker = make_masker()
    generator = torch.Generator().manual_seed(7)
    for _ in range(50):
        lengths = torch.randint(0, 30, (6,), generator=generator)
        tokens = torch.randint(4, VOCAB, (int(lengths.sum()),), generator=generator)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        batch = masker.packed(tokens, cu_seqlens)
        firsts = torch.where(lengths > 0, cu_seqlens[:-1], -1)
        sequence = torch.arange(6).repeat_interleave(lengths)
        for spans in (True, False):
            rows, most = wanted_rows(batch, len(tokens), int(lengths.max()), spans, firsts)
            assert sequence[rows].bincount().max() <= most
            assert torch.equal(rows[-6:][lengths > 0], cu_seqlens[:-1][lengths > 0])


# SBO on another layer, or none -------------------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("layer", "same_as"), [(0, 0), (-2, 0), (1, None), (-1, None)])
def test_the_sbo_reads_its_layer(rows, layer, same_as):
    stream = make_stream(make_ids())
    batch = make_masker().packed(*stream)
    model = random_weights(
        SpanBertForPreTraining(config(sbo_layer=layer, last_layer_rows=rows))
    ).double()
    states = []
    hooks = [
        module.register_forward_hook(lambda *seen: states.append(seen[2]))
        for module in model.bert.encoder.layer
    ]
    last = model.bert(batch.input_ids, stream[1])
    for hook in hooks:
        hook.remove()
    mlm, _ = naive_losses(model, last, batch)
    _, sbo = naive_losses(model, last if same_as is None else states[same_as], batch)
    (mlm + sbo).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    output, found = run(model, batch=batch, cu_seqlens=stream[1])
    torch.testing.assert_close(output.sbo_loss, sbo.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, mlm + sbo, rtol=0, atol=1e-12)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-11, msg=name)
    asked = model(batch=batch, cu_seqlens=stream[1], return_hidden=True)
    early = asked.sbo_hidden_state
    assert (early is None) == (same_as is None)
    logits = model.sbo_logits(asked.last_hidden_state if early is None else early, batch)
    torch.testing.assert_close(F.cross_entropy(logits, batch.sbo_ids), sbo)
    assert_same(run(model, batch=batch, cu_seqlens=stream[1]), (output, found))


def test_weight_zero_leaves_the_sbo_out():
    stream = make_stream(make_ids())
    batch = make_masker().packed(*stream)
    whole = random_weights(SpanBertForPreTraining(config())).double()
    without = SpanBertForPreTraining(config(sbo_weight=0)).double()
    assert not [name for name, _ in without.named_parameters() if "sbo" in name]
    without.load_state_dict({n: t for n, t in whole.state_dict().items() if "sbo" not in n})
    output, gradients = run(without, batch=batch, cu_seqlens=stream[1])
    assert output.sbo_loss is None and "sbo_loss" not in output
    expected, _ = run(whole, batch=batch, cu_seqlens=stream[1])
    torch.testing.assert_close(output.loss.detach(), expected.mlm_loss, rtol=0, atol=1e-12)
    assert all(p.grad is not None for n, p in without.named_parameters() if "type" not in n)
    assert gradients["cls.predictions.bias"].any()
    without.resize_token_embeddings(VOCAB + 1)
    assert without.cls.sbo_bias is None


# Files -------------------------------------------------------------------------------------------


def test_round_trip_is_bit_for_bit(tmp_path):
    model = random_weights(SpanBertForPreTraining(config(nsp=True, sbo_layer=0)))
    model.save_pretrained(tmp_path)
    for loader in (SpanBertForPreTraining, AutoModelForPreTraining):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert (loaded.config.nsp, loaded.config.sbo_layer) == (True, 0)
        assert_same_weights(loaded, model)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.pooler.dense.weight, model.bert.pooler.dense.weight)


@pytest.mark.parametrize("sbo_weight", [0, 1.0])
def test_export_is_transformers_own_pre_training_model(tmp_path, pairs, sbo_weight):
    ids, _, types, _ = pairs
    model = random_weights(SpanBertForPreTraining(config(nsp=True, sbo_weight=sbo_weight))).eval()
    export_bert(model, tmp_path)
    theirs, info = BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.architectures == ["BertForPreTraining"]
    assert not {"nsp", "sbo_layer", "sbo_weight"} & vars(theirs.config).keys()
    with torch.no_grad():
        expected = theirs.eval()(ids, token_type_ids=types)
        hidden = model(ids, token_type_ids=types).last_hidden_state
        found = model.nsp_logits(hidden[:, 0])
    torch.testing.assert_close(found, expected.seq_relationship_logits, rtol=0, atol=1e-5)
    assert BertForMaskedLM.from_pretrained(tmp_path).config.model_type == "bert"


def test_heads_come_from_a_plain_pre_training_directory(tmp_path):
    theirs = random_weights(BertForPreTraining(BertConfig(**small_bert())))
    theirs.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path, nsp=True, position_size=6)
    assert not {"pooler", "NSP head"} & {*report.new, *report.unused}
    own, files = model.state_dict(), theirs.state_dict()
    for name in ("bert.pooler.dense.weight", "cls.seq_relationship.weight"):
        assert torch.equal(own[name], files[name])
    around = SpanBertForPreTraining.from_encoder(tmp_path, nsp=True)
    assert torch.equal(around.bert.pooler.dense.weight, files["bert.pooler.dense.weight"])


def test_missing_heads_start_as_bert_does(tmp_path):
    # from_pretrained builds on the meta device: what _init_weights forgets comes out as garbage.
    BertForMaskedLM(BertConfig(**{**small_bert(), "initializer_range": 0.02})).save_pretrained(
        tmp_path
    )
    model, report = from_bert(tmp_path, nsp=True)
    assert (report.new["pooler"], report.new["NSP head"]) == (2, 2)
    around = SpanBertForPreTraining.from_encoder(tmp_path, nsp=True)
    for weights in (model.state_dict(), around.state_dict()):
        for part in ("bert.pooler.dense", "cls.seq_relationship"):
            assert 0.01 < weights[f"{part}.weight"].std() < 0.03
            assert not weights[f"{part}.bias"].any()


def test_without_nsp_files_are_what_they_were(tmp_path):
    model = random_weights(SpanBertForPreTraining(config()))
    model.save_pretrained(tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert not [n for n in names if "pooler" in n or "seq_relationship" in n]
    export_bert(model, tmp_path / "plain")
    back, _ = from_bert(tmp_path / "plain", position_size=6)
    for name, tensor in model.state_dict().items():
        if "sbo" not in name:
            assert torch.equal(back.state_dict()[name], tensor), name
    assert not hasattr(AutoModel.from_pretrained(tmp_path / "ours").pooler, "dense")


def test_a_pre_training_directory_of_bert_comes_back_bit_for_bit(tmp_path):
    theirs = random_weights(BertForPreTraining(BertConfig(**small_bert())))
    theirs.save_pretrained(tmp_path / "a")
    export_bert(from_bert(tmp_path / "a", nsp=True)[0], tmp_path / "b")
    back = BertForPreTraining.from_pretrained(tmp_path / "b").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor), name


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("nsp must be true or false; got 1", {"nsp": 1}),
        ("sbo_layer must be an integer; got True", {"sbo_layer": True}),
        (r"sbo_layer must lie in \[-2, 2\), an index into 2 layers; got 2", {"sbo_layer": 2}),
        (r"sbo_layer .* got -3", {"sbo_layer": -3}),
        ("nsp needs a token type for each segment; .* is 1", {"nsp": True, "type_vocab_size": 1}),
    ],
)
def test_impossible_settings(message, fields):
    with pytest.raises(ValueError, match=message):
        SpanBertForPreTraining(config(**fields))


@pytest.mark.parametrize("fields", [{"nsp": True}, {"sbo_layer": 0}])
def test_other_encoders_have_no_such_heads(fields):
    theirs = {**small_bert(), "model_type": "roberta"}
    with pytest.raises(ValueError, match=f"{next(iter(fields))} needs our BERT.*'roberta'"):
        SpanBertForPreTraining(config(encoder_config=theirs, **fields))


@pytest.mark.parametrize(
    ("error", "message", "labels"),
    [
        (ValueError, r"nsp_labels must have shape \(5,\); got \(4,\)", LABELS[:4]),
        (TypeError, "nsp_labels must be int64; got torch.int32", LABELS.int()),
        (IndexError, "nsp_labels must lie in", LABELS + 1),
    ],
)
def test_bad_labels(pairs, error, message, labels):
    _, packed, _, cu_seqlens = pairs
    model = SpanBertForPreTraining(config(nsp=True))
    with pytest.raises(error, match=message):
        model(batch=packed, cu_seqlens=cu_seqlens, nsp_labels=labels)


def test_labels_without_a_head(pairs):
    _, packed, _, cu_seqlens = pairs
    model = SpanBertForPreTraining(config())
    with pytest.raises(ValueError, match="no next sentence head"):
        model(batch=packed, cu_seqlens=cu_seqlens, nsp_labels=LABELS)
