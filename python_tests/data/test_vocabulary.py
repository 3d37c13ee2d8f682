"""Special ids and word starts of WordPiece, byte-level BPE and SentencePiece vocabularies."""

import json
import subprocess
import sys

import pytest
from corpora import byte_level_bpe, unigram, write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.data import VocabularyInfo
from spanbert_ext.errors import DataError
from spanbert_ext.text.vocabulary import byte_alphabet

BERT = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", ".", "##ly"]


def wordpiece(pieces=BERT):
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))


def test_wordpiece_literal():
    info = VocabularyInfo.from_tokenizer(wordpiece())
    assert (info.pad_id, info.unk_id, info.cls_id, info.sep_id, info.mask_id) == (0, 2, 3, 4, 5)
    assert info.special_ids == (0, 3, 4, 5)  # [UNK] and [unused1] are ordinary words
    assert info.word_starts.tolist() == [True] * 7 + [False, True, False]
    assert info.texts[6:] == ("un", "able", ".", "ly")
    assert not info.space_marked
    assert info.vocab_size == 10


def test_wordpiece_without_continuations_is_known_by_its_model():
    info = VocabularyInfo.from_tokenizer(
        wordpiece(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "▁a", "Ġb"])
    )
    assert info.word_starts.all()
    assert info.unk_id is None


def test_byte_level_bpe():
    tokenizer = byte_level_bpe()
    info = VocabularyInfo.from_tokenizer(tokenizer)
    ids = tokenizer.get_vocab()
    assert (info.cls_id, info.pad_id, info.sep_id, info.unk_id, info.mask_id) == (0, 1, 2, 3, 4)
    assert info.special_ids == (0, 1, 2, 4)
    for piece in ("Ġthe", "Ġ", "Ċ", "ĉ", "<unk>"):
        assert info.word_starts[ids[piece]] or piece not in ids, piece
    for piece in ("e", ".", "the"):
        assert not info.word_starts[ids[piece]], piece
    assert info.texts[ids["Ġthe"]] == "the"
    assert info.space_marked
    encoded = tokenizer.encode("the cats, “sat”", add_special_tokens=False)
    starts = [encoded.offsets[k][0] for k, i in enumerate(encoded.ids) if info.word_starts[i]]
    assert starts == [3, 9]  # the spaces; the first piece has none, the masker treats it as a start


def test_unigram():
    tokenizer = unigram()
    info = VocabularyInfo.from_tokenizer(tokenizer)
    assert (info.cls_id, info.pad_id, info.sep_id, info.unk_id, info.mask_id) == (0, 1, 2, 3, 4)
    for piece, i in tokenizer.get_vocab().items():
        expected = piece.startswith("▁") or piece in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        assert info.word_starts[i] == expected, piece


@pytest.mark.parametrize("make", [wordpiece, byte_level_bpe, unigram])
def test_every_way_in_gives_the_same(make, tmp_path):
    tokenizer = make()
    direct = VocabularyInfo.from_tokenizer(tokenizer)
    path = write(tmp_path / "tokenizer.json", tokenizer.to_str())
    names = {
        f"{role}_token": direct.pieces[getattr(direct, f"{role}_id")]
        for role in ("cls", "sep", "pad", "mask", "unk")
    }
    fast = PreTrainedTokenizerFast(tokenizer_file=str(path), **names)
    fast.save_pretrained(tmp_path / "saved")
    for other in (path, tmp_path, fast, tmp_path / "saved", str(tmp_path / "saved")):
        info = VocabularyInfo.from_tokenizer(other)
        assert info.pieces == direct.pieces
        assert info.special_ids == direct.special_ids
        assert (info.word_starts == direct.word_starts).all()
        assert (info.cls_id, info.sep_id, info.mask_id) == (
            direct.cls_id,
            direct.sep_id,
            direct.mask_id,
        )


def test_names_come_from_the_settings(tmp_path):
    pieces = ["a", "«open»", "«close»", "«gap»", "«fill»", "«?»", "[CLS]"]
    write(tmp_path / "tokenizer.json", wordpiece(pieces).to_str())
    settings = {
        "cls_token": "«open»",
        "sep_token": {"content": "«close»", "lstrip": False},
        "mask_token": "«gap»",
        "pad_token": "«fill»",
        "unk_token": "«?»",
    }
    write(tmp_path / "tokenizer_config.json", json.dumps(settings))
    info = VocabularyInfo.from_tokenizer(tmp_path)
    assert (info.cls_id, info.sep_id, info.mask_id, info.pad_id, info.unk_id) == (1, 2, 3, 4, 5)
    assert info.special_ids == (1, 2, 3, 4)


def test_ids_without_a_piece_are_never_text():
    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "a": 6}
    info = VocabularyInfo.from_tokenizer(Tokenizer(models.WordLevel(vocab, unk_token="a")))
    assert info.special_ids == (0, 1, 2, 3, 4, 5)
    assert info.vocab_size == 7


def test_missing_specials_are_named():
    with pytest.raises(DataError, match="no sep, mask token"):
        VocabularyInfo.from_tokenizer(wordpiece(["[PAD]", "[CLS]", "a"]))


def test_unmarked_word_starts_are_refused():
    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "a": 4}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="does not mark the beginning of words"):
        VocabularyInfo.from_tokenizer(tokenizer)


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="got int"):
        VocabularyInfo.from_tokenizer(3)
    with pytest.raises(DataError, match="expected tokenizer.json or vocab.txt"):
        VocabularyInfo.from_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a JSON file"):
        VocabularyInfo.from_tokenizer(write(tmp_path / "tokenizer.json", "{"))
    with pytest.raises(DataError, match="no `model` object"):
        VocabularyInfo.from_tokenizer(write(tmp_path / "tokenizer.json", "{}"))


def test_byte_alphabet_is_that_of_the_library():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_alphabet()[ord(" ")] == "Ġ"
    assert byte_alphabet()[ord("\n")] == "Ċ"


def test_analysis_needs_neither_torch_nor_tokenizers(tmp_path):
    path = write(tmp_path / "tokenizer.json", wordpiece().to_str())
    code = (
        "import sys; from spanbert_ext.data import VocabularyInfo, PrepareConfig; "
        f"VocabularyInfo.from_tokenizer({str(path)!r}); "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_public_names_are_not_hidden_by_modules():
    code = (
        "import importlib, pkgutil, spanbert_ext.data as data\n"
        "for module in pkgutil.iter_modules(data.__path__):\n"
        "    importlib.import_module(f'spanbert_ext.data.{module.name}')\n"
        "print(all(callable(getattr(data, name)) for name in data.__all__))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr
