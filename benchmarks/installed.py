"""Makes the benchmarks measure the installed package, not the source tree they stand in.

Running from the repository root puts that root on sys.path, where the source tree hides an
installed package and has no compiled core. So the package is looked up without the root first.
A root named in PYTHONPATH is a wish for the source tree, which then must hold a built core.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_INSTALL = f"run `pip install .` in {ROOT}, or build the core in place and set PYTHONPATH={ROOT}"


def prefer_installed() -> None:
    """Import `spanbert_ext` (its torch-free top alone) from where it is installed, if it is."""
    if "spanbert_ext" in sys.modules or _names_root(os.environ.get("PYTHONPATH", "")):
        return
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != ROOT]
    try:
        if importlib.util.find_spec("spanbert_ext") is not None:
            importlib.import_module("spanbert_ext")
    finally:
        sys.path[:] = path


def require_package() -> str:
    """Says what is measured, "installed" or "source tree".

    Raises:
        RuntimeError: neither an installed package nor a built source tree is there.
    """
    try:
        package = importlib.import_module("spanbert_ext")
    except ImportError as error:
        raise RuntimeError(f"spanbert_ext is not installed: {_INSTALL}") from error
    home = Path(package.__file__).resolve().parent
    if home.parent != ROOT:
        return "installed"
    if importlib.util.find_spec("spanbert_ext._C") is None:
        raise RuntimeError(f"{home} has no compiled core: {_INSTALL}")
    return "source tree"


def _names_root(search_path: str) -> bool:
    return any(entry and Path(entry).resolve() == ROOT for entry in search_path.split(os.pathsep))
