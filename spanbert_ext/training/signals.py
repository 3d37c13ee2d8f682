"""Signals that ask a run to stop: which there are here, and who may take them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Batch schedulers announce the end of a slot with the last two, which Windows does not have.
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Give `STOPPING` to a handler while the block runs, and to the earlier ones behind it.

    Python lets only the main thread set handlers: in any other one this does nothing, signals stay
    with the program that started the thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, before in previous.items():
            # None: it was set by a library of C, and Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
