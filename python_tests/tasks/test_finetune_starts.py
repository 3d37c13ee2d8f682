"""What a fine-tuning may start from, and what it must refuse."""

import json

import pytest
import torch
from original_files import pack, write_encoder, write_fairseq
from record_formats import FORMATS
from safetensors.torch import load_file, save_file
from toy_tasks import SPECIALS, sentiment_words, toy_model, toy_tokenizer
from transformers import BertConfig, BertModel, CanineTokenizer, GPT2Config, GPT2Model

from spanbert_ext.cli import command
from spanbert_ext.tasks.models import open_model, read_tokenizer, start_model


def finetune(home, start, *more, task="sst-2", **settings):
    """Exit code of two steps."""
    settings = {"max_steps": 2, "epochs": 1, "evals_per_epoch": 1} | settings
    words = sentiment_words(start, home, home / "run", **settings)
    return command.main([*words, *more])


def vocabulary(folder):
    pieces = toy_tokenizer().get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.get)) + "\n")


def predict(home, capsys):
    """The run can be used: a line of `predict`."""
    (home / "in.jsonl").write_text('{"sentence": "a good Film"}\n')
    words = [str(home / "in.jsonl"), str(home / "out.jsonl"), f"--model={home}/run"]
    assert command.main(["predict", "sst-2", *words, "--device=cpu"]) == 0
    assert json.loads((home / "out.jsonl").read_text())["label"] in "01"
    return capsys.readouterr()


@pytest.mark.parametrize("packed", [False, True])
def test_an_original_archive(tmp_path, capsys, packed):
    """config.json without model_type, a pickle with the names of 2019, vocab.txt and nothing else;
    the vocabulary is cased, so the tokenizer keeps the case."""
    start = tmp_path / "spanbert_hf_base"
    weights = write_encoder(start)
    vocabulary(start)
    if packed:
        start = pack(start, tmp_path / "spanbert_hf_base.tar.gz")
    assert finetune(tmp_path, start, glue__length=24) == 0
    output = capsys.readouterr().out
    assert "original SpanBERT archive, encoder alone" in output
    assert "the classifier starts from random weights" in output
    with open_model(str(start)) as found:
        assert read_tokenizer(found.folder).tokenize("A good Film") == [
            "A",
            "good",
            "F",
            "##i",
            "##l",
            "##m",
        ]
        model, _ = start_model(found, "sequence-classification", ["0", "1"], 160)
    own = model.state_dict()
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(own[f"bert.{name}"], weights[f"bert.{name}"])
    norm = "bert.embeddings.LayerNorm"
    assert torch.equal(own[f"{norm}.weight"], weights[f"{norm}.gamma"])
    assert torch.equal(own["bert.pooler.dense.weight"], weights["bert.pooler.dense.weight"])
    assert read_tokenizer(tmp_path / "run/best").tokenize("Film") == ["F", "##i", "##l", "##m"]
    predict(tmp_path, capsys)


def test_weights_of_fairseq(tmp_path, capsys):
    """There is no tokenizer beside them; with a vocabulary they train."""
    (tmp_path / "large").mkdir()
    write_fairseq(tmp_path / "large" / "model.pt")
    assert finetune(tmp_path, tmp_path / "large", glue__length=24) == 65
    assert "large: no tokenizer lies beside the weights" in capsys.readouterr().err
    assert not (tmp_path / "run" / "best").exists()
    vocabulary(tmp_path / "large")
    assert finetune(tmp_path, tmp_path / "large", glue__length=24) == 0
    assert "original SpanBERT checkpoint with heads" in capsys.readouterr().out
    predict(tmp_path, capsys)


def test_a_run_of_pretraining(tmp_path, capsys):
    """Its newest checkpoint: the encoder with its own tokenizer."""
    text = tmp_path / "text.txt"
    text.write_text("the film was good .\nthe story was bad .\n\n" * 60)
    corpus, run = tmp_path / "corpus", tmp_path / "pretrained"
    assert command.main(["prepare", str(text), f"--output={corpus}", "--vocab_size=80"]) == 0
    words = ["preset=tiny", "steps=2", "precision=fp32", "device=cpu", "model.layers=1"]
    words += ["model.hidden=32", "model.heads=2", "model.feed_forward=32", "batch.rows=4"]
    words += ["batch.max_length=32", "batch.micro_rows=4", "optimizer.warmup_steps=1"]
    words += [f"corpus={corpus}", f"output={run}", "checkpoint.retries=0"]
    assert command.main(["pretrain", *(f"--{word}" for word in words)]) == 0
    assert finetune(tmp_path, run, glue__length=32) == 0
    assert "the classifier starts from random weights" in capsys.readouterr().out
    before = load_file(run / "step-0000002/model.safetensors")
    with open_model(str(run)) as found:
        model, _ = start_model(found, "token-classification", ["O"], 80)
    name = "bert.encoder.layer.0.attention.output.dense.weight"
    assert torch.equal(model.state_dict()[name], before[name])
    predict(tmp_path, capsys)


def test_a_tokenizer_that_does_not_know_places(toy_bert, tmp_path, capsys):
    toy_model(tmp_path / "bert")
    for file in (tmp_path / "bert").glob("*token*"):
        file.unlink()
    CanineTokenizer().save_pretrained(tmp_path / "bert")
    assert finetune(tmp_path, tmp_path / "bert") == 65
    message = capsys.readouterr().err
    assert f"{tmp_path}/bert: its tokenizer is not a fast one" in message, message


def test_no_tokenizer_at_all(tmp_path, capsys):
    toy_model(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bert" / name).unlink()  # with the second one left a vocabulary is made up
        assert finetune(tmp_path, tmp_path / "bert") == 65
        message = capsys.readouterr().err
        assert f"{tmp_path}/bert: no tokenizer lies beside the weights" in message, message
        assert message.endswith("(tokenizer.json, or vocab.txt)\n")


def damaged(folder, change):
    """The toy model with other weights."""
    toy_model(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), NAME),
        (lambda t: t.update({NAME: torch.zeros(3, 3)}), NAME),
        (lambda t: t[NAME].fill_(float("nan")), "1 tensors hold NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_used(tmp_path, capsys, change, message):
    damaged(tmp_path / "bert", change)
    assert finetune(tmp_path, tmp_path / "bert") == 65
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error, error


def test_what_is_no_encoder(tmp_path, capsys):
    GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=160)).save_pretrained(
        tmp_path / "gpt"
    )
    toy_tokenizer().save_pretrained(tmp_path / "gpt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_text("text")
    for name, code in (("gpt", 65), ("empty", 2), ("sub", 2), ("absent/model/x", 2)):
        assert finetune(tmp_path, tmp_path / name) == code, name
        error = capsys.readouterr().err
        assert "Traceback" not in error and f"{tmp_path / name}" in error, error


@pytest.mark.parametrize("unused", [0, 40])
def test_a_vocabulary_grows(tmp_path, unused):
    """By symbols of entities, where [unusedN] are too few; the old rows stay."""
    toy_model(tmp_path / "bert", words=[f"[unused{number}]" for number in range(unused)])
    form = FORMATS["tacred"]
    (tmp_path / "train.json").write_bytes(form.write([form.record(n) for n in range(4)]))
    words = [f"--model={tmp_path}/bert", f"--train={tmp_path}/train.json", "--max_steps=1"]
    words += [f"--output={tmp_path}/run", "--precision=fp32", "--device=cpu"]
    assert command.main(["finetune", "tacred", *words, "--optimizer.peak_lr=1e-9"]) == 0
    config = BertConfig.from_pretrained(tmp_path / "run/best")
    symbols = json.loads((tmp_path / "run/best/spanbert_task.json").read_text())["facts"]["symbols"]
    assert config.vocab_size == 160 + unused + (0 if unused else len(symbols))
    own = load_file(tmp_path / "run/best/model.safetensors")
    rows = own["bert.embeddings.word_embeddings.weight"]
    assert len(rows) == config.vocab_size
    old = BertModel.from_pretrained(tmp_path / "bert").embeddings.word_embeddings.weight
    torch.testing.assert_close(rows[: len(old)], old.detach(), rtol=0, atol=1e-6)
    assert len(SPECIALS) == 5 and not torch.equal(rows[-1], rows[-2])
