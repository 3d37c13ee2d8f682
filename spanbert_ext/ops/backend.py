"""Loads the native module, decides which implementation runs, and explains the decision.

`SPANBERT_EXT_BACKEND` is `auto` (native where it can run, said once), `native` (raise where it
cannot) or `reference` (plain torch everywhere). The choice is made once for each device, never
silently per call. `emulated` is for tests of the package: tensors on the CPU take the algorithms
for GPUs, whose kernels a test build runs on the CPU (`csrc/tests/emulator/run`).
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

import torch

logger = logging.getLogger("spanbert_ext")

_MODES = ("auto", "native", "reference", "emulated")
_INSTALL = "reinstall with `pip install --force-reinstall --no-deps .` from the source tree"


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("spanbert_ext._C"), ""
    except ImportError as error:
        return None, str(error)


def _remedy() -> str:
    tree = Path(__file__).resolve().parents[2]
    if (tree / "setup.py").exists():
        return f"{tree} is a source tree and hides the package: `pip install .`, then run elsewhere"
    return _INSTALL


native_module, _load_error = _load()
_decisions: dict[torch.device, bool] = {}
_cuda_paths: dict[torch.device, bool] = {}


def mode() -> str:
    """The requested mode; raises ValueError on an unknown one."""
    value = os.environ.get("SPANBERT_EXT_BACKEND", "auto")
    if value not in _MODES:
        raise ValueError(f"SPANBERT_EXT_BACKEND must be one of {', '.join(_MODES)}; got {value!r}")
    return value


def _resolved(device: torch.device | str) -> torch.device:
    """With an index for a GPU: the current one where none is named."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device() if _cuda_runs() else 0)
    return device


def _cuda_runs() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def obstacle(device: torch.device | str) -> str:
    """Why the native core cannot run on a device; empty if it can. Of several GPUs each has an
    answer of its own."""
    device = _resolved(device)
    device_type = device.type
    if native_module is None:
        return f"the native module did not load ({_load_error}): {_remedy()}"
    if device_type == "cpu":
        return ""
    if device_type != "cuda":
        return f"there is no native code for device type {device_type!r}"
    if not native_module.has_cuda:
        reason = native_module.no_cuda_reason
        advice = f"put a working nvcc on PATH and {_INSTALL}"
        return f"the package was built without CUDA ({reason}): {advice}"
    if device.index >= torch.cuda.device_count():
        return ""  # torch says it better, where somebody uses it
    capability = torch.cuda.get_device_capability(device.index)
    built = native_module.cuda_architectures
    if not _has_code(built, *capability):
        return f"GPU {device.index} has compute capability {capability}, compiled was {built}"
    return ""


def _has_code(architectures: str, major: int, minor: int) -> bool:
    """Whether code for "80-real,90-real,120" runs on a device: machine code of the same major
    version and no newer, or PTX (an entry without -real) no newer."""
    entries = [e.partition("-") for e in architectures.split(",")]
    if not all(number.rstrip("af").isdigit() for number, _, _ in entries):
        return True  # "native", "all", "all-major": made for what is there
    for number, _, kind in entries:
        built = divmod(int(number.rstrip("af")), 10)
        machine_code = built[0] == major and built[1] <= minor and kind != "virtual"
        if machine_code or (kind != "real" and built <= (major, minor)):
            return True
    return False


def _decide(device: torch.device) -> bool:
    wanted = mode()
    if wanted == "reference":
        return False
    if wanted == "emulated":
        _check_emulated(device)
        return True
    reason = obstacle(device)
    if reason and wanted == "native":
        raise RuntimeError(f"SPANBERT_EXT_BACKEND=native, but {reason}")
    if reason and not torch.compiler.is_compiling():
        logger.warning("spanbert_ext uses the reference path on %s: %s", device, reason)
    return not reason


def _check_emulated(device: torch.device) -> None:
    if not getattr(native_module, "emulates_cuda", False):
        loaded = native_module.__file__ if native_module else "not loaded"
        raise RuntimeError(
            "SPANBERT_EXT_BACKEND=emulated needs the test build that csrc/tests/emulator/run "
            f"makes; the native module is {loaded}"
        )
    if device.type != "cpu":
        raise RuntimeError(f"SPANBERT_EXT_BACKEND=emulated takes tensors on the CPU; got {device}")


def cuda_path(device: torch.device) -> bool:
    """Whether tensors of a device take the algorithms for GPUs: on a GPU, and on the CPU in the
    mode `emulated`. Decided once for each device."""
    if device not in _cuda_paths:
        emulated = device.type == "cpu" and mode() == "emulated"
        if emulated:
            _check_emulated(device)
        _cuda_paths[device] = emulated or device.type == "cuda"
    return _cuda_paths[device]


def use_native(device: torch.device) -> bool:
    """Whether operations on this device run natively; decided once for each device."""
    if device.type == "cuda" and device.index is None:
        device = _resolved(device)
    if device not in _decisions:
        _decisions[device] = _decide(device)
    return _decisions[device]


def cpu_features() -> dict[str, bool | int | str]:
    """What torch knows of this CPU; empty where it does not say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a 16-bit dtype faster than fp32 ones.

    AMX tiles do. AVX512-BF16 alone does on AMD, where torch's fp32 products run in a library that
    is slow there. On an Intel CPU with AVX512-BF16 but no AMX, bf16 products took 1.7 times as
    long as fp32 ones. Decided by the CPU's features, not by a clock: results must repeat.
    """
    features = cpu_features()
    if features.get("architecture") != "x86_64":
        return True  # nothing measured there: leave it to torch
    if dtype == torch.float16:
        return bool(features.get("amx_fp16"))
    is_amd = str(features.get("cpu_name", "")).startswith("AMD")
    return bool(features.get("amx_bf16") or (is_amd and features.get("avx512_bf16")))


# Looked up once: torch.compile can read a table, but not the CPU's features.
_CPU_MULTIPLIES = {dtype: cpu_multiplies(dtype) for dtype in (torch.bfloat16, torch.float16)}


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which dtype our operations multiply matrices of `dtype`: fp32 for 16-bit ones where a CPU
    is faster that way (and loses no digits), else the dtype itself."""
    if device.type == "cpu" and not _CPU_MULTIPLIES.get(dtype, True) and not cuda_path(device):
        return torch.float32
    return dtype


def reset() -> None:
    """Forget decisions, so that a changed SPANBERT_EXT_BACKEND takes effect."""
    _decisions.clear()
    _cuda_paths.clear()


def name(device: torch.device) -> str:
    """What runs on a device, for logs and benchmark rows: `native/avx512`, `native/cuda`,
    `emulated/cuda`, `reference`."""
    if not use_native(device):
        return "reference"
    if device.type == "cpu" and cuda_path(device):
        return "emulated/cuda"
    return "native/cuda" if device.type == "cuda" else f"native/{native_module.cpu_isa}"


def describe() -> list[tuple[str, str, str]]:
    """Rows (part, state, what it means) for `spanbert doctor`."""
    rows = [("backend mode", mode(), "set SPANBERT_EXT_BACKEND=auto|native|reference to change")]
    for device_type in ("cpu", "cuda"):
        if device_type == "cuda" and not torch.cuda.is_available():
            built = native_module is not None and native_module.has_cuda
            state = "compiled in, no GPU here" if built else "not compiled in"
            why = "" if built or native_module is None else f"{native_module.no_cuda_reason}; "
            rows.append(("native cuda", state, f"{why}the CPU does all work"))
            continue
        several = torch.cuda.device_count() if device_type == "cuda" else 1
        for index in range(several):
            device = device_type if several == 1 else f"{device_type}:{index}"
            reason = obstacle(device)
            meaning = reason or f"operations run as {name(torch.device(device))}"
            if not reason and device_type == "cpu" and native_module.no_openmp_reason:
                meaning += f", in one thread: {native_module.no_openmp_reason}"
            rows.append((f"native {device}", "unavailable" if reason else "available", meaning))
    return rows
