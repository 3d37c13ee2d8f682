"""Weights as the start of a run: what fits its corpus and settings, what is refused."""

import json

import pytest
import torch
from conftest import prepared
from original_files import VOCAB, write_encoder
from transformers import AutoTokenizer, BertConfig, BertModel

from spanbert_ext import SpanBertForPreTraining
from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


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
        words += ["--init", str(tmp_path / name), "--batch.max_length=32", "--batch.rows=8"]
        words += ["--device=cpu"]
        assert main(words) == code
        error = capsys.readouterr().err
        assert error.startswith("spanbert: error: ")
        assert message in error
        assert "Traceback" not in error
