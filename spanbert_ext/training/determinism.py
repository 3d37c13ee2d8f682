"""Updates that repeat bit for bit on a GPU: the switches of torch that takes, put back afterwards.

A CPU needs none of it; see "Reproducibility" in torch's notes for what each switch does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Takes deterministic algorithms inside, if wanted; an operation that has none raises.

    cuBLAS reads its setting when it is first used: a process that multiplied on a GPU before must
    have set CUBLAS_WORKSPACE_CONFIG=:4096:8 itself. A value that is there stays.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cudnn.deterministic, cudnn.benchmark
    fill, workspace = torch.utils.deterministic.fill_uninitialized_memory, os.environ.get(_CUBLAS)
    try:
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        # Nothing is read before it is written here, so filling memory would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        cudnn.deterministic, cudnn.benchmark = switches
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
