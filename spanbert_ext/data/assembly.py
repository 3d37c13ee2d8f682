"""From finished units to the corpus directory: token files, rejects and the sidecar."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from spanbert_ext.data.corpus import (
    FORMAT_VERSION,
    SIDECAR,
    TOKENIZER,
    TOKENS,
    vocabulary_hash,
)
from spanbert_ext.data.job import Job, unit_part
from spanbert_ext.data.token_files import INDEX_DTYPE, TokenWriter
from spanbert_ext.errors import DataError
from spanbert_ext.files import digest_bytes, digest_file

REJECTS = "rejects.jsonl"


def check_rejects(results: Sequence[Mapping], limit: float) -> None:
    """Raises DataError where a larger share than `limit` of the records of all units is faulty."""
    rejected = _sum(result["rejected"] for result in results)
    total, records = rejected.total(), sum(result["records"] for result in results)
    if total > limit * records:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(rejected.items()))
        first = next(result["first_reject"] for result in results if result["first_reject"])
        raise DataError(
            f"{total} of {records} records are faulty ({kinds}), more than {100 * limit:g} % "
            f"(--reject_limit {limit:g}); the first is {first}"
        )


def assemble(job: Job, results: Sequence[Mapping], target: Path) -> None:
    """Write the corpus of a job whose units are all encoded.

    Args:
        results: of `encode`, in the order of the units.
        target: a directory to create.

    Raises:
        DataError: there is no text at all.
    """
    if target.exists():
        shutil.rmtree(target)  # an attempt that was killed here
    counts = _counts(job, results)
    (target / TOKENIZER).mkdir(parents=True)
    for name, content in job.tokenizer_files().items():
        (target / TOKENIZER / name).write_bytes(content)
    (target / TOKENS).mkdir()
    writer = _write_tokens(job, target)
    counts["tokens"] = sum(shard.tokens for shard in writer.shards)
    if counts["rejected"]:
        _write_rejects(job, target)
    sidecar = {
        "format_version": FORMAT_VERSION,
        **job.origin,
        "counts": counts,
        "vocab_size": job.vocabulary.vocab_size,
        "vocab_hash": vocabulary_hash(job.vocabulary.pieces),
        "shards": [dataclasses.asdict(shard) for shard in writer.shards],
        "files": _describe_files(target, writer),
    }
    sidecar["fingerprint"] = digest_bytes(
        json.dumps([sidecar["vocab_hash"], sidecar["shards"]], sort_keys=True).encode("ascii")
    )
    if job.config.annotation_kinds:
        sidecar["annotations"] = _describe_annotations(results, writer, sidecar["files"])
    (target / SIDECAR).write_text(
        json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _counts(job: Job, results: Sequence[Mapping]) -> dict:
    documents = sum(result["documents"] for result in results)
    if documents == 0:
        names = ", ".join(job.config.inputs[:3]) + (" ..." if len(job.config.inputs) > 3 else "")
        raise DataError(
            f"{names}: no text in {len(job.sources)} file(s); check inputs and text_field"
        )
    seen = set().union(*(result["seen"] for result in results))
    return {
        "documents": documents,
        "unknown_pieces": sum(result["unknown_pieces"] for result in results),
        "records": sum(result["records"] for result in results),
        "empty_documents": sum(result["empty_documents"] for result in results),
        "empty_files": len(job.sources) - len(seen),
        "rejected": dict(sorted(_sum(result["rejected"] for result in results).items())),
    }


def _sum(counters: Iterable[Mapping[str, int]]) -> collections.Counter[str]:
    total = collections.Counter()
    for counter in counters:
        total.update(counter)
    return total


def _write_tokens(job: Job, target: Path) -> TokenWriter:
    config = job.config
    kinds = config.annotation_kinds
    size = job.vocabulary.vocab_size
    writer = TokenWriter(target / TOKENS, size, TOKENIZER, config.shard_tokens, kinds)
    with contextlib.closing(writer):
        for number in range(len(job.units)):
            part = unit_part("encode", number)
            ends = np.fromfile(job.path(part, "ends"), INDEX_DTYPE)
            with contextlib.ExitStack() as stack:
                tokens, *marks = (
                    stack.enter_context(open(job.path(part, name), "rb"))
                    for name in ("tokens", *kinds)
                )
                writer.extend(tokens, ends, dict(zip(kinds, marks, strict=True)))
        writer.finish()
    return writer


def _write_rejects(job: Job, target: Path) -> None:
    with open(target / REJECTS, "wb") as rejects:
        for number in range(len(job.units)):
            with open(job.path(unit_part("encode", number), "rejects"), "rb") as part:
                shutil.copyfileobj(part, rejects)


def _describe_files(target: Path, writer: TokenWriter) -> dict[str, dict]:
    known = {}
    for shard in writer.shards:
        known[f"{TOKENS}/{shard.name}"] = shard.digest
        known[f"{TOKENS}/{shard.name}.index"] = shard.index_digest
    for digests in writer.annotations.values():
        known |= {f"{TOKENS}/{name}": digest for name, digest in digests.items()}
    files = sorted(p for p in target.rglob("*") if p.is_file())
    names = {path.relative_to(target).as_posix(): path for path in files}
    return {
        name: {"size": path.stat().st_size, "digest": known.get(name) or digest_file(path)}
        for name, path in names.items()
    }


def _describe_annotations(
    results: Sequence[Mapping], writer: TokenWriter, files: Mapping[str, Mapping]
) -> dict[str, dict]:
    """kind -> number of spans, size and digest of each file, and their common fingerprint."""
    spans = _sum(result["spans"] for result in results)
    return {
        kind: {
            "spans": spans[kind],
            "files": {name: files[f"{TOKENS}/{name}"] for name in digests},
            "fingerprint": digest_bytes("".join(digests.values()).encode("ascii")),
        }
        for kind, digests in writer.annotations.items()
    }
