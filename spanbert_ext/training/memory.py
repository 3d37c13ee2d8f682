"""What to do when memory runs out: compute fewer rows at a time, which changes no number."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spanbert_ext.errors import OutOfMemory
from spanbert_ext.training.config import PretrainConfig

# What torch's CPU allocator says on Linux, and on other systems; it has no exception of its own.
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory, of the host or of the device, ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _CPU_ALLOCATOR)


def advice(config: PretrainConfig, processes: int) -> str:
    """How to make do with less, for a run that has these settings."""
    rows = config.micro_rows(processes)
    now = f"{rows} rows of {config.batch.max_length} tokens are computed at a time"
    if rows > 1:
        fewer = max(n for n in range(1, rows // 2 + 1) if rows % n == 0)
        return (
            f"{now}: `--batch.micro_rows {fewer}` takes less, with the same update, also in a run "
            "that has begun. Weights, gradients and moments alone take 16 bytes a parameter"
        )
    return (
        f"{now.replace('rows', 'row', 1).replace('are', 'is')}: only another run, with a smaller "
        "--preset or --batch.max_length, takes less"
    )


@contextlib.contextmanager
def explained(
    config: Any, processes: int = 1, advise: Callable[[Any, int], str] = advice
) -> Iterator[None]:
    """Turn running out of memory into one line with advice.

    Args:
        processes: that share the rows of a batch.
        advise: config, processes -> what to do; default that of pre-training.

    Raises:
        OutOfMemory: in place of the exception of torch, numpy or Python.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(
            f"memory ran out ({_said(error)}). {advise(config, processes)}"
        ) from error


def _said(error: BaseException) -> str:
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"{int(asked[1]) / 1e9:.2f} GB more were asked for"
    return " ".join(str(error).split())[:160] or type(error).__name__
