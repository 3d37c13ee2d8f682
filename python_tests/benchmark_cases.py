"""What the tests of the benchmarks share: the way to `benchmarks`, and a child that finds it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Behind everything else: an installed package stays the one that is measured.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def child(*words, cwd=ROOT, **environment):
    """A child interpreter that finds what this one finds."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [entry for entry in sys.path if entry and (entry != str(ROOT) or entry in named)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
