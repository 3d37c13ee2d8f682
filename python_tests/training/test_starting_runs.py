"""Whole runs from a run, from another encoder and from the original archives."""

import json
import string

import pytest
import torch
from conftest import prepared, write_text
from original_files import POSITIONS, VOCAB, pack, write_encoder, write_fairseq
from safetensors.torch import load_file
from test_pretrain import stop_at
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError, Preempted
from spanbert_ext.training import checkpoint
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.weights.sources import LICENCE


def test_a_run_as_the_start(tiny, continued, change, tmp_path, capsys):
    """Its newest whole checkpoint; nothing is random then."""
    run = pretrain(change(tiny, steps=4, output=str(tmp_path / "first"))).run
    config = change(continued, init=str(run))
    pretrain(config)
    report = json.loads((tmp_path / "run" / "init.json").read_text())
    assert report["source"] == str(run / "step-0000004")
    assert report["new"] == report["unused"] == {}
    weights = load_file(run / "step-0000004" / "model.safetensors")
    assert report["tensors"] == len(weights)
    assert report["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert f"weights of {run}/step-0000004 (SpanBERT directory)\n  taken over:" in (
        capsys.readouterr().out
    )


@pytest.fixture(scope="session")
def roberta(tmp_path_factory):
    """A small RoBERTa with a byte-level BPE tokenizer, and a corpus prepared with it."""
    home = tmp_path_factory.mktemp("roberta")
    text = write_text(home / "words.txt")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.read_text()], trainer)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=34,
    )
    RobertaForMaskedLM(config).save_pretrained(home / "model")
    tokenizer.save(str(home / "model" / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    settings = {f"{role}_token": token for role, token in names.items()}
    (home / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    prepared(home, home / "model")
    return home


def test_another_encoder_trains_resumes_and_leaves(
    roberta, continued, change, tmp_path, monkeypatch
):
    """The whole path of a RoBERTa: start, stop, bit-equal resume, export to its own class."""
    config = change(continued, corpus=str(roberta / "corpus"), init=str(roberta / "model"), steps=6)
    whole = pretrain(change(config, output=str(tmp_path / "whole")))
    report = json.loads((whole.run / "init.json").read_text())
    assert (report["layout"], report["new"]) == (
        "roberta directory",
        {"MLM head": 5, "SBO head": 10},
    )
    assert whole.state.latest_losses["mlm_loss"] < whole.state.starting_losses["mlm_loss"]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Preempted):
            pretrain(config)
    result = pretrain(config)
    found, expected = (load_file(r.checkpoint / "model.safetensors") for r in (result, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert main(["export", str(result.run), str(tmp_path / "plain")]) == 0
    encoder, info = AutoModel.from_pretrained(
        tmp_path / "plain", add_pooling_layer=False, output_loading_info=True
    )
    assert type(encoder).__name__ == "RobertaModel"
    assert not any(info.values())
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(encoder.state_dict()[name], expected[f"backbone.{name}"])
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").mask_token == "<mask>"


def test_roberta_counts_positions_from_behind_its_padding_id(roberta, load):
    load(roberta / "model", roberta / "corpus", **{"batch.max_length": 32})
    with pytest.raises(ConfigError, match="batch.max_length is 33, the model has 32 positions"):
        load(roberta / "model", roberta / "corpus", **{"batch.max_length": 33})


@pytest.fixture(scope="session")
def published_ids(tmp_path_factory):
    """A corpus whose vocabulary has its special tokens where BERT's has them."""
    home = tmp_path_factory.mktemp("published")
    letters = string.ascii_lowercase
    pieces = [
        "[PAD]",
        *(f"[unused{i}]" for i in range(1, 100)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    pieces += [*letters, *(f"##{c}" for c in letters), ".", "the", "river", "house"]
    assert len(pieces) == VOCAB
    (home / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return prepared(home, home / "vocab.txt", lowercase=True)


@pytest.mark.parametrize("kind", ["encoder", "heads"])
def test_an_archive_of_the_original_is_trained_on(
    published_ids, continued, change, tmp_path, capsys, kind
):
    """From the .tar.gz to a checkpoint and an export that still name the licence."""
    folder = tmp_path / "spanbert"
    if kind == "encoder":
        write_encoder(folder)
    else:
        folder.mkdir()
        write_fairseq(folder / "model.pt")
    archive = pack(folder, tmp_path / "spanbert.tar.gz")
    config = change(
        continued,
        corpus=str(published_ids),
        init=str(archive),
        **{"batch.max_length": POSITIONS},
    )
    result = pretrain(config)
    report = json.loads((result.run / "init.json").read_text())
    assert (report["source"], report["licence"]) == (str(archive), LICENCE)
    new = {"MLM head": 5, "SBO head": 10} if kind == "encoder" else {}
    assert report["new"] == new
    assert f"licence: {LICENCE}" in capsys.readouterr().out
    assert main(["export", str(result.run), str(tmp_path / "plain")]) == 0
    assert LICENCE in capsys.readouterr().out
    for place in (checkpoint.newest(result.run), tmp_path / "plain"):
        assert json.loads((place / "config.json").read_text())["weights_licence"] == LICENCE
