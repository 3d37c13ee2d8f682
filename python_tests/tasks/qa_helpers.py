"""Tokenizers and texts for the tests of question answering."""

import string
import zlib

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.task import QATask

WORDS = ["the", "tower", "was", "built", "in", "paris", "by", "who", "when", "1889", "un", "do"]
# Everything that has broken offsets somewhere: marks, joiners, right to left, no character at all,
# characters of two UTF-16 units, half of one, case that changes length, ligatures, Hangul, Thai.
HARD = "e\u0301 \u0301 \u200d \u202e \0 \t\n \U0001f600\U0001f468\u200d\U0001f469 \ud83d "
HARD += "İß ﬁ 각 ไม่ שָׁלוֹם 中文 \u3000\x1c"


def wordpiece(template: bool = True, types: bool = True) -> PreTrainedTokenizerFast:
    """Uncased, as BERT's: a few words, and every ASCII letter inside and at the start of a word.

    Args:
        template: it joins two texts itself.
        types: the model has token types.
    """
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *string.punctuation]
    pieces += [f"##{letter}" for letter in letters]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if template:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * types
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_input_names=names,
    )


def byte_level(trim: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, as RoBERTa without merges: several pieces share a character.

    Args:
        trim: offsets leave out the space before a word.
    """
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def texts(most: int = 40):
    """Text that is not empty: ordinary words, hard characters, anything."""
    part = st.one_of(
        st.sampled_from([*WORDS, " ", " ", ".", "  "]),
        st.sampled_from(HARD),
        st.characters(),
    )
    parts = st.lists(part, min_size=1, max_size=most)
    return parts.map("".join).filter(str.strip)


def random_outputs(features, seed: int = 0, step: float = 0.0) -> list[np.ndarray]:
    """[n, 2] float32 for each feature, a function of what is read there.

    Args:
        step: what they are multiples of, so that some are equal.
    """
    found = []
    for feature in features:
        draw = np.random.default_rng([seed, zlib.crc32(feature.input_ids.tobytes())])
        scores = draw.standard_normal((len(feature.input_ids), 2)).astype(np.float32)
        found.append(np.round(scores / step) * np.float32(step) if step else scores)
    return found


def gold_outputs(features) -> list[np.ndarray]:
    """What a perfect model says."""
    found = []
    for feature in features:
        scores = np.zeros((len(feature.input_ids), 2), np.float32)
        scores[feature.labels[0], 0] = scores[feature.labels[1], 1] = 9
        found.append(scores)
    return found


def example(context: str, answer: str | None = None, question: str = "who", **fields) -> QAExample:
    """An example; the answer is where it occurs first."""
    answers = ((answer, context.index(answer)),) if answer else ()
    fields = {"golds": tuple(text for text, _ in answers), **fields}
    return QAExample(fields.pop("id", "q"), question, context, answers, **fields)


class FakePredictor:
    """Stands for a model with random scores, or with given ones."""

    def __init__(self, name="squad", tokenizer=None, outputs=random_outputs, facts=None, **options):
        options = {"length": 32, "stride": 8, **options}
        self.task = QATask(name, QAOptions(**options), facts)
        self.tokenizer = tokenizer or wordpiece()
        self.outputs = outputs

    def __call__(self, examples):
        features = self.task.features(examples, self.tokenizer)
        return self.task.decode(examples, features, self.outputs(features))
