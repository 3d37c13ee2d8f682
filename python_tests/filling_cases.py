"""A small masked language model and its tokenizer."""

from model_cases import config, random_weights
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from spanbert_ext import SpanBertForPreTraining

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIALS, "a", "b", "c", "d", "##x", "##y", ".", "(", "é", "[unused1]"]


def tiny_tokenizer():
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def model_for(tokenizer, **changes):
    """Random weights; some ids more than the tokenizer has."""
    size = tokenizer.get_vocab_size() + 3
    changes = {"vocab_size": size, "max_position_embeddings": 48} | changes
    return random_weights(SpanBertForPreTraining(config(**changes)))
