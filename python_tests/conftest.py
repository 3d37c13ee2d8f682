"""What every test file shares: hypothesis settings, the CUDA marker, one thread by default, and the
fixtures that run a test once on every back end.

The emulated back end needs the test build that csrc/tests/emulator/run makes, CUDA needs a GPU.
"""

import os
import sys

import benchmark_cases  # noqa: F401  which makes `benchmarks` importable
import hypothesis
import pytest
from back_ends import EMULATED, GPU

from spanbert_ext.ops import backend as back_end

# Derandomised: the gate gives the same answer for the same code; other seeds are a matter of one
# environment variable.
hypothesis.settings.register_profile(
    "gate",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile(
    "search", hypothesis.settings.get_profile("gate"), derandomize=False
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

_skipped_cuda = []


def _cuda_obstacle() -> str:
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return back_end.obstacle("cuda")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if os.environ.get("SPANBERT_TRY_CUDA"):  # test_gpu_tests.py: up to the first device call
        return
    reason = _cuda_obstacle() if marked else ""
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
        _skipped_cuda.append((len(marked), reason))


def pytest_terminal_summary(terminalreporter):
    for count, reason in _skipped_cuda:
        terminalreporter.write_line(f"CUDA: {count} tests skipped: {reason}")


@pytest.fixture(autouse=True)
def one_thread():
    """Two cores are shared by everybody; tests of threading set their own number."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    yield
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def force_backend(monkeypatch):
    """A function that makes one back end answer from here to the end of the test."""

    def force(mode: str) -> str:
        monkeypatch.setenv("SPANBERT_EXT_BACKEND", mode)
        back_end.reset()
        return mode

    yield force
    monkeypatch.undo()
    back_end.reset()


@pytest.fixture(params=["native", "reference", *EMULATED])
def backend(request, force_backend):
    """For tests of tensors on the CPU: the native core, the reference, the emulated kernels."""
    return force_backend(request.param)


@pytest.fixture(params=["native", *EMULATED])
def core(request, force_backend):
    """As `backend`, without the reference."""
    return force_backend(request.param)


def _device(request, force_backend) -> str:
    force_backend("native" if request.param == "cuda" else request.param)
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=["native", *EMULATED, GPU])
def device(request, force_backend):
    """For tests that move their tensors: the device of the native core, of the emulated kernels and
    of a GPU."""
    return _device(request, force_backend)


@pytest.fixture(params=[*EMULATED, GPU])
def gpu(request, force_backend):
    """As `device`, for what compares with the native core of the CPU."""
    return _device(request, force_backend)


@pytest.fixture
def native_back_end(force_backend):
    """Operations run natively, or say why they cannot."""
    force_backend("native")
