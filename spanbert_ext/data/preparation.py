"""Text files to a corpus directory: learn or load a tokenizer, write pieces, describe the result.

The output depends on the text, its order and the settings alone, byte for byte: not on paths, time,
threads or an earlier attempt that was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.data.corpus import (
    FORMAT_VERSION,
    SIDECAR,
    TOKENIZER,
    TOKENS,
    Corpus,
    vocabulary_hash,
)
from spanbert_ext.data.readers import Portion, Reader
from spanbert_ext.data.sources import Source, find_sources
from spanbert_ext.data.storage import digest_bytes, digest_file, staged_directory
from spanbert_ext.data.token_files import TokenWriter
from spanbert_ext.data.vocabulary import VocabularyInfo
from spanbert_ext.errors import ConfigError, DataError, StorageError

logger = logging.getLogger("spanbert_ext")

REJECTS = "rejects.jsonl"
# Characters given to the tokenizers library in one call; it shares them out to its threads.
_BATCH = 1 << 21
# Learning a vocabulary reads the text twice before it is encoded: for characters, then for words.
_LEARNING_PASSES = 2

Progress = Callable[[int, int], None]


def prepare(config: PrepareConfig, progress: Progress | None = None) -> Corpus:
    """Write the corpus that `config` describes, or open it where it is there already.

    Args:
        config: what to read and write.
        progress: called now and then with (bytes done, bytes in all), over all passes.

    Raises:
        ConfigError: impossible settings, or an output that holds something else.
        DataError: faulty or empty input, or an unusable tokenizer. Nothing is left behind.
        StorageError: the output cannot be written. Nothing is left behind.
    """
    config.validate()
    output = Path(config.output)
    sources = find_sources(config.inputs, output)
    origin = _origin(config, sources)
    if _is_there(output, origin):
        logger.info("%s: this corpus is there already", output)
        return Corpus.open(output)
    try:
        with staged_directory(output) as staging:
            _write(config, sources, origin, staging, _Meter(config, sources, progress))
    except OSError as error:
        raise StorageError(
            f"{error.filename or output}: cannot be written: {error.strerror or error}; nothing "
            "was left behind"
        ) from error
    return Corpus.open(output)


def _origin(config: PrepareConfig, sources: list[Source]) -> dict:
    """What decides the output: settings and identity of the inputs, without paths."""
    settings = dataclasses.asdict(config)
    del settings["inputs"], settings["output"]
    if config.tokenizer is not None:
        from spanbert_ext.data.tokenizer import load_tokenizer

        _, files = load_tokenizer(Path(config.tokenizer), config.lowercase)
        digests = sorted((name, digest_bytes(data)) for name, data in files.items())
        settings["tokenizer"] = digest_bytes(json.dumps(digests).encode("ascii"))
    return {"settings": settings, "inputs": [source.identity() for source in sources]}


def _is_there(output: Path, origin: dict) -> bool:
    """Whether the output is this very corpus; ConfigError where it is something else."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise ConfigError(f"output: {output} is a file; name a directory to create")
    if not (output / SIDECAR).is_file():
        if any(output.iterdir()):
            raise ConfigError(
                f"output: {output} is not empty and holds no corpus; choose another directory"
            )
        return False
    found = Corpus.open(output).sidecar
    there, asked = found["settings"], origin["settings"]
    differences = [
        f"{name}: {there.get(name)!r} there, {value!r} asked"
        for name, value in asked.items()
        if there.get(name) != value
    ]
    if found["inputs"] != origin["inputs"]:
        names = [entry["name"] for entry in origin["inputs"] if entry not in found["inputs"]]
        names += [entry["name"] for entry in found["inputs"] if entry not in origin["inputs"]]
        differences.append(f"inputs: {', '.join(dict.fromkeys(names)) or 'their order'} differ")
    if differences:
        raise ConfigError(
            f"output: {output} holds a corpus made otherwise ({'; '.join(differences)}); choose "
            "another directory or remove it"
        )
    return True


class _Meter:
    """Adds up the bytes of all passes for the caller's progress display."""

    def __init__(self, config: PrepareConfig, sources: list[Source], progress: Progress | None):
        passes = 1 + (_LEARNING_PASSES if config.tokenizer is None else 0)
        self.pass_bytes = sum(source.size for source in sources)
        self.total = passes * self.pass_bytes
        self.done = 0
        self._finished_passes = 0
        self._progress = progress or (lambda done, total: None)

    def add(self, count: int) -> None:
        self.done += count
        self._progress(self.done, self.total)

    def finish_pass(self) -> None:
        self._finished_passes += 1
        self.done = 0
        self.add(self._finished_passes * self.pass_bytes)


def _write(
    config: PrepareConfig, sources: list[Source], origin: dict, target: Path, meter: _Meter
) -> None:
    from spanbert_ext.data.tokenizer import load_tokenizer, train_wordpiece

    def texts() -> Iterator[str]:
        yield from (p.text for p in Reader(config, progress=meter.add).portions(sources))
        meter.finish_pass()

    if config.tokenizer is None:
        tokenizer, files = train_wordpiece(
            texts, config.vocab_size, config.lowercase, config.min_frequency
        )
    else:
        tokenizer, files = load_tokenizer(Path(config.tokenizer), config.lowercase)
    (target / TOKENIZER).mkdir()
    for name, data in files.items():
        (target / TOKENIZER / name).write_bytes(data)
    info = VocabularyInfo.from_tokenizer(target / TOKENIZER)
    (target / TOKENS).mkdir()
    # Text that happens to spell "[MASK]" must stay text.
    tokenizer.encode_special_tokens = True
    writer, counts = _encode(config, sources, tokenizer, info, target, meter)
    sidecar = {
        "format_version": FORMAT_VERSION,
        **origin,
        "counts": counts,
        "vocab_size": info.vocab_size,
        "vocab_hash": vocabulary_hash(info.pieces),
        "shards": [dataclasses.asdict(shard) for shard in writer.shards],
        "files": _describe_files(target, writer),
    }
    sidecar["fingerprint"] = digest_bytes(
        json.dumps([sidecar["vocab_hash"], sidecar["shards"]], sort_keys=True).encode("ascii")
    )
    (target / SIDECAR).write_text(
        json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _encode(
    config, sources, tokenizer, info, target: Path, meter: _Meter
) -> tuple[TokenWriter, dict]:
    """Write token files and rejects.jsonl; returns the finished writer and the counts."""
    writer = TokenWriter(target / TOKENS, info.vocab_size, TOKENIZER, config.shard_tokens)
    unknown = 0
    with open(target / REJECTS, "w", encoding="utf-8") as rejects, contextlib.closing(writer):
        reader = Reader(
            config,
            log=lambda entry: rejects.write(json.dumps(entry, sort_keys=True) + "\n"),
            progress=meter.add,
        )
        for batch in _batches(reader.portions(sources)):
            encodings = tokenizer.encode_batch_fast(
                [p.text for p in batch], add_special_tokens=False
            )
            for portion, encoding in zip(batch, encodings, strict=True):
                ids = np.asarray(encoding.ids, dtype=np.int64)
                if info.unk_id is not None:
                    unknown += int(np.count_nonzero(ids == info.unk_id))
                writer.append(ids, portion.ends_document)
        writer.finish()
    if not reader.rejected:
        (target / REJECTS).unlink()
    meter.finish_pass()
    documents = sum(shard.documents for shard in writer.shards)
    if documents == 0:
        names = ", ".join(config.inputs[:3]) + (" ..." if len(config.inputs) > 3 else "")
        raise DataError(f"{names}: no text in {len(sources)} file(s); check inputs and text_field")
    counts = {
        "documents": documents,
        "tokens": sum(shard.tokens for shard in writer.shards),
        "unknown_pieces": unknown,
        "records": reader.records,
        "empty_documents": writer.empty_documents,
        "empty_files": reader.empty_files,
        "rejected": dict(sorted(reader.rejected.items())),
    }
    return writer, counts


def _batches(portions: Iterator[Portion]) -> Iterator[list[Portion]]:
    batch, length = [], 0
    for portion in portions:
        batch.append(portion)
        length += len(portion.text) + 1
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _describe_files(target: Path, writer: TokenWriter) -> dict[str, dict]:
    known = {}
    for shard in writer.shards:
        known[f"{TOKENS}/{shard.name}"] = shard.digest
        known[f"{TOKENS}/{shard.name}.index"] = shard.index_digest
    files = sorted(p for p in target.rglob("*") if p.is_file())
    names = {path.relative_to(target).as_posix(): path for path in files}
    return {
        name: {"size": path.stat().st_size, "digest": known.get(name) or digest_file(path)}
        for name, path in names.items()
    }
