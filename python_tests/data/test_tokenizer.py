"""Learning a vocabulary, and refusing tokenizers that would lose text."""

import collections
import json

import numpy as np
import pytest
from corpora import PROSE, byte_level_bpe, small_corpus, unigram, write
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from spanbert_ext.data import PackedRows
from spanbert_ext.data.tokenizer import count_words, load_tokenizer, train_wordpiece
from spanbert_ext.errors import ConfigError, DataError

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = [
    "The naïve Café, isn't it?",
    "UNKNOWABLE 東京 x_y 3.14",
    "tabs\tand\nlines",
    "",
    "𝔘 ☃ [MASK]",
]


def vocab_file(folder, pieces, **settings):
    if settings:
        write(folder / "tokenizer_config.json", json.dumps(settings))
    return write(folder / "vocab.txt", "".join(piece + "\n" for piece in pieces))


@pytest.mark.parametrize("lowercase", [False, True])
def test_transformers_agrees_with_the_corpus(tmp_path, lowercase):
    text = PROSE + "\n\n" + "\n\n".join(s for s in SENTENCES if s)
    corpus = small_corpus(tmp_path, text, lowercase=lowercase, vocab_size=600)
    loaded = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    assert type(loaded).__name__.startswith("Bert")
    assert len(loaded) == corpus.vocab_size
    assert loaded.model_max_length == 512
    assert loaded.convert_ids_to_tokens(range(5)) == SPECIALS
    assert loaded.mask_token_id == corpus.vocabulary.mask_id == 4
    ours, _ = load_tokenizer(corpus.tokenizer_dir, lowercase=False)
    for sentence in SENTENCES[:4]:
        assert loaded(sentence)["input_ids"] == [
            2,
            *ours.encode(sentence, add_special_tokens=False).ids,
            3,
        ]
    first = PROSE.split("\n\n")[0].split("\n")
    ids = loaded(" ".join(line.strip() for line in first), add_special_tokens=False)["input_ids"]
    assert np.array_equal(corpus.documents[0], ids)
    assert ("the" in loaded.get_vocab()) and (lowercase or "The" in loaded.get_vocab())
    assert not (lowercase and any(p != p.lower() for p in corpus.vocabulary.pieces[5:]))


def test_the_same_text_gives_the_same_vocabulary():
    words = count_words(PROSE.split("\n\n"), False)
    first = train_wordpiece(words, 700, False, 2)
    for _ in range(3):
        assert train_wordpiece(dict(reversed(words.items())), 700, False, 2) == first


@pytest.mark.parametrize("lowercase", [False, True])
def test_words_are_those_of_the_tokenizer(lowercase):
    """Counting what stands between spaces first changes nothing, whatever the text holds."""
    texts = [PROSE, "a\tb\u00a0c\x1cd  Ünïcödé's 北京x\u0301 \u200bz... İI \ufeff", ""]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    expected = collections.Counter(
        word
        for text in texts
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(
            normalizer.normalize_str(text)
        )
    )
    assert count_words(texts, lowercase) == expected


def test_words_count_as_often_as_they_occur():
    """The vocabulary is the one that the library's own reading of the text gives."""
    words = count_words([PROSE], False)
    ours = train_wordpiece(words, 700, False, 2)["vocab.txt"].decode().split()
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=False)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = ours[
        : next(i for i, p in enumerate(ours) if len(p.removeprefix("##")) > 1 and i > 4)
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, min_frequency=2, special_tokens=alphabet, show_progress=False
    )
    learner.train_from_iterator([PROSE], trainer)
    vocab = learner.get_vocab()
    assert ours == sorted(vocab, key=vocab.get)


def test_numbers_of_a_large_text_are_divided(monkeypatch):
    """By 3, so that at most 20 occurrences are left; `q` becomes none."""
    words = {"abab": 31, "ab": 20, "cd": 5, "q": 2}
    expected = train_wordpiece({"abab": 10, "ab": 6, "cd": 1, "q": 0}, 64, False, 2)
    assert train_wordpiece(words, 64, False, 4) != expected
    monkeypatch.setattr("spanbert_ext.data.tokenizer._MOST_OCCURRENCES", 20)
    assert train_wordpiece(words, 64, False, 4) == expected


def test_the_rarest_of_many_words_are_left_out(monkeypatch):
    words = {"zab": 5, "cd": 2, "ce": 2, "cf": 9}
    assert "ce" in train_wordpiece(words, 64, False, 1)["vocab.txt"].decode().split()
    monkeypatch.setattr("spanbert_ext.data.tokenizer._MOST_WORDS", 3)
    pieces = train_wordpiece(words, 64, False, 1)["vocab.txt"].decode().split()
    assert {"zab", "cd", "cf"} <= set(pieces)
    assert "ce" not in pieces


def test_literal_vocabulary():
    files = train_wordpiece({"aba": 2, ".": 1, "ab": 1}, 32, False, 1)
    pieces = files["vocab.txt"].decode().split()
    assert pieces == [*SPECIALS, ".", "a", "b", "##a", "##b", "ab", "aba"]


def test_rare_characters_give_way_in_a_small_vocabulary():
    text = "".join(chr(0x4E00 + i) for i in range(500)) + "abc " * 50
    files = train_wordpiece(count_words([text], False), 100, False, 1)
    pieces = files["vocab.txt"].decode().split()
    assert {"a", "b", "c", "abc"} <= set(pieces)
    assert len(pieces) <= 100


def test_special_tokens_spelled_in_text_stay_text(tmp_path):
    corpus = small_corpus(tmp_path, "a [MASK] and [SEP] in text\n\n[CLS]", vocab_size=64)
    special = set(corpus.vocabulary.special_ids)
    assert not special & set(corpus.read(0, corpus.num_tokens).tolist())
    given = small_corpus(
        tmp_path / "again", "a [MASK] and [SEP]", tokenizer=str(corpus.tokenizer_dir)
    )
    assert not special & set(given.read(0, given.num_tokens).tolist())


@pytest.mark.parametrize("make", [byte_level_bpe, unigram])
def test_other_kinds_of_tokenizer(make, tmp_path):
    # The last bit of Unigram scores changes when they are saved, and then ties break otherwise.
    saved = make().to_str()
    tokenizer = Tokenizer.from_str(saved)
    path = write(tmp_path / "given" / "tokenizer.json", saved)
    text = " ".join(PROSE.split() * 4) + "\n\n" + "One more, “quoted”."
    corpus = small_corpus(tmp_path, text, tokenizer=str(path))
    assert corpus.num_documents == 2
    for document, part in enumerate(text.split("\n\n")):
        # The first document is longer than a portion: cutting it must not change its pieces.
        expected = tokenizer.encode(part, add_special_tokens=False).ids
        assert corpus.documents[document].tolist() == expected
    loaded = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    assert loaded.mask_token_id == corpus.vocabulary.mask_id
    assert loaded.pad_token_id == corpus.vocabulary.pad_id
    assert PackedRows(corpus, 64).batch([0]).tokens[0] == corpus.vocabulary.cls_id


def test_lines_of_long_files_are_joined_without_effect(tmp_path):
    tokenizer = byte_level_bpe()
    path = write(tmp_path / "given" / "tokenizer.json", tokenizer.to_str())
    lines = [line.strip() for line in PROSE.split("\n") if line.strip()] * 4
    joined = " ".join(lines)
    assert len(joined) > 1 << 17  # several portions
    text = "\ufeff" + "\n".join(lines)
    corpus = small_corpus(tmp_path, text, tokenizer=str(path), documents="file")
    assert corpus.documents[0].tolist() == tokenizer.encode(joined, add_special_tokens=False).ids


def test_long_documents_are_cut_without_effect(tmp_path):
    words = " ".join(PROSE.split()) * 4
    corpus = small_corpus(tmp_path, words, vocab_size=300)
    tokenizer, _ = load_tokenizer(corpus.tokenizer_dir, False)
    assert corpus.num_documents == 1
    assert corpus.documents[0].tolist() == tokenizer.encode(words, add_special_tokens=False).ids


def test_bare_vocabulary(tmp_path):
    path = vocab_file(tmp_path, [*SPECIALS, "The", "cat", "##s", "."])
    tokenizer, files = load_tokenizer(path, lowercase=False)
    assert tokenizer.encode("The cats.", add_special_tokens=False).tokens == [
        "The",
        "cat",
        "##s",
        ".",
    ]
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert files["vocab.txt"] == path.read_bytes()


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_ids_of_large_vocabularies_survive(tmp_path, size, dtype):
    path = vocab_file(tmp_path, [*SPECIALS, *(f"w{i}" for i in range(5, size))])
    corpus = small_corpus(tmp_path, f"w5 w{size - 1}", tokenizer=str(path), lowercase=True)
    assert corpus.vocab_size == size
    assert corpus.documents[0].tolist() == [5, size - 1]
    assert corpus.shards[0].tokens.dtype == dtype


def test_directory_states_its_case(tmp_path):
    vocab_file(tmp_path, [*SPECIALS, "the", "cat"], do_lower_case=True)
    tokenizer, _ = load_tokenizer(tmp_path, lowercase=False)
    assert tokenizer.encode("The CAT", add_special_tokens=False).tokens == ["the", "cat"]


@pytest.mark.parametrize(
    ("pieces", "settings", "lowercase", "error", "message"),
    [
        (
            [*SPECIALS, "The", "cat"],
            {},
            True,
            ConfigError,
            "cased vocabulary.*set lowercase .* to false",
        ),
        (
            [*SPECIALS, "the", "cat"],
            {},
            False,
            ConfigError,
            "uncased vocabulary.*set lowercase to true",
        ),
        (
            [*SPECIALS, "The"],
            {"do_lower_case": True},
            False,
            ConfigError,
            "set lowercase .* to false",
        ),
        ([*SPECIALS, "The"], {"do_lower_case": False}, True, ConfigError, "leave the setting out"),
        (
            [*SPECIALS, "The", "a", "The"],
            {},
            False,
            DataError,
            r"vocab.txt:8: 'The' stands in line 6",
        ),
        ([*SPECIALS, "The", "", "a"], {}, False, DataError, r"vocab.txt:7: blank line"),
        (["[PAD]", "[UNK]", "[CLS]", "A"], {}, False, DataError, r"\[SEP\], \[MASK\] missing"),
    ],
)
def test_unusable_vocabularies(tmp_path, pieces, settings, lowercase, error, message):
    vocab_file(tmp_path, pieces, **settings)
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path, lowercase)


def test_transformers_keeps_the_case_that_tokenizer_json_keeps(tmp_path):
    """Its BERT classes lower-case where do_lower_case is missing, whatever tokenizer.json says."""
    first = small_corpus(tmp_path, vocab_size=300)
    path = first.tokenizer_dir / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["do_lower_case"]
    path.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(first.tokenizer_dir).tokenize("The") == ["the"]
    second = small_corpus(tmp_path / "again", tokenizer=str(first.tokenizer_dir))
    assert AutoTokenizer.from_pretrained(second.tokenizer_dir).tokenize("The") == ["The"]
    path.write_text(json.dumps(settings | {"do_lower_case": True}))
    message = "do_lower_case is True, but tokenizer.json keeps upper case; make them agree"
    with pytest.raises(DataError, match=message):
        small_corpus(tmp_path / "no", tokenizer=str(first.tokenizer_dir))


def test_unusable_tokenizer_files(tmp_path):
    files = train_wordpiece({"The": 3, "Cat": 3, "Sat": 3}, 64, False, 1)
    spec = json.loads(files["tokenizer.json"])
    cases = [
        (
            "lower.json",
            "set do_lower_case to false",
            lambda s: s["normalizer"].update(lowercase=True),
        ),
        ("type.json", "tokenizers library cannot read", lambda s: s["model"].update(unk_token=3)),
        (
            "mask.json",
            "no mask token",
            lambda s: (s["model"]["vocab"].pop("[MASK]"), s["added_tokens"].pop()),
        ),
    ]
    for name, message, change in cases:
        changed = json.loads(json.dumps(spec))
        change(changed)
        path = write(tmp_path / name, json.dumps(changed))
        with pytest.raises(DataError, match=message):
            load_tokenizer(path, False)
    path = write(tmp_path / "good.json", files["tokenizer.json"])
    with pytest.raises(ConfigError, match="keeps upper case by its own rule"):
        load_tokenizer(path, True)
    with pytest.raises(DataError, match="expected tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path / "missing", False)
