"""What every test file shares: hypothesis settings, the CUDA marker, one thread by default, the
`backend` fixture."""

import os
import sys

import hypothesis
import pytest

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
    from spanbert_ext.ops import backend

    return backend.obstacle("cuda")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
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
    from spanbert_ext.ops import backend

    def force(mode: str) -> str:
        monkeypatch.setenv("SPANBERT_EXT_BACKEND", mode)
        backend.reset()
        return mode

    yield force
    monkeypatch.undo()
    backend.reset()


@pytest.fixture(params=["native", "reference"])
def backend(request, force_backend):
    """Runs a test once with the native core and once with the reference."""
    return force_backend(request.param)


@pytest.fixture
def native_back_end(force_backend):
    """Operations run natively, or say why they cannot."""
    force_backend("native")
