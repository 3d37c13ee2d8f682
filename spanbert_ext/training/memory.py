"""What to do when memory runs out: compute fewer rows at a time, which changes no number."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from spanbert_ext.errors import OutOfMemory

# What torch's CPU allocator says on Linux, and on other systems; it has no exception of its own.
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory, of the host or of the device, ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _CPU_ALLOCATOR)


@contextlib.contextmanager
def explained(advise: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory into one line with advice.

    Args:
        advise: gives what to do.

    Raises:
        OutOfMemory: in place of the exception of torch, numpy or Python.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"memory ran out ({_said(error)}). {advise()}") from error


def _said(error: BaseException) -> str:
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"{int(asked[1]) / 1e9:.2f} GB more were asked for"
    return " ".join(str(error).split())[:160] or type(error).__name__
