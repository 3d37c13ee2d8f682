"""What this machine gives a process, as each system tells it."""

import os
import subprocess
import sys

import pytest

from spanbert_ext import device

V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        # Version 2 in a container: its own limit stands at the root.
        ({f"{V2}/cpu.max": "max 100000\n"}, 8),
        ({f"{V2}/cpu.max": "250000 100000\n"}, 2),
        ({f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({f"{V2}/cpu.max": "9900000 100000\n"}, 8),
        # On the host: the group's own limit, and one of a group around it.
        ({"/proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/cpu.max": "300000 100000"}, 3),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000",
                f"{V2}/a/cpu.max": "400000 100000",
            },
            4,
        ),
        # A group of the host that the container does not see.
        ({"/proc/self/cgroup": "0::/../x\n", f"{V2}/cpu.max": "500000 100000"}, 5),
        # Version 1: quota and period are files of their own, -1 is no limit.
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                f"{V1}/cpu.cfs_quota_us": "600000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpuacct,cpu:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({f"{V2}/cpu.max": "100000 0\n"}, 8),
        ({f"{V2}/cpu.max": "what is this\n"}, 8),
    ],
)
def test_usable_cores(monkeypatch, files, cores):
    monkeypatch.setattr(device, "read_system_file", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert device.usable_cores() == cores


def test_systems_without_affinity(monkeypatch):
    monkeypatch.setattr(device, "read_system_file", lambda path: "")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert device.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert device.usable_cores() == 1


def test_affinity_counts():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from spanbert_ext.device import usable_cores; print(usable_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", code]).split() == [b"1"]


def test_memory_and_load():
    assert device.peak_memory() > 1 << 20
    assert device.physical_memory() > device.peak_memory()
    assert device.load_average() >= 0.0


def test_what_windows_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.physical_memory() is None
    assert device.peak_memory() == 0
    assert device.load_average() == 0.0


def test_system_files_that_are_not_there(tmp_path):
    assert device.read_system_file(str(tmp_path / "absent")) == ""
    (tmp_path / "binary").write_bytes(b"\xff")
    assert device.read_system_file(str(tmp_path / "binary")) == ""
