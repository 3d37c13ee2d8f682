"""What `spanbert doctor` says about parts that are there, missing or odd."""

import importlib.metadata
import os

import pytest

from spanbert_ext.cli import doctor


def rows():
    return {row[0]: row[1:] for _, found in doctor.sections() for row in found}


def test_what_is_installed_needs_no_words():
    found = rows()
    for name in ("torch", "numpy", "transformers", "tensorboard", "matplotlib"):
        assert found[name] == (importlib.metadata.version(name), "")
    assert "xxhash" not in found  # nothing in the package uses it


def test_a_missing_part_says_what_it_costs(monkeypatch):
    version = importlib.metadata.version

    def missing(name):
        if name in ("matplotlib", "safetensors"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = rows()
    assert found["matplotlib"] == (
        "missing",
        'no `spanbert plot`: `pip install "spanbert-ext[plot]"`',
    )
    assert found["safetensors"] == ("missing", "no checkpoints")


def test_threads_and_load(monkeypatch):
    cores = doctor.usable_cores()
    monkeypatch.setattr(os, "getloadavg", lambda: (cores + 0.5, 0, 0))
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: cores + 3)
    found = rows()
    assert f"more threads than cores wait for each other, {cores} would be" in found["threads"][1]
    assert "OMP_NUM_THREADS=1" in found["load"][1]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0, 0))
    assert rows()["load"] == ("0.0", "")


@pytest.mark.parametrize(
    ("files", "gigabytes"),
    [
        ({"memory.max": "max\n"}, 20.0),
        ({"memory.max": "4000000000\n"}, 3.0),
        ({"memory.max": "90000000000\n"}, 20.0),
        ({}, 20.0),
    ],
)
def test_a_containers_share_of_memory(monkeypatch, files, gigabytes):
    files = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    files["/proc/meminfo"] = "MemTotal:  1 kB\nMemAvailable:   19531250 kB\n"
    files["/sys/fs/cgroup/memory.current"] = "1000000000\n"
    monkeypatch.setattr(doctor, "read_system_file", lambda path: files.get(path, ""))
    assert doctor._memory_gb("MemAvailable") == pytest.approx(gigabytes)


def test_odd_surroundings(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    assert rows()["home"][1].startswith("HOME is not set")
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert rows()["home"] == (str(tmp_path / "absent"), "caches cannot be written: set HF_HOME")
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert rows()["disk, here"] == (
        "1.0 GB free",
        "a checkpoint of BERT-base takes 1.3 GB, and 3 are kept",
    )


def test_the_table_is_aligned():
    lines = doctor.report().splitlines()
    titles = [line for line in lines if line and not line.startswith("  ")]
    assert titles[:2] == ["package", "optional parts"]
    second = {line.index(state) for line in lines for state in ("available",) if state in line}
    assert len(second) == 1
    assert not any(line != line.rstrip() for line in lines)
