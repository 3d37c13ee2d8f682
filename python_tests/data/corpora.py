"""Text and tokenizers that the tests make themselves."""

import gzip
import pydoc_data.topics
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from spanbert_ext.data import Corpus, PrepareConfig, prepare
from spanbert_ext.data.tokenizer import count_words, train_wordpiece

PROSE = "\n\n".join(list(pydoc_data.topics.topics.values())[:12])
ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def gzipped(content: bytes) -> bytes:
    """Without the time, by which a test's parameters would differ from process to process."""
    return gzip.compress(content, mtime=0)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def small_corpus(folder: Path, text: str = PROSE, **settings) -> Corpus:
    source = write(folder / "in" / "text.txt", text)
    settings = {"vocab_size": 400, **settings}
    return prepare(PrepareConfig(inputs=[str(source)], output=str(folder / "out"), **settings))


def byte_level_bpe(text: str = PROSE, size: int = 500) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=ROBERTA_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def unigram(text: str = PROSE, size: int = 300) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=ROBERTA_SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def wordpiece(vocab_size: int, lowercase: bool) -> Tokenizer:
    """A WordPiece tokenizer learned from PROSE."""
    files = train_wordpiece(count_words([PROSE], lowercase), vocab_size, lowercase, 2)
    return Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
