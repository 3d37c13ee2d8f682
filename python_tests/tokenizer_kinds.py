"""Small tokenizers of every kind that models come with, for tests of places in texts."""

import functools
import json
import re
import string

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# What the vocabularies are learned from; everything else is unknown or bytes to them.
TEXTS = [
    "Anna lives in Paris, and Boris lives in the old town of Rome.",
    "Was Anna in Paris? She was not in Rome (she cannot be in Rome).",
    'Ada Lovelace (born in London) wrote "notes" in 1843; isn\'t it 3.50 Euro?',
    "the cat sat on the mat. a few of the words in here: will be joined, others won't.",
    # Words of Chinese, Japanese and Thai one by one: no token reaches over them.
    "\u674e\u660e",
    "\u738b\u82b3",
    "\u53bb\u4e86",
    "\u4f4f\u5728",
    "\u5317\u4eac",
    "\u3002",
    "\u6771\u4eac",
    "\u306f",
    "\u65e5\u672c",
    "\u306e",
    "\u9996\u90fd",
    "\u3067\u3059",
    "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e",
    "\u0e40\u0e1b\u0e47\u0e19",
    "\u0e40\u0e21\u0e37\u0e2d\u0e07",
] * 4
_MARKED = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _wrapped(backend: Tokenizer, bert: bool) -> PreTrainedTokenizerFast:
    """With the names of its special tokens, which end a sequence as BERT's or RoBERTa's do."""
    if bert:
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        names |= {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    else:
        names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def wordpiece(strip_accents: bool = False) -> PreTrainedTokenizerFast:
    """BERT's, with every ASCII character and those of the texts."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=strip_accents, strip_accents=strip_accents
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=list(string.printable.strip()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _wrapped(backend, True)


def byte_level(
    prefix: bool = False, trim: bool = True, parted: bool = False
) -> PreTrainedTokenizerFast:
    """RoBERTa's.

    Args:
        prefix: a blank goes before the text.
        trim: offsets leave out the blank.
        parted: words are parted before they become bytes, and punctuation after it.
    """
    backend = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    around = [pre_tokenizers.Whitespace(), bytes_, pre_tokenizers.Punctuation()]
    backend.pre_tokenizer = pre_tokenizers.Sequence(around) if parted else bytes_
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=_MARKED, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim, prefix)
    return _wrapped(backend, False)


def unigram(
    prepend: str = "always", nfkc: bool = True, parted: bool = False
) -> PreTrainedTokenizerFast:
    """SentencePiece's, as XLM-R's.

    Args:
        prepend: where a blank goes before the text: always, first or never.
        nfkc: normalised, which changes lengths.
        parted: at white space before blanks are marked.
    """
    backend = Tokenizer(models.Unigram())
    if nfkc:
        backend.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    around = [pre_tokenizers.WhitespaceSplit(), metaspace]
    backend.pre_tokenizer = pre_tokenizers.Sequence(around) if parted else metaspace
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=_MARKED,
        unk_token="<unk>",
        initial_alphabet=list(string.printable.strip()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B </s>", ends
    )
    return _wrapped(backend, False)


def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, with bytes for characters that it does not know."""
    plain = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    prepared = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    plain.normalizer = prepared
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*_MARKED, *bytes_],
        initial_alphabet=[*string.ascii_letters, "\u2581"],
        limit_alphabet=90,
        show_progress=False,
    )
    # Merges that SentencePiece would not make reach over blanks: learn from words.
    words = [word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]", text) if word.isascii()]
    plain.train_from_iterator(words, trainer)
    spec = json.loads(plain.to_str())
    spec["model"]["byte_fallback"] = True
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < len(_MARKED)]
    backend = Tokenizer.from_str(json.dumps(spec))
    fallback = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(fallback)
    ends = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B </s>", ends
    )
    return _wrapped(backend, False)


KINDS = {
    "wordpiece": wordpiece,
    "wordpiece without accents": lambda: wordpiece(True),
    "byte-level": byte_level,
    "byte-level, whole offsets": lambda: byte_level(trim=False),
    "byte-level, prefix": lambda: byte_level(True),
    "byte-level, prefix, whole offsets": lambda: byte_level(True, False),
    "byte-level, parted": lambda: byte_level(True, True, True),
    "byte-level, parted, whole offsets": lambda: byte_level(True, False, True),
    "unigram": unigram,
    "unigram, first": lambda: unigram("first"),
    "unigram, never": lambda: unigram("never"),
    "unigram, parted": lambda: unigram(parted=True),
    "unigram, as written": lambda: unigram(nfkc=False),
    "byte fallback": byte_fallback,
}


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """One of `KINDS`; the same object every time."""
    return KINDS[kind]()
