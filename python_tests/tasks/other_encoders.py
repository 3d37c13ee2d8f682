"""Tiny random encoders of other families, each with a tokenizer that joins pairs as theirs does."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_tasks import BAD, GOOD, NAMES, PLAIN, toy_tokenizer
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

# Special tokens of RoBERTa's family, in the order of their ids there.
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_CONFIGS = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": XLMRobertaConfig,
    "electra": ElectraConfig,
    "distilbert": DistilBertConfig,
    "mpnet": MPNetConfig,
    "deberta-v2": DebertaV2Config,
    "albert": AlbertConfig,
    "modernbert": ModernBertConfig,
    "longformer": LongformerConfig,
}
KINDS = [kind for kind in _CONFIGS if kind != "longformer"]
_PAIRS_OF_ROBERTA = ("roberta", "xlm-roberta", "mpnet", "longformer")


def roberta_tokenizer(words=()):
    """Whole words behind a blank and bytes; pairs are <s> a </s></s> b </s>, without types."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*_ROBERTA, *alphabet])}
    merges = []
    for word in [*PLAIN, *GOOD, *BAD, *NAMES, *words]:
        whole = "Ġ"
        for letter in word:
            merges.append((whole, letter))
            whole += letter
            vocab.setdefault(whole, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    names = ("bos", "pad", "eos", "unk", "mask")
    named = {f"{name}_token": token for name, token in zip(names, _ROBERTA, strict=True)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        **named,
    )


def tokenizer_of(kind, words=()):
    """The tokenizer of a family."""
    if kind in _PAIRS_OF_ROBERTA:
        return roberta_tokenizer(words)
    tokenizer = toy_tokenizer(words)
    if kind in ("distilbert", "modernbert"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def config_of(kind, tokenizer, **changes):
    """A small configuration."""
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common |= {"intermediate_size": 48, "max_position_embeddings": 66, "initializer_range": 0.2}
    extra = {}
    if kind in _PAIRS_OF_ROBERTA:
        extra = {"type_vocab_size": 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if kind in ("electra", "albert"):
        extra = {"embedding_size": 16, "type_vocab_size": 2}
    if kind == "deberta-v2":
        extra = {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    if kind == "modernbert":
        extra = {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
        extra |= {"eos_token_id": 3, "reference_compile": False}
    if kind == "longformer":
        extra |= {"attention_window": 8}
    if kind == "distilbert":
        common = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
        common |= {"max_position_embeddings": 64, "initializer_range": 0.2}
    return _CONFIGS[kind](vocab_size=len(tokenizer), **common, **extra, **changes)


def encoder_folder(kind, folder, words=(), builder=AutoModel, **changes):
    """A directory with a random model of a family, the encoder alone, and its tokenizer.

    Args:
        builder: an `AutoModel` class of another head.
        changes: fields of the configuration.
    """
    tokenizer = tokenizer_of(kind, words)
    torch.manual_seed(0)
    model = builder.from_config(config_of(kind, tokenizer, **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
