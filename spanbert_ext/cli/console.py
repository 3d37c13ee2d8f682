"""Output that may lose its reader: `spanbert pretrain | head` prints ten lines and trains on.

A run's numbers are in metrics.jsonl; what is printed is for whoever watches. So a closed pipe, a
terminal that went away or a full disk under a redirected log must not end weeks of training, and
a console that lacks a character must not either.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class PatientStream:
    """A text stream whose faults end its output, not the program.

    Args:
        stream: written to until the first fault, then pointed at the null device.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, or forget the text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or forget what was not written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        # At the descriptor, so that what is still in the stream's buffer goes nowhere at exit too.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if error.errno != errno.EPIPE and self is not sys.stderr:
            print(
                f"spanbert: warning: the output cannot be written any more ({error.strerror}); "
                "going on without it",
                file=sys.stderr,
            )

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Make stdout and stderr patient; one that is closed from the start is the null device."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        streams = [
            opened.enter_context(open(os.devnull, "w", encoding="utf-8")) if s is None else s
            for s in before
        ]
        sys.stdout, sys.stderr = (PatientStream(stream) for stream in streams)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def plain_console() -> None:
    """Send the package's log records to stderr as `spanbert: level: text` lines and quiet the
    libraries' bars.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("spanbert: %(levelname)s: %(message)s"))
    logger = logging.getLogger("spanbert_ext")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
