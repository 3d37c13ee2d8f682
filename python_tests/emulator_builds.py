"""Builds kernels of a test with the emulator; the tests skip where nothing can build them."""

import ctypes
import shutil
import sys
from pathlib import Path

import pytest

EMULATOR = Path(__file__).resolve().parents[1] / "csrc" / "tests" / "emulator"


def load_sample(kind: str, source: str, folder: Path) -> ctypes.CDLL:
    """The kernels of a file beside the emulator, built as `run` builds the module."""
    if not EMULATOR.exists():
        pytest.skip("the emulator's sources are not here")
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler builds the emulator")
    if str(EMULATOR) not in sys.path:
        sys.path.append(str(EMULATOR))
    import builds

    return ctypes.CDLL(str(builds.build_sample(builds.KINDS[kind], folder, EMULATOR / source)))
