"""Text files to a corpus directory: learn or load a tokenizer, write pieces, describe the result.

The output depends on the text, its order and the settings alone, byte for byte: not on paths, time,
the number of workers or earlier attempts that were killed. Those leave their finished parts in the
staging directory, and the same command goes on from there.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from spanbert_ext.data.annotators import load_annotator
from spanbert_ext.data.assembly import assemble, check_rejects
from spanbert_ext.data.config import HOW, PrepareConfig
from spanbert_ext.data.corpus import SIDECAR, Corpus
from spanbert_ext.data.job import TOKENIZER_PART, Job, finished_parts, unit_part
from spanbert_ext.data.pool import run_units
from spanbert_ext.data.sources import Source, find_sources
from spanbert_ext.data.storage import locked_staging, publish, staging_directory
from spanbert_ext.data.units import plan_units, unit_size
from spanbert_ext.device import usable_cores
from spanbert_ext.errors import ConfigError, Preempted, StorageError
from spanbert_ext.files import digest_bytes
from spanbert_ext.settings.stored import completed
from spanbert_ext.weights import hub

logger = logging.getLogger("spanbert_ext")

# Receives (what is being done, bytes done, bytes in all) of one pass over the input.
Progress = Callable[[str, int, int], None]
_DOING = {"count": "counting words", "encode": "encoding"}


def prepare(config: PrepareConfig, progress: Progress | None = None) -> Corpus:
    """Write the corpus that `config` describes, or open it where it is there already.

    Args:
        config: what to read and write.
        progress: called now and then.

    Raises:
        ConfigError: impossible settings, or an output that holds something else.
        DataError: faulty or empty input, an unusable tokenizer, or a corpus that `verify` finds
            damaged. Nothing is left behind.
        StorageError: the output cannot be written, or a worker was killed. What is finished stays
            in the staging directory for the next attempt.
        Preempted: the work was handed to Slurm.
    """
    config.validate()
    output = Path(config.output)
    if config.inputs:
        corpus = _prepared(config, output, progress or (lambda doing, done, total: None))
    else:
        corpus = Corpus.open(output)
    if config.verify:
        corpus.verify()
    return corpus


def _prepared(config: PrepareConfig, output: Path, progress: Progress) -> Corpus:
    sources = find_sources(config.inputs, output)
    if config.executor != "own":  # tasks may run in other directories
        sources = [dataclasses.replace(s, path=s.path.absolute()) for s in sources]
    origin = _origin(config, sources)
    if _is_there(output, origin):
        logger.info("%s: this corpus is there already", output)
        # A process killed right behind the rename leaves this.
        shutil.rmtree(staging_directory(output), ignore_errors=True)
        return Corpus.open(output)
    if config.annotation_kinds:
        load_annotator(config)
    staging = staging_directory(output)
    try:
        with locked_staging(output) as staging:
            job = Job.begin(staging, config, sources, plan_units(sources, config), origin)
            Preparation(job, progress).run(output)
    except (OSError, StorageError) as error:
        raise StorageError(f"{_reason(error, output)}; {_what_stays(staging)}") from error
    return Corpus.open(output)


def _what_stays(staging: Path) -> str:
    if not finished_parts(staging):
        return "nothing was written"
    return f"what is finished stays in {staging} and the same command goes on from there"


def _reason(error: OSError | StorageError, output: Path) -> str:
    if isinstance(error, StorageError):
        return str(error)
    return f"{error.filename or output}: cannot be written: {error.strerror or error}"


def _origin(config: PrepareConfig, sources: list[Source]) -> dict:
    """What decides the output: settings and identity of the inputs, without paths."""
    settings = dataclasses.asdict(config)
    for name in ("inputs", "output", *HOW):
        del settings[name]
    if config.annotate is None:
        for name in ("annotate", "annotator", "annotator_model"):
            del settings[name]
    if config.tokenizer is not None:
        digests = sorted((n, digest_bytes(data)) for n, data in _given_tokenizer(config).items())
        settings["tokenizer"] = digest_bytes(json.dumps(digests).encode("ascii"))
    with concurrent.futures.ThreadPoolExecutor(config.workers or usable_cores()) as threads:
        identities = list(threads.map(Source.identity, sources))
    return {"settings": settings, "inputs": identities}


def _given_tokenizer(config: PrepareConfig) -> dict[str, bytes]:
    from spanbert_ext.data.tokenizer import load_tokenizer

    given = config.tokenizer
    path = hub.tokenizer_folder(given) if hub.is_name(given) else Path(given)
    return load_tokenizer(path, config.lowercase)[1]


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
    asked = origin["settings"]
    there = completed(found["settings"], PrepareConfig, output / SIDECAR, wanted=asked.keys())
    differences = [
        f"{name}: {there.get(name)!r} there, {asked.get(name)!r} asked"
        for name in dict.fromkeys([*asked, *there])
        if there.get(name) != asked.get(name)
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


class Preparation:
    """The steps of a job, in order: count words, learn the vocabulary, encode, put together."""

    def __init__(self, job: Job, progress: Progress):
        self.job = job
        self._progress = progress

    def run(self, output: Path) -> None:
        """Do what is not finished yet and publish the corpus as `output`."""
        if self.job.config.executor == "slurm":
            from spanbert_ext.data.datatrove_executor import submit

            raise Preempted(submit(self.job, output))
        self.make_tokenizer()
        results = self.run_stage("encode")
        corpus = self.job.directory / "corpus"
        assemble(self.job, results, corpus)
        publish(corpus, output)
        shutil.rmtree(self.job.directory)

    def run_stage(self, stage: str) -> list[dict]:
        """Finish the stage's part of every unit; returns their results.

        Raises:
            DataError: a faulty record, or too many of them.
        """
        results = self._finished(stage)
        waiting = [number for number in range(len(self.job.units)) if number not in results]
        if results:
            logger.info(
                "%s: %d of %d units are there already",
                _DOING[stage],
                len(results),
                len(self.job.units),
            )
        meter = _Meter(self.job, _DOING[stage], results, self._progress)
        if waiting:
            for number, result in self._execute(stage, waiting, meter):
                results[number] = result
                meter.finish(number)
        in_order = [results[number] for number in sorted(results)]
        check_rejects(in_order, self.job.config.reject_limit)
        return in_order

    def _finished(self, stage: str) -> dict[int, dict]:
        """Unit -> result, of the units whose part is finished."""
        parts = (unit_part(stage, number) for number in range(len(self.job.units)))
        with concurrent.futures.ThreadPoolExecutor(usable_cores()) as threads:
            found = enumerate(threads.map(self.job.finished, parts))
            return {number: result for number, result in found if result is not None}

    def _execute(self, stage: str, waiting: list[int], meter: _Meter) -> Iterator[tuple[int, dict]]:
        config = self.job.config
        if config.executor == "own":
            workers = min(config.workers or usable_cores(), len(waiting))
            return run_units(self.job, stage, waiting, workers, meter.read)
        from spanbert_ext.data.datatrove_executor import run_tasks

        return run_tasks(self.job, stage, waiting)

    def make_tokenizer(self) -> None:
        """Take the given tokenizer, or count words and learn a vocabulary from them."""
        job = self.job
        if job.finished(TOKENIZER_PART) is not None:
            return
        if job.config.tokenizer is not None:
            job.write_tokenizer(_given_tokenizer(job.config))
            return
        self.run_stage("count")
        words: collections.Counter[str] = collections.Counter()
        for number in range(len(job.units)):
            path = job.path(unit_part("count", number), "words")
            words.update(json.loads(path.read_bytes()))
        logger.info("learning a vocabulary from %s different words", f"{len(words):,}")
        from spanbert_ext.data.tokenizer import train_wordpiece

        config = job.config
        job.write_tokenizer(
            train_wordpiece(words, config.vocab_size, config.lowercase, config.min_frequency)
        )


class _Meter:
    """Adds up the bytes of all workers for the caller's progress display."""

    def __init__(self, job: Job, doing: str, finished: dict[int, dict], progress: Progress):
        self._left = {n: unit_size(unit) for n, unit in enumerate(job.units)}
        self._total = sum(self._left.values())
        self._doing, self._progress = doing, progress
        self._done = sum(self._left[number] for number in finished)
        self._progress(doing, self._done, self._total)

    def read(self, number: int, count: int) -> None:
        """So many bytes of a unit were read since the last call."""
        count = min(count, self._left[number])
        self._left[number] -= count
        self._done += count
        self._progress(self._doing, self._done, self._total)

    def finish(self, number: int) -> None:
        """A unit is finished."""
        self.read(number, self._left[number])
