"""Units as tasks of datatrove: on a Slurm or on a Ray cluster (extra `[prepare]`).

datatrove starts the tasks and marks those that are complete; reading, tokenizing and the layout on
disk are ours, so the corpus is the same byte for byte. All machines must see the output directory
and the inputs under the same paths. A Slurm chain runs without this command: words, vocabulary,
pieces, corpus, each waiting for the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from spanbert_ext import errors
from spanbert_ext.data.job import TOKENIZER_PART, Job, unit_part
from spanbert_ext.data.storage import locked_staging, write_whole
from spanbert_ext.errors import ConfigError, SpanBertError, StorageError

_ERROR = "error"
_THREADS = "TOKENIZERS_PARALLELISM"


class UnitTask:
    """A pipeline step that finishes the part of the unit whose number is the task's.

    Args:
        directory: the staging directory.
        stage: `count` or `encode`.
    """

    def __init__(self, directory: Path, stage: str):
        self.directory, self.stage = directory, stage

    def __call__(self, data, rank: int, world_size: int) -> None:
        from spanbert_ext.data.work import run_unit

        job = Job.open(self.directory)
        before = os.environ.get(_THREADS)
        os.environ[_THREADS] = "false"  # the tasks share the cores already
        try:
            run_unit(job, self.stage, rank, lambda count: None)
        except SpanBertError as error:
            said = {"error": type(error).__name__, "text": str(error)}
            path = job.path(unit_part(self.stage, rank), _ERROR)
            write_whole(path, json.dumps(said).encode("ascii"))
            raise
        finally:
            if before is None:
                del os.environ[_THREADS]
            else:
                os.environ[_THREADS] = before


class StepTask:
    """A pipeline step of one task: the vocabulary, or, given an output, all that is left."""

    def __init__(self, directory: Path, output: Path | None = None):
        self.directory, self.output = directory, output

    def __call__(self, data, rank: int, world_size: int) -> None:
        from spanbert_ext.data.preparation import Preparation

        job = Job.open(self.directory)
        alone = dataclasses.replace(job.config, executor="own", workers=1)
        preparation = Preparation(
            dataclasses.replace(job, config=alone), lambda doing, done, total: None
        )
        if self.output is None:
            preparation.make_tokenizer()
        else:
            with locked_staging(self.output):
                preparation.run(self.output)


def run_tasks(job: Job, stage: str, numbers: Sequence[int]) -> Iterator[tuple[int, dict]]:
    """(unit, result) of a stage's units, run on a Ray cluster.

    Raises:
        ConfigError: datatrove or Ray is not installed.
        SpanBertError: the first fault, in the order of the units.
        StorageError: units are not finished for another reason; names the logs.
    """
    logs = _logs(job, stage, numbers)
    executor = _ray_executor(job, stage, logs)
    try:
        executor.run()
    except SpanBertError:
        pass  # which one is the first is looked up below
    finally:
        _raise_first_error(job, stage, numbers)
    for number in numbers:
        result = job.finished(unit_part(stage, number))
        if result is None:
            raise StorageError(
                f"unit {number + 1} of {len(job.units)} was not finished by datatrove's Ray "
                f"executor; see {logs}"
            )
        yield number, result


def submit(job: Job, output: Path) -> str:
    """Hand the job to Slurm; returns what to tell the user.

    Raises:
        ConfigError: datatrove is not installed, or there is no sbatch.
    """
    last = slurm_executor(job, Path(os.path.abspath(output)))
    try:
        last.run()
    except FileNotFoundError as error:
        raise ConfigError(f"executor: slurm needs the command {error.filename}") from None
    return (
        f"handed to Slurm, last job {last.job_id}: {output} appears when it has finished; should a "
        "job fail, start the same command again"
    )


def slurm_executor(job: Job, output: Path):
    """The last datatrove executor of the chain; running it submits all of them."""
    units = len(job.units)
    steps = [
        ("encode", UnitTask(job.directory, "encode"), units),
        ("corpus", StepTask(job.directory, output), 1),
    ]
    if job.finished(TOKENIZER_PART) is None:
        steps.insert(0, ("vocabulary", StepTask(job.directory), 1))
        if job.config.tokenizer is None:
            steps.insert(0, ("count", UnitTask(job.directory, "count"), units))
    executor = None
    for name, task, tasks in steps:
        waiting = [n for n in range(tasks) if job.finished(unit_part(name, n)) is None]
        executor = _datatrove().SlurmPipelineExecutor(
            pipeline=[task],
            tasks=tasks,
            time=job.config.slurm_time,
            partition=job.config.slurm_partition,
            qos="",
            workers=job.config.workers or -1,
            job_name=f"spanbert-{name}",
            logging_dir=_logs(job, name, waiting),
            depends=executor,
        )
    return executor


def _ray_executor(job: Job, stage: str, logs: str):
    try:
        import ray
    except ImportError:
        raise ConfigError("executor: ray needs Ray; `pip install ray`") from None
    if not ray.is_initialized():
        ray.init()
    return _datatrove().RayPipelineExecutor(
        pipeline=[UnitTask(job.directory, stage)],
        tasks=len(job.units),
        workers=job.config.workers or -1,
        logging_dir=logs,
    )


def _datatrove():
    try:
        import datatrove.executor
    except ImportError:
        raise ConfigError(
            "executor: this one needs datatrove; `pip install 'spanbert-ext[prepare]'`"
        ) from None
    return datatrove.executor


def _logs(job: Job, stage: str, numbers: Sequence[int]) -> str:
    """The folder for a stage's logs and completion markers; the markers of tasks that are to run
    are removed, since ours decide."""
    logs = job.directory / "datatrove" / stage
    for number in numbers:
        (logs / "completions" / f"{number:05d}").unlink(missing_ok=True)
        job.path(unit_part(stage, number), _ERROR).unlink(missing_ok=True)
    return str(logs)


def _raise_first_error(job: Job, stage: str, numbers: Sequence[int]) -> None:
    said = {n: job.path(unit_part(stage, n), _ERROR) for n in numbers}
    failed = [n for n in numbers if said[n].is_file()]
    if not failed:
        return
    for number in numbers[: numbers.index(failed[0])]:
        if job.finished(unit_part(stage, number)) is None:
            # The executor stops all tasks when one fails: this one may have been about to.
            UnitTask(job.directory, stage)(None, number, len(job.units))
    fault = json.loads(said[failed[0]].read_bytes())
    raise getattr(errors, fault["error"])(fault["text"]) from None
