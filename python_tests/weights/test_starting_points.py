"""Every kind of starting point, read against the original's formulas."""

import json

import huggingface_hub.constants
import pytest
import torch
from original_files import (
    HIDDEN,
    POSITIONS,
    SPAN_POSITIONS,
    VOCAB,
    Reference,
    fairseq_weights,
    pack,
    write_encoder,
    write_fairseq,
)
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
)

from spanbert_ext import SpanBertForPreTraining, SpanMasker
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.weights.sources import LICENCE, export_start, open_start, read_start

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def read(name, **options):
    with open_start(str(name)) as start:
        return read_start(start, **options)


@pytest.fixture
def ids():
    return torch.randint(4, VOCAB, (POSITIONS,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=["file", "directory", "archive"])
def fairseq(request, tmp_path):
    """model.pt by its three names."""
    folder = tmp_path / "spanbert_large_with_head"
    folder.mkdir()
    path = write_fairseq(folder / "model.pt")
    if request.param == "archive":
        return pack(folder, tmp_path / "spanbert_large_with_head.tar.gz")
    return path if request.param == "file" else folder


@torch.no_grad()
def test_fairseq_heads_give_the_originals_logits(fairseq, ids):
    model, report = read(fairseq)
    assert (report.new, report.unused, report.licence) == ({}, {}, LICENCE)
    assert report.tensors == len(list(model.parameters()))
    assert report.layout == "original SpanBERT checkpoint with heads"
    assert model.config.weights_licence == LICENCE
    model, original = model.double().eval(), Reference(fairseq_weights())
    expected = original.hidden(ids)
    starts = [True] * VOCAB
    masker = SpanMasker(starts, (0, 1, 2, 3), 3, mask_ratio=0.4, max_span_targets=SPAN_POSITIONS)
    batch = masker(ids.unsqueeze(0)).used()
    torch.testing.assert_close(
        model(ids.unsqueeze(0)).last_hidden_state[0], expected, rtol=0, atol=1e-11
    )
    torch.testing.assert_close(
        model.mlm_logits(expected), original.mlm_logits(expected), rtol=0, atol=1e-11
    )
    found = model.sbo_logits(expected.unsqueeze(0), batch)
    kept = [i for i, target in enumerate(batch.sbo_ids.tolist()) if target >= 0]
    assert len(kept) > 4 and int(batch.target_offsets.max()) > 0
    for i in kept:
        span = int(batch.target_spans[i])
        left, right = int(batch.span_left[span]), int(batch.span_right[span])
        logits = original.sbo_logits(expected, left, right, int(batch.target_offsets[i]))
        torch.testing.assert_close(found[i], logits, rtol=0, atol=1e-11)


def test_fairseq_with_nsp_head_and_in_half_precision(tmp_path):
    weights = {name: tensor.half() for name, tensor in fairseq_weights(nsp=True).items()}
    model, report = read(write_fairseq(tmp_path / "model.pt", weights), max_span_targets=4)
    assert report.unused == {"pooler": 2, "NSP head": 2}
    assert report.notes == ("2 attention heads of 64; the file does not say",)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # A trained head keeps its own table, whatever the run would have made.
    assert model.config.max_span_targets == SPAN_POSITIONS


def test_fairseq_without_boundary_objective(tmp_path):
    weights = {n: t for n, t in fairseq_weights().items() if "pair_target" not in n}
    model, report = read(write_fairseq(tmp_path / "model.pt", weights), max_span_targets=4)
    assert report.new == {"SBO head": 10}
    assert "new: the SBO head starts from random weights (10 tensors)" in str(report)
    assert model.config.max_span_targets == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"decoder.cls.predictions.decoder.weight": torch.ones(3)}), "is not"),
        (lambda w: w.pop("decoder.bert.embeddings.word_embeddings.weight"), "no checkpoint of the"),
        (lambda w: w.pop("decoder.bert.embeddings.position_embeddings.weight"), "parts of the"),
        (lambda w: w.pop("decoder.bert.embeddings.LayerNorm.beta"), "encoder are missing: bert.em"),
        (lambda w: w.update({"decoder.cls.predictions.bias": torch.ones(3)}), "another shape: cls"),
        (
            lambda w: w["decoder.cls.pair_target_predictions.bias"].fill_(torch.nan),
            "NaN or infinity: cls.sbo_bias",
        ),
        (lambda w: w.clear(), "no checkpoint of the original"),
    ],
)
def test_damaged_fairseq_files(tmp_path, change, message):
    weights = fairseq_weights()
    change(weights)
    with pytest.raises(DataError, match=message):
        read(write_fairseq(tmp_path / "model.pt", weights))


def test_heads_of_another_width_are_not_guessed(tmp_path):
    weights = {n: t for n, t in fairseq_weights().items() if "embeddings" in n or "inter" in n}
    weights = {n: t[..., :100] if t.shape[-1] == HIDDEN else t for n, t in weights.items()}
    with pytest.raises(DataError, match="hidden size 100 is not a multiple of 64"):
        read(write_fairseq(tmp_path / "model.pt", weights))


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_encoder_archive(tmp_path, ids, packed):
    weights = write_encoder(tmp_path / "spanbert_hf_base")
    name = tmp_path / "spanbert_hf_base"
    if packed:
        name = pack(name, tmp_path / "spanbert_hf_base.tar.gz")
    model, report = read(name, max_span_targets=4)
    assert report.new == {"MLM head": 5, "SBO head": 10}
    assert report.unused == {"pooler": 2}
    assert model.config.weights_licence == report.licence == LICENCE
    assert "licence: CC BY-NC 4.0, non-commercial" in str(report)
    found = model.double().eval()(ids.unsqueeze(0)).last_hidden_state[0]
    torch.testing.assert_close(found, Reference(weights).hidden(ids), rtol=0, atol=1e-11)


def test_the_licence_stays_with_the_weights(tmp_path):
    """Through our checkpoint and through an exported BERT, into what starts from either."""
    model, _ = read(write_fairseq(tmp_path / "model.pt"))
    model.save_pretrained(tmp_path / "step")
    export_start(str(tmp_path / "step"), tmp_path / "bert")
    assert json.loads((tmp_path / "bert" / "config.json").read_text())["weights_licence"] == LICENCE
    for name in ("step", "bert"):
        assert read(tmp_path / name)[1].licence == LICENCE


def test_an_old_bert_is_not_taken_for_spanbert(tmp_path):
    """Google's BERTs have the same layout, with the masked language model's head."""
    weights = write_encoder(tmp_path / "bert")
    weights["cls.predictions.bias"] = torch.zeros(VOCAB)
    torch.save(weights, tmp_path / "bert" / "pytorch_model.bin")
    _, report = read(tmp_path / "bert")
    assert report.licence is None
    assert report.new == {"MLM head": 4, "SBO head": 10}


def test_export_of_an_archive_loads_in_plain_transformers(tmp_path, ids):
    """With its trained MLM head; an encoder alone as an encoder, without a random head."""
    report = export_start(str(write_fairseq(tmp_path / "model.pt")), tmp_path / "with-head")
    assert "copy the one they were trained with" in report.notes[-1]
    theirs, info = BertForMaskedLM.from_pretrained(tmp_path / "with-head", output_loading_info=True)
    assert not any(info.values())
    original = Reference(fairseq_weights())
    with torch.no_grad():
        found = theirs.eval()(ids.unsqueeze(0)).logits[0]
    expected = original.mlm_logits(original.hidden(ids))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    write_encoder(tmp_path / "base")
    (tmp_path / "base" / "vocab.txt").write_text("content")
    export_start(str(tmp_path / "base"), tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])
    assert (tmp_path / "encoder" / "vocab.txt").read_text() == "content"
    _, info = BertModel.from_pretrained(
        tmp_path / "encoder", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info.values())


def test_a_task_model_gives_its_encoder(tmp_path):
    theirs = BertForQuestionAnswering(BertConfig(**SIZES))
    theirs.save_pretrained(tmp_path)
    model, report = read(tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert report.unused == {"qa_outputs": 2}


def test_our_own_directory(tmp_path):
    model = SpanBertForPreTraining.from_encoder(BertModel(BertConfig(**SIZES)), position_size=6)
    model.save_pretrained(tmp_path)
    again, report = read(tmp_path, max_span_targets=4, loss="paper")
    assert (report.new, report.unused) == ({}, {})
    assert (again.config.max_span_targets, again.config.loss) == (15, "paper")
    assert torch.equal(again.cls.sbo.linear1.weight, model.cls.sbo.linear1.weight)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_encoders(tmp_path, kind):
    if kind == "roberta":
        theirs = RobertaForMaskedLM(RobertaConfig(**SIZES))
    else:
        config = DistilBertConfig(vocab_size=53, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
        theirs = AutoModel.from_config(config)
    theirs.half().save_pretrained(tmp_path)
    model, report = read(tmp_path, max_span_targets=4)
    assert report.new == {"MLM head": 5, "SBO head": 10}
    head = {"lm_head": 1, "lm_head.dense": 2, "lm_head.layer_norm": 2}
    assert report.unused == (head if kind == "roberta" else {})
    for name, tensor in theirs.base_model.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor.float()), name


def test_the_licence_of_another_encoder_stays_too(tmp_path):
    encoder = AutoModel.from_config(RobertaConfig(**SIZES))
    model = SpanBertForPreTraining.from_encoder(encoder, weights_licence="theirs")
    model.save_pretrained(tmp_path / "step")
    export_start(str(tmp_path / "step"), tmp_path / "plain")
    for name in ("step", "plain"):
        model, report = read(tmp_path / name)
        assert model.config.weights_licence == report.licence == "theirs"


def test_a_local_directory_of_that_name_is_not_the_hubs(tmp_path, monkeypatch):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "spanbert" / "mine")
    monkeypatch.chdir(tmp_path)
    assert read("spanbert/mine")[1].licence is None


@pytest.mark.parametrize("config", [GPT2Config(n_layer=1, n_embd=32, n_head=4), T5Config()])
def test_what_is_no_masked_language_model(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is no encoder of masked language models"):
        read(tmp_path)


@pytest.mark.parametrize("field", ["weights", "dropout", "kind"])
def test_other_encoders_that_cannot_be_used(tmp_path, field):
    config = DistilBertConfig(vocab_size=53, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
    model = AutoModel.from_config(config)
    options, error = {}, DataError
    if field == "weights":
        model.embeddings.LayerNorm.bias.data[0] = torch.nan
        message = "NaN or infinity: backbone.embeddings.LayerNorm.bias"
    elif field == "dropout":
        options, error = {"hidden_dropout_prob": 0.2}, ConfigError
        message = "model.dropout: distilbert calls its dropouts otherwise"
    model.save_pretrained(tmp_path)
    if field == "kind":
        fields = json.loads((tmp_path / "config.json").read_text())
        fields |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        message = "cannot be used"
    with pytest.raises(error, match=message):
        read(tmp_path, **options)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 10**7, "num_attention_heads": 10},
        {"num_hidden_layers": 10**9, "hidden_size": 4, "num_attention_heads": 1},
    ],
)
def test_a_model_larger_than_the_machine(tmp_path, sizes):
    write_encoder(tmp_path, **sizes)
    with pytest.raises(DataError, match=r"needs [\d,.]+ GB; this machine has"):
        read(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub, name):
    """A snapshot's directory, as the hub's client lays it out."""
    home = hub / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    return home / "snapshots" / "abc"


@pytest.mark.parametrize("name", ["someone/bert-small", "SpanBERT/spanbert-base-cased"])
def test_a_hub_name_from_the_cache(hub, name):
    BertModel(BertConfig(**SIZES)).save_pretrained(cached(hub, name))
    _, report = read(name)
    assert report.source == name
    assert report.licence == (LICENCE if name.startswith("SpanBERT") else None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/absent", "no such file or directory here, and as a name on the Hugging Face hub"),
        ("a/b/c", "there is no such file or directory"),
        ("./someone", "there is no such file"),
    ],
)
def test_names_of_nothing(hub, name, message):
    with pytest.raises(ConfigError, match=message):
        read(name)


def test_a_cache_that_holds_no_weights(hub):
    folder = cached(hub, "someone/half")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="someone/half: no such file"):
        read("someone/half")


def test_a_directory_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"no model here: expected a run .*fairseq's model.pt"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="cannot be used: Error no file named"):
        read(tmp_path)
