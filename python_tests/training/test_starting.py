"""Runs that start from given weights: what fits, what is refused, what is said and saved."""

import dataclasses
import json
import os
import signal
import string

import pytest
import torch
from conftest import write_text
from original_files import POSITIONS, VOCAB, pack, write_encoder, write_fairseq
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.cli import main
from spanbert_ext.data import Corpus, PrepareConfig, prepare
from spanbert_ext.errors import ConfigError, Preempted
from spanbert_ext.starting_points import LICENCE
from spanbert_ext.training import checkpoint
from spanbert_ext.training.config import ModelOptions
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.training.run_log import RunLog
from spanbert_ext.training.starting import continue_model

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


@pytest.fixture
def continued(tiny, change):
    """Settings of a run of two steps that takes its size from the weights."""
    return change(
        dataclasses.replace(tiny, model=ModelOptions()),
        steps=2,
        **{"optimizer.warmup_steps": 1, "checkpoint.every": 1, "validation.every": 0},
    )


@pytest.fixture
def tokenizer(corpus_dir):
    return AutoTokenizer.from_pretrained(corpus_dir / "tokenizer")


def save_bert(folder, tokenizer=None, rows=None, **changes):
    """A BERT directory with the corpus's tokenizer."""
    sizes = SIZES | {"vocab_size": rows or len(tokenizer)} | changes
    model = BertModel(BertConfig(**sizes))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def edit_tokenizer(folder, change):
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def edit_settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def prepared(folder, tokenizer, **settings):
    """A corpus below `folder`."""
    text = write_text(folder / "text.txt")
    names = {"inputs": [str(text)], "output": str(folder / "corpus"), "tokenizer": str(tokenizer)}
    prepare(PrepareConfig(**names, validation_fraction=0.1, **settings))
    return folder / "corpus"


def swap(spec):
    vocab = spec["model"]["vocab"]
    vocab["the"], vocab["old"] = vocab["old"], vocab["the"]


def add_piece(spec):
    vocab = spec["model"]["vocab"]
    vocab["zebra"] = len(vocab)


def make_uncased(spec):
    """No piece with a capital is left; the tokenizer lower-cases."""
    vocab = spec["model"]["vocab"]
    spec["model"]["vocab"] = {
        p if p == p.lower() or p.startswith("[") else f"xq{i}": i for p, i in vocab.items()
    }
    spec["normalizer"]["lowercase"] = True


@pytest.fixture
def load(continued, change):
    """`load(folder, corpus=..., **settings)`: (model, report)"""

    def call(folder, corpus=continued.corpus, **settings):
        return continue_model(change(continued, init=str(folder), **settings), Corpus.open(corpus))

    return call


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap, r"gives other ids than the corpus's: 2 of \d+ differ, first id \d+, which is '"),
        (add_piece, r"its tokenizer has \d+ ids, the corpus's has \d+"),
    ],
)
def test_another_tokenizer(load, tokenizer, tmp_path, edit, message):
    save_bert(tmp_path, tokenizer, rows=200)
    edit_tokenizer(tmp_path, edit)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path)
    assert f"prepare the corpus with `--tokenizer {tmp_path}`" in str(caught.value)


def test_a_cased_vocabulary_whose_own_files_lower_case(load, tokenizer, tmp_path):
    """As AutoTokenizer reads a bare vocab.txt of a cased model."""
    save_bert(tmp_path, tokenizer)
    edit_tokenizer(tmp_path, lambda spec: spec["normalizer"].update(lowercase=True))
    _, report = load(tmp_path)
    assert "lower-cases text, its vocabulary is cased: the corpus's rule" in report.notes[0]


def test_the_corpus_has_another_rule_of_case(load, tokenizer, tmp_path):
    save_bert(tmp_path, tokenizer)
    edit_tokenizer(tmp_path, make_uncased)
    edit_settings(tmp_path, do_lower_case=True)
    corpus = prepared(tmp_path, tmp_path)
    load(tmp_path, corpus)
    edit_tokenizer(tmp_path, lambda spec: spec["normalizer"].update(lowercase=False))
    with pytest.raises(ConfigError, match="lower-cases text, that of the weights keeps upper"):
        load(tmp_path, corpus)


def test_rows_of_the_embedding(load, tokenizer, tmp_path):
    """More rows than pieces is padding; fewer would be read out of bounds."""
    size = len(tokenizer)
    save_bert(tmp_path / "more", tokenizer, rows=size + 24)
    model, report = load(tmp_path / "more")
    assert report.notes == ("24 rows of the word embedding belong to no piece",)
    assert model.cls.sbo_bias.shape == (size + 24,)
    save_bert(tmp_path / "fewer", tokenizer, rows=size - 1)
    with pytest.raises(
        ConfigError, match=f"ids up to {size - 1} .*, the word embedding has {size - 1}"
    ):
        load(tmp_path / "fewer")


def test_weights_without_a_tokenizer(load, tokenizer, tmp_path):
    size = len(tokenizer)
    save_bert(tmp_path / "same", rows=size)
    _, report = load(tmp_path / "same")
    assert report.notes == (
        "no tokenizer lies beside the weights: that ids mean the same is taken on trust",
    )
    save_bert(tmp_path / "more", rows=size + 1)
    with pytest.raises(
        ConfigError, match=f"embedding has {size + 1} rows where the corpus has {size}"
    ):
        load(tmp_path / "more")


def test_an_original_archive_wants_the_published_ids(load, tokenizer, tmp_path):
    write_encoder(tmp_path, vocab_size=VOCAB)
    with pytest.raises(ConfigError, match="vocab.txt of bert-base-cased, as for every SpanBERT"):
        load(tmp_path, **{"batch.max_length": 24})
    weights = write_encoder(tmp_path, vocab_size=len(tokenizer))
    words = "bert.embeddings.word_embeddings.weight"
    weights[words] = weights[words][: len(tokenizer)]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"ids are not BERT's \(\[UNK\] is 1, not 100, \[CLS\]"):
        load(tmp_path, **{"batch.max_length": 24})


def test_all_faults_at_once(load, tokenizer, tmp_path):
    model = SpanBertForPreTraining.from_encoder(
        save_bert(tmp_path, tokenizer, max_position_embeddings=16), max_span_targets=4
    )
    model.save_pretrained(tmp_path)
    edit_tokenizer(tmp_path, swap)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"init: {tmp_path} does not fit this run: "
    assert "gives other ids" in lines[1]
    assert lines[2].endswith("32, the model has 16 positions; set it to at most 16")
    assert lines[3].endswith("the SBO head of the weights has 4 positions; set it to at most 4")
    load(
        tmp_path,
        prepared(tmp_path, tmp_path),
        **{"batch.max_length": 16, "masking.max_span_targets": 4},
    )


def test_dropout_of_the_settings_wins(load, tokenizer, tmp_path):
    save_bert(tmp_path, tokenizer, hidden_dropout_prob=0.3)
    for given, expected in ((None, 0.3), (0.0, 0.0)):
        model, _ = load(tmp_path, **{"model.dropout": given})
        assert model.bert.embeddings.dropout.p == expected


def test_the_command_refuses_without_a_traceback(continued, tokenizer, tmp_path, capsys):
    """Weights that are not finite (65), settings that do not fit (2), a name of nothing (2)."""
    model = save_bert(tmp_path / "nan", tokenizer)
    model.encoder.layer[0].output.dense.bias.data[1] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    save_bert(tmp_path / "short", tokenizer, max_position_embeddings=16)
    cases = [
        ("nan", 65, "1 tensors hold NaN or infinity: bert.encoder.layer.0.output.dense.bias"),
        ("short", 2, "the model has 16 positions"),
        ("a/b/c", 2, "there is no such file or directory"),
    ]
    for name, code, message in cases:
        capsys.readouterr()  # transformers' bars
        words = ["pretrain", "--corpus", continued.corpus, "--output", continued.output]
        words += ["--init", str(tmp_path / name), "--batch.max_length", "32", "--device", "cpu"]
        assert main(words) == code
        error = capsys.readouterr().err
        assert error.startswith("spanbert: error: ")
        assert message in error
        assert "Traceback" not in error


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


def stop_after(monkeypatch, step):
    train = RunLog.train

    def logged(self, now, *values):
        train(self, now, *values)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "train", logged)


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
    sizes = SIZES | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 34}
    RobertaForMaskedLM(RobertaConfig(**sizes)).save_pretrained(home / "model")
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
        stop_after(patch, 3)
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
