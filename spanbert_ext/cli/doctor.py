"""`spanbert doctor`: what is installed, what this machine offers, what runs, and what each missing
part costs. The third column is empty where there is nothing to say.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys

import torch

from spanbert_ext import __version__
from spanbert_ext.device import load_average, read_system_file, usable_cores
from spanbert_ext.ops import backend
from spanbert_ext.training.models import choose_device, choose_precision

Row = tuple[str, str, str]

# (distribution, what is lost without it)
_REQUIRED = (
    ("torch", "nothing works"),
    ("numpy", "nothing works"),
    ("transformers", "no models, no tokenizers: only SpanMasker, SBOHead and the loss work"),
    ("safetensors", "no checkpoints"),
    ("tokenizers", "`spanbert prepare` cannot learn or apply a vocabulary"),
    ("PyYAML", "no command line, no training; masker, head and loss are unaffected"),
    ("tqdm", "no progress bar"),
)
# (distribution, what is lost without it, what pip installs)
_OPTIONAL = (
    ("pyarrow", "no .parquet input", "spanbert-ext[parquet]"),
    ("datatrove", "corpora are prepared on this machine alone, no Slurm", "spanbert-ext[prepare]"),
    ("ray", "no Ray executor of datatrove", "ray"),
    ("spacy", "no entities and phrases for masking", "spanbert-ext[annotate]"),
    ("matplotlib", "no `spanbert plot`", "spanbert-ext[plot]"),
    ("tensorboard", "no `--report_to tensorboard`", "spanbert-ext[tensorboard]"),
    ("wandb", "no `--report_to wandb`", "spanbert-ext[wandb]"),
)
# Three checkpoints of BERT-base (weights and two moments in fp32) and one that is being written.
_ROOMY_GB = 4 * 1.3


def sections() -> list[tuple[str, list[Row]]]:
    """Title and rows (part, state, what it means) of everything a run depends on."""
    return [
        ("package", _package_rows()),
        ("optional parts", _optional_rows()),
        ("machine", [*_cpu_rows(), *_gpu_rows(), *_disk_rows()]),
        ("what runs", [*_choice_rows(), *backend.describe()]),
        ("several processes", _distributed_rows()),
        ("surroundings", _surrounding_rows()),
    ]


def report() -> str:
    """The sections as one aligned table."""
    found = sections()
    first, second = (max(len(row[i]) for _, rows in found for row in rows) for i in (0, 1))
    lines = []
    for title, rows in found:
        lines += [title, *(f"  {a:{first}}  {b:{second}}  {c}".rstrip() for a, b, c in rows), ""]
    return "\n".join(lines[:-1])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_rows() -> list[Row]:
    found = [
        ("spanbert_ext", __version__, ""),
        ("python", platform.python_version(), platform.platform()),
    ]
    for name, cost in _REQUIRED:
        version = _version(name)
        found.append((name, version or "missing", "" if version else cost))
    return found


def _optional_rows() -> list[Row]:
    found = []
    for name, cost, package in _OPTIONAL:
        version = _version(name)
        advice = f'{cost}: `pip install "{package}"`'
        found.append((name, version or "missing", "" if version else advice))
    return found


def _cpu_rows() -> list[Row]:
    cores, threads = usable_cores(), torch.get_num_threads()
    level = torch.backends.cpu.get_cpu_capability()
    found = [("cpu", _count(cores, "core"), level)]
    given = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={given}" if given else "OMP_NUM_THREADS is not set"
    if threads > cores:
        setting += f": more threads than cores wait for each other, {cores} would be faster"
    elif threads < cores and given:
        setting += f": {_count(cores - threads, 'core')} idle, unless other processes use them"
    found.append(("threads", str(threads), setting))
    load = load_average()
    busy = "" if load <= cores else "other programs keep the cores busy"
    if busy and threads > 1:
        busy += ": OMP_NUM_THREADS=1 trains faster than threads that wait"
    found.append(("load", f"{load:.1f}", busy))
    available = _memory_gb("MemAvailable")
    if available:
        state = f"{available:.1f} GB free"
        found.append(("memory", state, f"of {_memory_gb('MemTotal'):.1f} GB"))
    return found


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("s" if number != 1 else "")


def _memory_gb(field: str) -> float:
    """A line of /proc/meminfo, bounded by the container's limit; 0 where there is none."""
    kilobytes = re.search(rf"^{field}: +(\d+) kB", read_system_file("/proc/meminfo"), re.MULTILINE)
    found = int(kilobytes[1]) * 1024 if kilobytes else 0
    limit = read_system_file("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        used = read_system_file("/sys/fs/cgroup/memory.current").strip()
        taken = int(used) if field == "MemAvailable" and used.isdigit() else 0
        found = min(found, max(0, int(limit) - taken))
    return found / 1e9


def _gpu_rows() -> list[Row]:
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        compute = f"compute capability {properties.major}.{properties.minor}"
        found.append((f"cuda:{index}", properties.name, f"{memory}, {compute}"))
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not found:
        found.append(("gpu", "none", f"{_why_no_gpu(driver)}: training runs on the CPU"))
    if driver:
        found.append(("driver", driver.splitlines()[0], f"torch wants CUDA {torch.version.cuda}"))
    nvcc = re.search(r"release (\S+),", _output("nvcc", "--version"))
    meaning = "" if nvcc else "installing this package from source leaves its CUDA part out"
    return [*found, ("nvcc", nvcc[1] if nvcc else "missing", meaning)]


def _why_no_gpu(driver: str) -> str:
    if torch.version.cuda is None:
        return "this torch has no CUDA" + (", although there is a driver" if driver else "")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty"
    return "torch cannot use it, is the driver too old?" if driver else "no NVIDIA driver"


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _disk_rows() -> list[Row]:
    free = shutil.disk_usage(".").free / 1e9
    advice = "" if free > _ROOMY_GB else "a checkpoint of BERT-base takes 1.3 GB, and 3 are kept"
    if not os.access(".", os.W_OK):
        advice = "not writable: name an --output elsewhere"
    return [("disk, here", f"{free:.1f} GB free", advice)]


def _choice_rows() -> list[Row]:
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    return [("device: auto", str(device), f"precision auto is {precision} here")]


def _distributed_rows() -> list[Row]:
    if not torch.distributed.is_available():
        return [("torch.distributed", "missing", "one process only: this torch was built without")]
    found = []
    for name, there, cost in (
        ("gloo", torch.distributed.is_gloo_available(), "one process only on CPUs"),
        ("nccl", torch.distributed.is_nccl_available(), "one GPU only; CPUs use gloo"),
    ):
        found.append((name, "available" if there else "missing", "" if there else cost))
    return found


def _surrounding_rows() -> list[Row]:
    home = os.path.expanduser("~")
    unset = "" if "HOME" in os.environ else "HOME is not set; "
    advice = "" if os.access(home, os.W_OK) else "caches cannot be written: set HF_HOME"
    encoding = getattr(sys.stdout, "encoding", None) or "none"
    is_unicode = encoding.lower().replace("-", "") == "utf8"
    meaning = "" if is_unicode else "other characters are shown as \\x..; files are always UTF-8"
    return [
        ("home", home, (unset + advice).removesuffix("; ")),
        ("console", encoding, meaning),
    ]
