"""A tiny BERT and tasks that it can learn in a few dozen steps."""

import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
)

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "fine", "lovely"], ["bad", "awful", "dull"]
PLAIN = ["the", "a", "film", "story", "actor", "was", "is", "very", "ending", "with", "and"]
NAMES = ["Anna", "Boris", "Clara", "David", "Paris", "Rome"]


def toy_tokenizer(words=()):
    """WordPiece over whole words and letters, cased."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    letters += [letter.upper() for letter in letters] + [str(d) for d in range(10)]
    pieces = [*SPECIALS, *GOOD, *BAD, *PLAIN, *NAMES, *words, *",.?!'\"-()", *letters]
    pieces = list(dict.fromkeys([*pieces, *("##" + letter for letter in letters)]))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=False)


def toy_model(folder, words=(), dropout=0.1):
    """A directory of a BERT with random weights and 64 positions."""
    tokenizer = toy_tokenizer(words)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_roberta(folder, **changes):
    """The same of a RoBERTa; `changes` are fields of its configuration."""
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=0,
        type_vocab_size=1,
        **changes,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentiment_file(path, lines, seed=0):
    """SST-2's layout; the label says whether a good or a bad word is in it."""
    draw = random.Random(seed)
    rows = ["sentence\tlabel"]
    for _ in range(lines):
        label = draw.randint(0, 1)
        words = draw.choices(PLAIN, k=draw.randint(2, 12))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label else BAD))
        rows.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(rows) + "\n")
    return path


def sentiment_words(model, folder, output="run", **changes):
    """The words of a `spanbert finetune sst-2` of 60 small steps, with files made in `folder`."""
    settings = {
        "model": model,
        "train": sentiment_file(folder / "train.tsv", 160),
        "dev": sentiment_file(folder / "dev.tsv", 60, seed=1),
        "output": output,
        "epochs": 3,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "batch.examples": 8,
        "optimizer.peak_lr": 1e-2,
        "optimizer.warmup": 0.3,
        "evals_per_epoch": 3,
        "checkpoint.every": 4,
    }
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["finetune", "sst-2", *(f"--{name}={value}" for name, value in settings.items())]
