"""Which back ends there are here, for fixtures and for tests that compare them."""

import contextlib
import os

import pytest

from spanbert_ext.ops import backend

# In the test build that csrc/tests/emulator/run makes, tensors on the CPU can take CUDA's kernels.
EMULATED = ["emulated"] if getattr(backend.native_module, "emulates_cuda", False) else []
GPU = pytest.param("cuda", marks=pytest.mark.cuda)


@contextlib.contextmanager
def mode(name: str):
    """Another back end for a while."""
    before = os.environ.get("SPANBERT_EXT_BACKEND")
    os.environ["SPANBERT_EXT_BACKEND"] = name
    backend.reset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPANBERT_EXT_BACKEND"]
        else:
            os.environ["SPANBERT_EXT_BACKEND"] = before
        backend.reset()
