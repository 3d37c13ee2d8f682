"""Which back ends there are here, for fixtures and for tests that compare them."""

import contextlib
import os

import pytest
import torch

from spanbert_ext.ops import backend

# In the test build that csrc/tests/emulator/run makes, tensors on the CPU can take CUDA's kernels.
EMULATED = ["emulated"] if getattr(backend.native_module, "emulates_cuda", False) else []
# Shapes that only cost the emulator time are left to `run --full`.
REDUCED = bool(EMULATED) and not os.environ.get("SPANBERT_EMULATOR_FULL")
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


def assert_same_up_to_order(mode: str, value: torch.Tensor, expected: torch.Tensor) -> None:
    """Of a view and its copy: a GPU may read them in another order (csrc/ops.h), a CPU may not."""
    if mode == "native":
        assert torch.equal(value, expected)
    else:
        torch.testing.assert_close(value, expected)


def refuses(error, match: str):
    """`pytest.raises` for numbers that are wrong. On the GPU path nothing reads them on the host:
    the kernel's assertion, or torch's, names them instead."""
    if os.environ.get("SPANBERT_EXT_BACKEND") != "emulated":
        return pytest.raises(error, match=match)
    errors = (*(error if isinstance(error, tuple) else (error,)), RuntimeError)
    return pytest.raises(errors, match=f"{match}|emulator: kernel .* assertion|must (lie|start)")
