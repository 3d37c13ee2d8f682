"""Plain BERT in and out."""

import os
import stat

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from spanbert_ext import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.conversion import export_bert, from_bert, load_report
from spanbert_ext.errors import DataError, StorageError

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


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_from_bert_takes_encoder_and_mlm_head(ids, tmp_path, kind):
    theirs = randomised(kind(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path, loss="paper", position_size=8)
    assert model.config.model_type == "spanbert" and model.config.loss == "paper"
    expected = BertForMaskedLM.from_pretrained(tmp_path)
    assert_same_logits(model, expected, ids)
    assert "new (not in the file): cls.sbo (9 tensors)" in report
    assert "cls.predictions" not in report
    assert ("not used: cls.seq_relationship (2 tensors)" in report) == (kind is BertForPreTraining)


def test_from_bert_without_heads(ids, tmp_path):
    theirs = randomised(BertModel(BertConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    model, report = from_bert(tmp_path)
    with torch.no_grad():
        found = model.eval()(ids).last_hidden_state
        assert (found - theirs(ids).last_hidden_state).abs().max() < 1e-5
    assert "new (not in the file): cls.predictions (5 tensors)" in report
    assert "not used: pooler.dense (2 tensors)" in report


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
    assert report == "every weight was in the file"
    assert torch.equal(model.cls.sbo.linear1.weight, ours.cls.sbo.linear1.weight)


def test_load_report_literal():
    info = {
        "missing_keys": {"cls.sbo_bias", "cls.sbo.linear1.weight", "cls.sbo.linear1.bias"},
        "unexpected_keys": {"bert.pooler.dense.weight"},
        "mismatched_keys": {("cls.predictions.bias", (5,), (6,))},
    }
    assert load_report(info).splitlines() == [
        "new (not in the file): cls.sbo (2 tensors)",
        "new (not in the file): cls.sbo_bias (1 tensors)",
        "not used: bert.pooler (1 tensors)",
        "other shape: cls.predictions.bias is (5,) in the file, (6,) in the model",
    ]


def test_what_is_no_bert_is_refused(ours, tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        from_bert(tmp_path)
    with pytest.raises(DataError, match="no config.json"):
        export_bert(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(DataError, match="model_type is 't5', not 'bert'"):
        from_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "tie_word_embeddings": false}')
    with pytest.raises(DataError, match="tie_word_embeddings is false"):
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
    with pytest.raises(DataError, match="first bert.encoder.layer.1.output.dense.weight"):
        from_bert(tmp_path)


def test_another_encoder_is_not_exported_as_bert(tmp_path):
    from transformers import RobertaConfig

    fields = RobertaConfig(**{**SIZES, "num_hidden_layers": 1}).to_dict()
    config = SpanBertConfig(vocab_size=53, hidden_size=32, encoder_config=fields)
    with pytest.raises(DataError, match="'roberta', not BERT"):
        export_bert(SpanBertForPreTraining(config), tmp_path / "out")


def test_a_target_that_cannot_be_written(ours, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        export_bert(ours, tmp_path / "file")
