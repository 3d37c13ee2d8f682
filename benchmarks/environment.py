"""What a number depends on besides the code: machine, versions, commit, command."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.installed import ROOT, require_package


@functools.cache
def describe(device_type: str) -> dict[str, str]:
    """Column name -> value of everything that is the same for all rows of a session."""
    from spanbert_ext import __version__
    from spanbert_ext.ops import backend

    on_gpu = device_type == "cuda"
    return {
        "device": device_type,
        "hardware": torch.cuda.get_device_name() if on_gpu else _processor(),
        "driver": _driver() if on_gpu else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backend.name(torch.device(device_type)),
        "package": f"{__version__} {require_package()}",
        "commit": commit(),
        "date": session_date(),
        "command": command(),
    }


@functools.cache
def session_date() -> str:
    """When this session began, UTC; the same in all its rows, so it also names the session. A
    session of several processes hands it down.
    """
    given = os.environ.get("SPANBERT_BENCHMARK_SESSION")
    return given or datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.cache
def commit() -> str:
    """Short commit of the source tree, with `+` if what is measured has changes in it."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    if not head:
        return "unknown"
    changed = _output(
        "git", "-C", str(ROOT), "status", "--porcelain", "--", "csrc", "spanbert_ext", "benchmarks",
        ":!benchmarks/results",
    )  # fmt: skip
    return head + ("+" if changed else "")


def command() -> str:
    """The command that repeats the measurement."""
    given = os.environ.get("SPANBERT_BENCHMARK_COMMAND")
    if given:
        return given
    words = _without_results(sys.argv)
    program = Path(words[0])
    if program.stem == "__main__" and program.parent.name in ("pytest", "_pytest"):
        return " ".join(["pytest", *words[1:]])
    if program.parent == ROOT / "benchmarks":
        return " ".join(["python -m benchmarks." + program.stem, *words[1:]])
    return " ".join([program.name, *words[1:]])


def _without_results(words: list[str]) -> list[str]:
    """Where the rows go does not change them."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--results":
            next(rest, None)
        elif not word.startswith("--results="):
            kept.append(word)
    return kept


def _processor() -> str:
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        name = fields.get("model name", name)
        flags = set(fields.get("flags", "").split())
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return " ".join([name, *(flag for flag in known if flag in flags)])


def _driver() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return _output(*query).splitlines()[0] if _output(*query) else "unknown"


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
