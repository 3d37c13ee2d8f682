"""Builds kernels of a test with the emulator; the tests skip where nothing can build them."""

import ctypes
import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "csrc" / "tests" / "emulator" / "run"


def load_run():
    """The script `run`, whose name has no ending, as a module."""
    if not RUN.exists():
        pytest.skip("the emulator's sources are not here")
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler builds the emulator")
    loader = importlib.machinery.SourceFileLoader("emulator_run", str(RUN))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def load_sample(kind: str, source: str, folder: Path) -> ctypes.CDLL:
    """The kernels of a file beside the emulator, built as `run` builds the module."""
    run = load_run()
    return ctypes.CDLL(str(run.build_sample(run.KINDS[kind], folder, run.EMULATOR / source)))
