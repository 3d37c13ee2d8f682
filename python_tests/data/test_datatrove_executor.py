"""The same corpus, its units run as datatrove's tasks."""

import os
import re
import sys
from types import SimpleNamespace

import pytest
from corpora import PROSE, bytes_of, write

from spanbert_ext.data import PrepareConfig, datatrove_executor, prepare
from spanbert_ext.data.datatrove_executor import UnitTask, slurm_executor
from spanbert_ext.data.job import Job
from spanbert_ext.data.sources import find_sources
from spanbert_ext.data.units import plan_units
from spanbert_ext.errors import ConfigError, DataError, Preempted, StorageError

OPTIONS = {"vocab_size": 300, "unit_bytes": 15_000, "shard_tokens": 3000, "workers": 2}


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in" / "a.txt", PROSE)


@pytest.fixture
def ray(monkeypatch):
    """Ray's executor, with datatrove's processes in place of a cluster."""
    import datatrove.executor

    class Executor(datatrove.executor.LocalPipelineExecutor):
        def __init__(self, workers, **options):
            super().__init__(workers=2, **options)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(datatrove.executor, "RayPipelineExecutor", Executor)
    return Executor


def config(source, name, **options):
    output = source.parent.parent / name
    return PrepareConfig([str(source)], str(output), **OPTIONS | options)


def test_tasks_give_the_same_bytes(source, ray, monkeypatch):
    """From a relative path, and going on where our own workers were interrupted."""

    def stop(doing, done, total):
        if doing == "encoding" and done:
            raise KeyboardInterrupt

    clean = bytes_of(prepare(config(source, "clean")).path)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(source, "out"), stop)
    monkeypatch.chdir(source.parent.parent)
    corpus = prepare(PrepareConfig(["in/a.txt"], "out", executor="ray", **OPTIONS))
    assert bytes_of(corpus.path) == clean
    assert sorted(os.listdir(source.parent.parent)) == ["clean", "in", "out"]


def test_faults_come_back_from_the_tasks(source, ray):
    text = PROSE.replace("statement", "\0", 40)
    write(source, text)
    line = text[: text.index("\0")].count("\n") + 1
    with pytest.raises(DataError, match=rf"a\.txt:{line}: a NUL byte"):
        prepare(config(source, "out", executor="ray"))
    assert os.listdir(source.parent.parent) == ["in"]


def test_the_first_fault_is_told_though_a_later_unit_fails_sooner(source, monkeypatch):
    """datatrove stops the others then."""

    class OnlyTheLastOne:
        def __init__(self, job, stage, logs):
            self.job, self.stage = job, stage

        def run(self):
            UnitTask(self.job.directory, self.stage)(None, len(self.job.units) - 1, 0)

    monkeypatch.setattr(datatrove_executor, "_ray_executor", OnlyTheLastOne)
    write(source, "fine\n\n" * 3 + "nul \0\n\n" + "fine\n\n" * 3 + "nul \0\n")
    with pytest.raises(DataError, match=r"a\.txt:7: a NUL byte"):
        prepare(config(source, "out", executor="ray", unit_bytes=12))


def test_without_datatrove_or_ray(source, ray, monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove.executor", None)
    with pytest.raises(ConfigError, match=r"needs datatrove; `pip install 'spanbert-ext\[prepare"):
        prepare(config(source, "out", executor="ray"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs Ray; `pip install ray`"):
        prepare(config(source, "out", executor="ray"))


def begun(source, **options):
    settings = config(source, "out", executor="slurm", slurm_partition="cpu", **options)
    sources = find_sources(settings.inputs, source.parent)
    directory = source.parent.parent / ".out.staging"
    directory.mkdir(exist_ok=True)
    units = plan_units(sources, settings)
    return Job.begin(directory, settings, sources, units, {"settings": {}, "inputs": []})


def test_the_chain_of_slurm_jobs(source):
    job = begun(source, slurm_time="00:30:00")
    chain = [slurm_executor(job, source.parent.parent / "out")]
    while chain[0].depends is not None:
        chain.insert(0, chain[0].depends)
    names = [executor.job_name for executor in chain]
    assert names == [f"spanbert-{name}" for name in ("count", "vocabulary", "encode", "corpus")]
    units = len(job.units)
    assert units > 2
    assert [executor.world_size for executor in chain] == [units, 1, units, 1]
    script = chain[2].get_launch_file_contents(chain[2].get_sbatch_args(units), "run")
    for line in ("partition=cpu", "time=00:30:00", f"array=0-{units - 1}%2", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "qos" not in script


def test_the_chain_does_the_work(source):
    """Each task of each job, run here as a node would."""
    clean = bytes_of(prepare(config(source, "clean")).path)
    output = source.parent.parent / "out"
    settings = config(source, "out", executor="slurm", slurm_partition="cpu")
    with pytest.raises(ConfigError, match="slurm needs the command sbatch"):
        prepare(settings)
    chain = [slurm_executor(begun(source), output)]
    while chain[0].depends is not None:
        chain.insert(0, chain[0].depends)
    for executor in chain:
        for rank in range(executor.world_size):
            executor.pipeline[0](None, rank, executor.world_size)
    made = bytes_of(output)
    assert {name: made[name] for name in made if name != "corpus.json"} == {
        name: clean[name] for name in clean if name != "corpus.json"
    }
    assert not (source.parent.parent / ".out.staging").exists()


def test_jobs_are_submitted_in_order(source, tmp_path, monkeypatch):
    """A command that takes the place of sbatch notes what it is given."""
    log = tmp_path / "log"
    sbatch = write(
        tmp_path / "bin" / "sbatch",
        f'#!/bin/sh\necho "$*" >> {log}\ncat $(eval echo \\${{$#}}) >> {log}\n'
        f"echo Submitted batch job $(wc -l < {log})\n",
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    settings = config(source, "out", executor="slurm", slurm_partition="cpu")
    with pytest.raises(Preempted, match=r"handed to Slurm, last job \d+: .*/out appears when"):
        prepare(settings)
    jobs = re.findall(r"--job-name=spanbert-(\w+)", log.read_text())
    assert [name for i, name in enumerate(jobs) if name not in jobs[:i]] == [
        "count",
        "vocabulary",
        "encode",
        "corpus",
    ]
    assert "launch_pickled_pipeline" in log.read_text()


@pytest.mark.ray
def test_ray_on_this_machine_gives_the_same_bytes(source):
    pytest.importorskip("ray", reason="Ray is not installed")
    clean = bytes_of(prepare(config(source, "clean")).path)
    corpus = prepare(config(source, "out", executor="ray"))
    assert bytes_of(corpus.path) == clean
    write(source, PROSE + "\0")
    with pytest.raises(DataError, match="a NUL byte"):
        prepare(config(source, "faulty", executor="ray"))


def test_tasks_that_did_not_finish_are_named(source, ray, monkeypatch):
    monkeypatch.setattr(ray, "run", lambda self: None)
    with pytest.raises(StorageError, match=r"unit 1 of \d+ was not finished by datatrove's Ray"):
        prepare(config(source, "out", executor="ray"))
