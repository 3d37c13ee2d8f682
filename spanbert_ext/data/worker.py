"""`python -m spanbert_ext.data.worker STAGING PARENT_PID`: does units that it is told on stdin.

Each line of stdin names one part: `{"stage": ..., "unit": ...}`; lines of stdout say `read` (bytes
since the line before), then `result`, or `error` with its `text`. It dies with its parent: at once
on Linux, elsewhere behind its unit, since stdin ends then.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from spanbert_ext.data.job import Job
from spanbert_ext.data.work import run_unit
from spanbert_ext.errors import SpanBertError

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Work until stdin ends."""
    parent = int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get among the answers

    def say(**message) -> None:
        channel.write(json.dumps(message) + "\n")

    job = Job.open(Path(sys.argv[1]))
    for line in sys.stdin:
        task = json.loads(line)
        try:
            result = run_unit(job, task["stage"], task["unit"], lambda count: say(read=count))
        except SpanBertError as error:
            say(error=type(error).__name__, text=str(error))
        except OSError as error:
            say(error="StorageError", text=f"{error.filename}: {error.strerror or error}")
        else:
            say(result=result)


if __name__ == "__main__":
    main()
