"""Plain BERT in and out."""

import json
import os
import stat

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertModel,
    RobertaForTokenClassification,
)

from spanbert_ext import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.tasks.models import load_head, start_model
from spanbert_ext.training.models import load_checkpoint
from spanbert_ext.weights.conversion import export_bert, from_bert
from spanbert_ext.weights.sources import open_start

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def randomised(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def ours():
    return randomised(SpanBertForPreTraining(SpanBertConfig(**SIZES, position_size=8)))


@pytest.fixture
def ids():
    return torch.randint(0, 53, (3, 11), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def assert_same_logits(model, theirs, ids):
    expected = theirs.eval()(ids).logits
    found = model.eval().mlm_logits(model(ids).last_hidden_state)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("source", ["model", "directory"])
def test_export_loads_in_plain_transformers(ours, ids, tmp_path, source):
    saved, out = tmp_path / "saved", tmp_path / "out" / "bert"
    ours.save_pretrained(saved)
    for name in ("tokenizer.json", "vocab.txt"):
        (saved / name).write_text(f"content of {name}")
    written = export_bert(ours if source == "model" else saved, out, tokenizer_dir=saved)
    assert sorted(p.name for p in written) == sorted(os.listdir(out))
    assert (out / "vocab.txt").read_text() == "content of vocab.txt"
    theirs, info = BertForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.model_type == "bert"
    assert theirs.config.architectures == ["BertForMaskedLM"]
    assert type(theirs.config) is BertConfig and not hasattr(theirs.config, "sbo_weight")
    assert_same_logits(ours, theirs, ids)
    encoder, info = BertModel.from_pretrained(
        out, add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"]


def test_export_takes_the_tokenizer_beside_the_model(ours, tmp_path):
    ours.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    export_bert(tmp_path / "saved", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_export_obeys_the_umask(ours, tmp_path, umask):
    before = os.umask(umask)
    try:
        written = export_bert(ours, tmp_path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in written} == {0o666 & ~umask}


def test_export_replaces_an_older_one_and_leaves_nothing_else(ours, ids, tmp_path):
    export_bert(ours, tmp_path)
    with torch.no_grad():
        ours.cls.predictions.bias += 1.0
    export_bert(ours, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert_same_logits(ours, BertForMaskedLM.from_pretrained(tmp_path), ids)


def test_weights_lie_where_torch_would_put_them(ours, tmp_path):
    """A weights file is mapped, and its tensors begin at any byte: products of such rows have other
    last digits, and a resumed run would not repeat one that was not stopped."""
    ours.save_pretrained(tmp_path / "checkpoint")
    for kind in (BertForQuestionAnswering, RobertaForTokenClassification):
        sizes = SIZES | {"num_labels": 2, "pad_token_id": 1}
        randomised(kind(kind.config_class(**sizes))).save_pretrained(tmp_path / kind.__name__)
    loaded = [
        from_bert(tmp_path / "checkpoint")[0],
        load_checkpoint(tmp_path / "checkpoint"),
        load_head(tmp_path / "BertForQuestionAnswering", "question-answering"),
        load_head(tmp_path / "RobertaForTokenClassification", "token-classification"),
    ]
    with open_start(str(tmp_path / "RobertaForTokenClassification")) as start:
        loaded.append(start_model(start, "token-classification", ["O", "B-X"], 53)[0])
    for model in loaded:
        assert not [n for n, p in model.state_dict().items() if p.data_ptr() % 64]


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_from_bert_takes_encoder_and_mlm_head(ids, tmp_path, kind):
    theirs = randomised(kind(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path, loss="paper", position_size=8)
    assert model.config.model_type == "spanbert" and model.config.loss == "paper"
    expected = BertForMaskedLM.from_pretrained(tmp_path)
    assert_same_logits(model, expected, ids)
    assert report.new == {"SBO head": 10}
    unused = {"pooler": 2, "NSP head": 2} if kind is BertForPreTraining else {}
    assert report.unused == unused
    assert report.tensors == len(list(model.parameters())) - 10


def test_from_bert_without_heads(ids, tmp_path):
    theirs = randomised(BertModel(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path)
    with torch.no_grad():
        found = model.eval()(ids).last_hidden_state
        assert (found - theirs(ids).last_hidden_state).abs().max() < 1e-5
    assert report.new == {"MLM head": 5, "SBO head": 10}
    assert report.unused == {"pooler": 2}


def test_from_bert_and_back_is_bit_for_bit(tmp_path):
    theirs = randomised(BertForMaskedLM(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path / "a")
    export_bert(from_bert(tmp_path / "a")[0], tmp_path / "b")
    back = BertForMaskedLM.from_pretrained(tmp_path / "b")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_from_bert_reads_a_directory_without_model_type(tmp_path):
    theirs = randomised(BertModel(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"model_type": "bert",', "")
    (tmp_path / "config.json").write_text(text)
    model, _ = from_bert(tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_from_bert_continues_a_spanbert(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path)
    assert report.new == report.unused == {}
    assert report.parameters == sum(p.numel() for p in ours.parameters())
    assert torch.equal(model.cls.sbo.linear1.weight, ours.cls.sbo.linear1.weight)


def test_what_is_no_bert_is_refused(ours, tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        from_bert(tmp_path)
    with pytest.raises(DataError, match="no config.json"):
        export_bert(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(DataError, match="model_type is 't5', not 'bert'"):
        from_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "tie_word_embeddings": false}')
    with pytest.raises(DataError, match="tie_word_embeddings is False"):
        from_bert(tmp_path)
    with pytest.raises(DataError, match="no tokenizer files"):
        export_bert(ours, tmp_path / "out", tokenizer_dir=tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        export_bert(ours, tmp_path / "out", tokenizer_dir=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_file_without_the_encoder_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    randomised(BertModel(BertConfig(**SIZES))).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    del weights["embeddings.LayerNorm.bias"]
    weights["embeddings.position_embeddings.weight"] = torch.full((8, 32), torch.nan)
    weights["encoder.layer.0.output.dense.bias"][3] = torch.inf
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError) as caught:
        from_bert(tmp_path)
    text = str(caught.value)
    assert "2 weights of the encoder are missing: bert.embeddings.LayerNorm.bias" in text
    assert "position_embeddings.weight is (8, 32) there, (16, 32) by its config" in text
    assert "1 tensors hold NaN or infinity: bert.encoder.layer.0.output.dense.bias" in text


def test_half_precision_files_are_trained_in_single(tmp_path):
    theirs = randomised(BertModel(BertConfig(**SIZES))).half()
    theirs.save_pretrained(tmp_path)
    model, _ = from_bert(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    words = theirs.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, words.float())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "gelu_new", "hidden_act is 'gelu_new'"),
        ("is_decoder", True, "is_decoder is True"),
        ("position_embedding_type", "relative_key", "is 'relative_key'"),
        ("num_attention_heads", 0, "cannot be used: integer modulo by zero"),
        ("hidden_size", "32", "cannot be used.*'hidden_size' expected int"),
        ("vocab_size", 60, r"word_embeddings.weight is \(53, 32\) there, \(60, 32\)"),
    ],
)
def test_a_configuration_that_our_encoder_does_not_compute(tmp_path, field, value, message):
    randomised(BertModel(BertConfig(**SIZES))).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=f"(?s){message}"):
        from_bert(tmp_path)


def test_another_encoder_is_exported_as_its_own_class(tmp_path):
    from transformers import AutoModel, RobertaConfig

    fields = RobertaConfig(**{**SIZES, "num_hidden_layers": 1}).to_dict()
    config = SpanBertConfig(
        vocab_size=53, hidden_size=32, encoder_config=fields, weights_licence="theirs"
    )
    model = SpanBertForPreTraining(config)
    export_bert(model, tmp_path / "out")
    encoder, info = AutoModel.from_pretrained(
        tmp_path / "out", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info.values())
    assert (encoder.config.model_type, encoder.config.weights_licence) == ("roberta", "theirs")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_a_target_that_cannot_be_written(ours, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        export_bert(ours, tmp_path / "file")
