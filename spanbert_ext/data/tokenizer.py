"""Tokenizers: learn a WordPiece vocabulary, load a given one, refuse one that would lose text.

A tokenizer is handled as the files of its directory (name -> bytes) and the `tokenizers.Tokenizer`
they make.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.text.vocabulary import VocabularyInfo, read_json, read_spec, read_vocab_lines

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PREFIX = "##"
# As in the published BERT vocabularies: rarer characters become [UNK].
_MAX_ALPHABET = 1000
_MAX_LENGTH = 512
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()
# Different texts between spaces that are counted before they are taken apart.
_COUNTED = 1 << 20
# Occurrences of a word handed to the trainer at a time.
_REPEATED = 4096
# About 1.5 GB of English, a minute or two of the trainer.
_MOST_OCCURRENCES = 1 << 28
# The trainer takes 0.6 kB for each.
_MOST_WORDS = 1 << 20
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
# A vocabulary counts as cased when at least this share of its pieces holds an upper-case letter.
_CASED_SHARE = 0.01


def count_words(texts: Iterable[str], lowercase: bool) -> collections.Counter[str]:
    """How often each word occurs, in the sense of BERT: text between spaces and punctuation marks.

    Args:
        texts: any portions of text cut at white space.
        lowercase: lower-case and strip accents.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    raw, words = collections.Counter(), collections.Counter()

    def add_words() -> None:
        for chunk, count in raw.items():
            for word, _ in _PRE_TOKENIZER.pre_tokenize_str(normalizer.normalize_str(chunk)):
                words[word] += count
        raw.clear()

    # The library is called once for what stands between spaces, not once for each occurrence.
    for text in texts:
        raw.update(text.split(" "))
        if len(raw) >= _COUNTED:
            add_words()
    add_words()
    return words


def train_wordpiece(
    words: Mapping[str, int], vocab_size: int, lowercase: bool, min_frequency: int
) -> dict[str, bytes]:
    """Learn a WordPiece vocabulary; returns the files of its tokenizer directory.

    The same words always give the same vocabulary. The trainer of `tokenizers` alone does not: it
    numbers the `##` forms of characters in the order of a hash map, and breaks ties between pairs
    by number. So the whole alphabet is counted first and handed over in a fixed order.

    The trainer's memory grows with the number of different words, so beyond 2^20 the rarest are
    left out; its time grows with the occurrences, so beyond 2^28 all numbers, and `min_frequency`,
    are divided by what brings them below.

    Args:
        words: number of occurrences, as `count_words` gives it.
        vocab_size: largest size.
        lowercase: lower-case and strip accents.
        min_frequency: how often a pair must occur to be joined.
    """
    alphabet = _alphabet(words, (vocab_size - len(SPECIAL_TOKENS)) // 3)
    if not alphabet:
        raise DataError("the input holds no visible text to learn a vocabulary from")
    continuing = [
        _PREFIX + c for c in alphabet if len(_PRE_TOKENIZER.pre_tokenize_str("a" + c + "a")) == 1
    ]
    if len(words) > _MOST_WORDS:
        ranked = sorted(words, key=lambda word: (-words[word], word))
        words = {word: words[word] for word in ranked[:_MOST_WORDS]}
    scale = max(1, -(-sum(words.values()) // _MOST_OCCURRENCES))
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=-(-min_frequency // scale),
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    learner.train_from_iterator(_repeated(words, scale), trainer)
    vocab = learner.get_vocab()
    return _wordpiece(sorted(vocab, key=vocab.get), lowercase)[1]


def _repeated(words: Mapping[str, int], scale: int) -> Iterator[str]:
    """Every word as often as it occurs, divided by `scale`: the trainer takes text, not numbers."""
    for word in sorted(words):
        count = words[word] // scale
        for done in range(0, count, _REPEATED):
            yield f"{word} " * min(_REPEATED, count - done)


def _alphabet(words: Mapping[str, int], limit: int) -> list[str]:
    """The most frequent characters, in code point order."""
    counts = collections.Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return sorted(ranked[: min(_MAX_ALPHABET, limit)])


def _wordpiece(pieces: list[str], lowercase: bool) -> tuple[Tokenizer, dict[str, bytes]]:
    """The BERT tokenizer over `pieces`, and the files that make transformers build the same."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab=ids,
            unk_token="[UNK]",
            continuing_subword_prefix=_PREFIX,
            max_input_chars_per_word=100,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = _PRE_TOKENIZER
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": _MAX_LENGTH,
        "do_lower_case": lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode("utf-8"),
        "tokenizer_config.json": _json(settings),
        "vocab.txt": "".join(piece + "\n" for piece in pieces).encode("utf-8"),
    }
    return tokenizer, files


def load_tokenizer(path: Path, lowercase: bool) -> tuple[Tokenizer, dict[str, bytes]]:
    """Load a tokenizer directory, a tokenizer.json or a vocab.txt, and check that it fits.

    Args:
        path: what `PrepareConfig.tokenizer` names.
        lowercase: decides for a bare vocab.txt; a tokenizer that says otherwise itself is refused.

    Raises:
        DataError: not a tokenizer, special tokens missing, duplicate pieces, a cased vocabulary
            behind lower-casing.
        ConfigError: `lowercase` contradicts the vocabulary.
    """
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        file = path / "vocab.txt"
    if file.suffix == ".json" and file.is_file():
        tokenizer, files = _load_json(file, folder if path.is_dir() else None)
        _check_case(tokenizer, str(path))
        if lowercase and not lowercases(tokenizer):
            raise ConfigError(
                f"lowercase: {path} keeps upper case by its own rule; leave the setting out or "
                "take an uncased tokenizer"
            )
    elif file.is_file():
        tokenizer, files = _load_vocab(file, path, lowercase)
    else:
        raise DataError(f"{path}: no tokenizer here: expected tokenizer.json or vocab.txt")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, files


def stated_lowercasing(folder: Path) -> bool | None:
    """Whether the tokenizer files of a directory lower-case text; None if they do not say."""
    if (folder / "tokenizer.json").is_file():
        with _LibraryFaults(folder):
            return lowercases(Tokenizer.from_file(str(folder / "tokenizer.json")))
    settings = folder / "tokenizer_config.json"
    return read_json(settings).get("do_lower_case") if settings.is_file() else None


def _load_json(file: Path, folder: Path | None) -> tuple[Tokenizer, dict[str, bytes]]:
    spec, names = read_spec(folder or file)
    info = VocabularyInfo.from_spec(spec, names, where=str(folder or file))
    with _LibraryFaults(file):
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    if folder is not None:
        files = {n: (folder / n).read_bytes() for n in _COPIED if (folder / n).is_file()}
    else:
        files = {"tokenizer.json": file.read_bytes()}
    if "tokenizer_config.json" not in files:
        roles = {"cls": info.cls_id, "sep": info.sep_id, "pad": info.pad_id, "mask": info.mask_id}
        roles |= {} if info.unk_id is None else {"unk": info.unk_id}
        settings = {f"{role}_token": info.pieces[i] for role, i in roles.items()}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": _MAX_LENGTH}
        files["tokenizer_config.json"] = _json(settings)
    elif spec["model"].get("type") == "WordPiece":
        files["tokenizer_config.json"] = _with_case(folder, lowercases(tokenizer))
    return tokenizer, files


def _with_case(folder: Path, lowercase: bool) -> bytes:
    """tokenizer_config.json with do_lower_case as tokenizer.json has it: transformers' BERT classes
    follow the setting, not tokenizer.json, and lower-case where it is missing.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    stated = settings.get("do_lower_case")
    if stated not in (None, lowercase):
        raise DataError(
            f"{path}: do_lower_case is {stated}, but tokenizer.json "
            f"{'lower-cases' if lowercase else 'keeps upper case'}; make them agree"
        )
    return (
        path.read_bytes() if stated is not None else _json({**settings, "do_lower_case": lowercase})
    )


class _LibraryFaults:
    """Turns the plain `Exception` that the tokenizers library raises into DataError."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if kind is Exception:
            raise DataError(
                f"{self.file}: the tokenizers library cannot read it: {error}"
            ) from None


def _load_vocab(file: Path, path: Path, lowercase: bool) -> tuple[Tokenizer, dict[str, bytes]]:
    pieces = read_vocab_lines(file)
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise DataError(
            f"{file}: {', '.join(missing)} missing; a BERT vocabulary has a line for each"
        )
    stated = stated_lowercasing(path) if path.is_dir() else None
    if stated is None:
        stated = lowercase
    elif lowercase and not stated:
        raise ConfigError(
            f"lowercase: {path / 'tokenizer_config.json'} says do_lower_case false; leave the "
            "setting out"
        )
    if stated and is_cased(pieces):
        raise ConfigError(
            f"{file}: a cased vocabulary would be lower-cased and lose its upper-case pieces; set "
            "lowercase (do_lower_case in tokenizer_config.json) to false"
        )
    if not stated and not is_cased(pieces) and any(p.isascii() and p.isalpha() for p in pieces):
        raise ConfigError(
            f"{file}: an uncased vocabulary would turn every capitalised word into [UNK]; set "
            "lowercase to true"
        )
    return _wordpiece(pieces, bool(stated))


def _check_case(tokenizer: Tokenizer, where: str) -> None:
    if lowercases(tokenizer) and is_cased(tokenizer.get_vocab(with_added_tokens=False)):
        raise DataError(
            f"{where}: a cased vocabulary behind a normalizer that lower-cases loses its "
            "upper-case pieces; set do_lower_case to false in tokenizer_config.json and "
            "`lowercase` to false in tokenizer.json"
        )


def lowercases(tokenizer: Tokenizer) -> bool:
    """Whether text loses its upper case before it is cut into pieces."""
    return tokenizer.normalizer is not None and "A" not in tokenizer.normalizer.normalize_str("A")


def is_cased(pieces: Iterable[str]) -> bool:
    """Whether a vocabulary tells upper from lower case."""
    ordinary = [piece for piece in pieces if not (piece.startswith("[") and piece.endswith("]"))]
    upper = sum(piece != piece.lower() for piece in ordinary)
    return upper >= max(1, _CASED_SHARE * len(ordinary))


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
