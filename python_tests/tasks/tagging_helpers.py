"""A tokenizer and stand-ins for the encoder that the tagging tests share."""

import functools
import string

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.schemes import label_names
from spanbert_ext.tasks.tagging.task import TaggingTask

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@functools.cache
def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Uncased WordPiece with a piece for every letter and digit: `ab1` is a ##b ##1."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIALS, *letters, *(f"##{x}" for x in letters), *string.punctuation]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def tagging_task(types=("LOC", "PER"), **options) -> TaggingTask:
    options = TaggingOptions(**options)
    facts = {"types": list(types), "labels": label_names(types, options.scheme)}
    return TaggingTask("ner", options, facts)


def outputs_for(features, labels, logits_of_row):
    """Logits of every feature: `logits_of_row(feature, row)` -> [labels]."""
    return [
        np.array(
            [logits_of_row(feature, row) for row in range(len(feature.rows))], dtype=np.float32
        ).reshape(len(feature.rows), len(labels))
        for feature in features
    ]


def gold_outputs(features, labels, strength=12.0):
    """Logits of a model that knows the gold tags where they are trained, and errs elsewhere."""

    def row(feature, number):
        label = feature.labels[number]
        wrong = 1 + number % (len(labels) - 1)
        return strength * np.eye(len(labels))[label if label >= 0 else wrong]

    return outputs_for(features, labels, row)


class StandIn:
    """Stands in for a model.

    Args:
        logits: (number of rows) -> [rows, labels], for each window in turn.
    """

    def __init__(self, task, logits):
        self.task, self.tokenizer, self.logits = task, letter_tokenizer(), logits

    def __call__(self, examples):
        features = self.task.features(examples, self.tokenizer)
        outputs = [np.float32(self.logits(len(feature.rows))) for feature in features]
        return self.task.decode(examples, features, outputs)


def random_model(task, seed=0) -> StandIn:
    """A model that answers by chance, but the same each time it is asked."""

    class Again(StandIn):
        def __call__(self, examples):
            rng = np.random.default_rng(seed)
            width = len(self.task.labels())
            self.logits = lambda rows: 3 * rng.normal(size=(rows, width))
            return super().__call__(examples)

    return Again(task, None)
