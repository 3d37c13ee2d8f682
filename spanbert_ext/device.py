"""What this machine gives a process: cores, memory, load. Each system is asked in its own way, and
what it does not tell is None or 0, never a fault.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = "/sys/fs/cgroup"


def read_system_file(path: str) -> str:
    """The text of a file of /proc or /sys; "" where there is none."""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def usable_cores() -> int:
    """Cores that this process may use at a time, at least 1.

    The least of the machine's cores, the process's affinity and the CPU time that its control
    group and those around it allow (versions 1 and 2), rounded down.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of time that the control groups of this process allow."""
    for line in read_system_file("/proc/self/cgroup").splitlines() or ["0::/"]:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            yield from _quotas_around(_CGROUPS, own, "cpu.max")
        elif "cpu" in controllers.split(","):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            yield from _quotas_around(f"{_CGROUPS}/cpu", own, *names)


def _quotas_around(root: str, own: str, *names: str) -> Iterator[float]:
    """Quotas of a control group and its parents. In a container `own` may name a group of the host
    that is not mounted; the container's limit then stands at the root."""
    group = PurePosixPath("/", own)
    for parent in (group, *group.parents):
        folder = f"{root}{parent}".rstrip("/")
        fields = " ".join(read_system_file(f"{folder}/{name}") for name in names).split()
        if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]):
            yield int(fields[0]) / int(fields[1])  # "max" and -1 are no limit


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory() -> int:
    """Most bytes this process has had in memory so far; 0 where the system does not tell
    (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load_average() -> float:
    """Processes that wanted a core in the last minute, on average; 0.0 where the system does not
    tell (Windows)."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
