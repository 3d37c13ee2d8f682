"""`spanbert doctor`: what is installed, what runs, and what a missing part costs."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from spanbert_ext import __version__, _backend
from spanbert_ext.training.models import choose_device, choose_precision

# (distribution, what is lost without it)
_PARTS = (
    ("torch", "nothing works"),
    ("numpy", "nothing works"),
    ("transformers", "no models, no tokenizers: only SpanMasker, SBOHead and the loss work"),
    ("safetensors", "no checkpoints"),
    ("tokenizers", "`spanbert prepare` cannot learn or apply a vocabulary"),
    ("jsonargparse", "no command line; the Python interface is unaffected"),
    ("PyYAML", "no configuration files"),
    ("tqdm", "no progress bar"),
    ("pyarrow", "`spanbert prepare` cannot read .parquet"),
    ("xxhash", "slower digests of corpus files"),
)


def rows() -> list[tuple[str, str, str]]:
    """(part, state, what it means) for everything a run depends on."""
    found = [
        ("spanbert_ext", __version__, ""),
        ("python", platform.python_version(), platform.platform()),
    ]
    for name, cost in _PARTS:
        try:
            found.append((name, importlib.metadata.version(name), ""))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "missing", cost))
    return [*found, *_hardware_rows(), *_backend.describe()]


def _hardware_rows() -> list[tuple[str, str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    level = torch.backends.cpu.get_cpu_capability()
    found = [("cpu", f"{cores} cores", f"{torch.get_num_threads()} threads, {level}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = (
            f"{properties.total_memory / 1e9:.0f} GB, compute {properties.major}.{properties.minor}"
        )
        found.append((f"cuda:{index}", properties.name, memory))
    if not torch.cuda.is_available():
        why = "this torch has no CUDA" if torch.version.cuda is None else "no usable GPU or driver"
        found.append(("gpu", "none", f"{why}; training runs on the CPU"))
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    found.append(("device: auto", str(device), f"precision auto is {precision} here"))
    return found


def report() -> str:
    """The rows as an aligned table."""
    table = rows()
    first = max(len(row[0]) for row in table)
    second = max(len(row[1]) for row in table)
    return "\n".join(f"{a:{first}}  {b:{second}}  {c}".rstrip() for a, b, c in table)
