"""A small WordPiece tokenizer and records for the tests of relation classification."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.tasks.relation.config import RelationOptions
from spanbert_ext.tasks.relation.task import RelationTask

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789()[]{}-.,'"
WORDS = ["in", "was", "born", "Ada", "Byron", "London", "she", "of", "the", "University"]


def tokenizer(unused=20, words=WORDS):
    """Cased WordPiece: every ASCII letter, some words, and [unused1] to [unusedN] in reverse."""
    pieces = [*SPECIALS, *(f"[unused{n}]" for n in range(unused, 0, -1)), *words, *LETTERS]
    pieces += ["##" + letter for letter in LETTERS]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def record(**changes):
    """Ada Byron (PERSON, subject) was born in London (CITY, object); None takes a field away."""
    fields = {
        "id": "a",
        "token": ["Ada", "Byron", "was", "born", "in", "London", "."],
        "subj_start": 0,
        "subj_end": 1,
        "obj_start": 5,
        "obj_end": 5,
        "subj_type": "PERSON",
        "obj_type": "CITY",
        "relation": "born_in",
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def task(facts=None, **options):
    return RelationTask("tacred", RelationOptions(**options), facts)


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path
