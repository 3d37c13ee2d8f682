"""Which implementation runs: the modes, what they say, and what they do without the native
module."""

import ast
import logging
from pathlib import Path

import pytest
import torch
from strategies import make_masker, run_python

from spanbert_ext.model.attention import attention_path
from spanbert_ext.model.sbo import SBOHead
from spanbert_ext.ops import backend
from spanbert_ext.ops.cross_entropy import _chunk_rows, _padded_vocabulary
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.registration import check_range, place, readable

CPU, META = torch.device("cpu"), torch.device("meta")


def test_native_runs_here(force_backend):
    """The suite means nothing if the native module is not there."""
    force_backend("native")
    assert backend.use_native(CPU)
    assert backend.name(CPU) in {"native/avx512", "native/avx2", "native/baseline"}


def test_reference_mode(force_backend):
    force_backend("reference")
    assert not backend.use_native(CPU)
    assert backend.name(CPU) == "reference"


def test_reference_is_what_runs_when_asked(force_backend, monkeypatch):
    force_backend("reference")
    called = []
    monkeypatch.setattr(reference, "sbo_forward", lambda *a: called.append(a) or a[0][:0])
    SBOHead(4)(torch.zeros(1, 6, 4), make_masker()(torch.zeros(1, 6, dtype=torch.int64)))
    assert called


def test_auto_is_the_default_and_chooses_native(monkeypatch, force_backend):
    force_backend("auto")
    monkeypatch.delenv("SPANBERT_EXT_BACKEND")
    backend.reset()
    assert backend.mode() == "auto"
    assert backend.use_native(CPU)


@pytest.mark.parametrize("value", ["Native", "cuda", "", "1"])
def test_unknown_mode(force_backend, value):
    force_backend(value)
    with pytest.raises(
        ValueError, match=f"SPANBERT_EXT_BACKEND.*auto, native, reference.*{value!r}"
    ):
        backend.use_native(CPU)
    with pytest.raises(ValueError, match="SPANBERT_EXT_BACKEND"):
        make_masker()(torch.zeros(1, 4, dtype=torch.int64))


def test_native_mode_raises_with_the_reason_where_it_cannot_run(force_backend, monkeypatch):
    force_backend("native")
    with pytest.raises(RuntimeError, match="SPANBERT_EXT_BACKEND=native, but.*'meta'"):
        backend.use_native(META)
    monkeypatch.setattr(backend, "native_module", None)
    monkeypatch.setattr(backend, "_load_error", "libgomp.so.1: cannot open shared object file")
    backend.reset()
    with pytest.raises(RuntimeError, match=r"did not load \(libgomp.*\).*pip install"):
        make_masker()(torch.zeros(1, 4, dtype=torch.int64))


def test_a_source_tree_that_hides_the_package_is_named(force_backend, monkeypatch, tmp_path):
    """Installing again, the usual advice, would change nothing there."""
    monkeypatch.setattr(backend, "native_module", None)
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "spanbert_ext" / "ops" / "backend.py"))
    assert "--force-reinstall" in backend.obstacle("cpu")
    (tmp_path / "setup.py").touch()
    assert f"{tmp_path} is a source tree" in backend.obstacle("cpu")


def test_auto_mode_says_once_what_it_chose_and_why(force_backend, monkeypatch, caplog):
    force_backend("auto")
    monkeypatch.setattr(backend, "native_module", None)
    monkeypatch.setattr(backend, "_load_error", "no such file")
    with caplog.at_level(logging.INFO, logger="spanbert_ext"):
        for _ in range(3):
            make_masker()(torch.zeros(1, 4, dtype=torch.int64))
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert record.levelno == logging.WARNING
    assert "reference path on cpu" in record.getMessage() and "no such file" in record.getMessage()


@pytest.mark.parametrize("mode, code", [("auto", 0), ("reference", 0), ("native", 1)])
def test_without_the_native_module(mode, code):
    """A real process whose import of `_C` fails: reference mode is silent, auto warns, native
    refuses."""
    child = run_python(
        """
import sys
sys.modules["spanbert_ext._C"] = None
import torch
from spanbert_ext import SpanMasker, SBOHead, linear_cross_entropy
batch = SpanMasker([True] * 30, [0, 1], 1, mask_ratio=0.5)(torch.arange(2, 30)[None])
rows = SBOHead(4)(torch.zeros(1, 28, 4), batch)
linear_cross_entropy(rows, torch.zeros(30, 4), batch.sbo_ids)
from spanbert_ext.ops import backend
print(backend.name(torch.device("cpu")), len(backend.describe()))
""",
        SPANBERT_EXT_BACKEND=mode,
    )
    assert child.returncode == code, child.stderr
    said = child.stderr.count("did not load")
    assert said == {"auto": 1, "reference": 0, "native": 1}[mode], child.stderr
    if code == 0:
        assert child.stdout.split() == ["reference", "3"]
    else:
        assert (
            "RuntimeError: SPANBERT_EXT_BACKEND=native" in child.stderr
            and "pip install" in child.stderr
        )


def test_without_a_cuda_build(force_backend, monkeypatch):
    class Module:
        has_cuda = False
        cpu_isa = "avx2"
        no_cuda_reason = "/opt/nvcc: CUDA 11.2 is too old: 11.8 or newer is needed"

    monkeypatch.setattr(backend, "native_module", Module)
    assert "without CUDA (/opt/nvcc: CUDA 11.2 is too old" in backend.obstacle("cuda")
    assert "put a working nvcc on PATH" in backend.obstacle("cuda")


@pytest.mark.parametrize(
    "built, capability, has_code",
    [
        ("80-real,90-real,100-real,120", (7, 5), False),
        ("80-real,90-real,100-real,120", (8, 0), True),
        ("80-real,90-real,100-real,120", (8, 9), True),  # machine code of the same major version
        ("80-real,90-real,100-real,120", (9, 0), True),
        ("80-real,90-real,100-real,120", (11, 0), False),  # PTX is there for 12.0 only
        ("80-real,90-real,100-real,120", (12, 1), True),
        ("80-real,90-real,100-real,120", (13, 0), True),
        ("90", (10, 0), True),  # PTX of 9.0
        ("90-real", (10, 0), False),
        ("90-virtual", (9, 0), True),
        ("native", (9, 0), True),
    ],
)
def test_a_gpu_without_code_for_it(monkeypatch, built, capability, has_code):
    class Module:
        has_cuda = True
        cuda_architectures = built

    monkeypatch.setattr(backend, "native_module", Module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert (backend.obstacle("cuda") == "") == has_code
    assert has_code or built in backend.obstacle("cuda")


@pytest.fixture
def one_old_gpu(monkeypatch):
    """A build for 8.0 and newer on a machine with a 9.0, a 7.5 and a 8.6."""

    class Module:
        has_cuda, cuda_architectures, cpu_isa = True, "80-real,90-real,100-real,120", "avx2"
        no_openmp_reason = ""

    capabilities = [(9, 0), (7, 5), (8, 6)]
    monkeypatch.setattr(backend, "native_module", Module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


def test_one_old_gpu_leaves_native_code_to_the_others(one_old_gpu, force_backend, caplog):
    force_backend("auto")
    gpus = [torch.device("cuda", i) for i in range(3)]
    with caplog.at_level(logging.WARNING, logger="spanbert_ext"):
        for _ in range(2):
            assert [backend.use_native(gpu) for gpu in gpus] == [True, False, True]
    (record,) = caplog.records
    assert "reference path on cuda:1: GPU 1 has compute capability (7, 5)" in record.getMessage()
    assert [backend.name(gpu) for gpu in gpus] == ["native/cuda", "reference", "native/cuda"]
    states = {part: state for part, state, _ in backend.describe()}
    assert states["native cuda:0"] == states["native cuda:2"] == "available"
    assert states["native cuda:1"] == "unavailable"


def test_native_mode_refuses_the_old_gpu_alone(one_old_gpu, force_backend):
    force_backend("native")
    assert backend.use_native(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="SPANBERT_EXT_BACKEND=native, but GPU 1.*7, 5"):
        backend.use_native(torch.device("cuda", 1))


def test_a_gpu_without_index_is_the_current_one(one_old_gpu, force_backend, monkeypatch):
    force_backend("auto")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for current, native in ((0, True), (1, False), (2, True)):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        assert backend.use_native(torch.device("cuda")) == native


def test_describe_names_both_devices(force_backend):
    force_backend("auto")
    rows = backend.describe()
    assert [part for part, _, _ in rows] == ["backend mode", "native cpu", "native cuda"]
    assert rows[0][1] == "auto"
    assert rows[1][1] == "available" and "native/" in rows[1][2]


def test_describe_says_what_the_build_left_out_and_why(force_backend, monkeypatch):
    class Module:
        has_cuda = False
        cpu_isa = "avx2"
        no_cuda_reason = "no nvcc was found"
        no_openmp_reason = ""

    force_backend("auto")
    monkeypatch.setattr(backend, "native_module", Module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu, cuda = backend.describe()[1:]
    assert cpu == ("native cpu", "available", "operations run as native/avx2")
    assert cuda == ("native cuda", "not compiled in", "no nvcc was found; the CPU does all work")
    Module.no_openmp_reason = "OpenMP was not found: install it"
    assert backend.describe()[1][2].endswith("in one thread: OpenMP was not found: install it")
    Module.has_cuda = True
    assert backend.describe()[2][1:] == ("compiled in, no GPU here", "the CPU does all work")


def test_the_module_tells_why_parts_are_missing():
    module = backend.native_module
    assert module.has_cuda == (module.no_cuda_reason == "")
    assert isinstance(module.no_openmp_reason, str)


def test_torch_takes_no_part_in_the_native_module():
    """One build for every torch: `_C` imports where torch cannot."""
    child = run_python(
        "import sys, importlib.util\n"
        f"path = {backend.native_module.__file__!r}\n"
        "sys.modules['torch'] = None\n"
        "spec = importlib.util.spec_from_file_location('spanbert_ext._C', path)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.cpu_isa, any('torch' in line for line in open('/proc/self/maps')))\n"
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split()[1] == "False"


# Emulated ----------------------------------------------------------------------------------------


def test_emulated_needs_the_test_build(force_backend, monkeypatch):
    class Module:
        __file__ = "spanbert_ext/_C.so"

    monkeypatch.setattr(backend, "native_module", Module)
    force_backend("emulated")
    for decide in (backend.use_native, backend.cuda_path):
        with pytest.raises(RuntimeError, match=r"csrc/tests/emulator/run makes.*_C\.so"):
            decide(CPU)


class EmulatingModule:
    emulates_cuda = True
    cpu_isa = "baseline"

    @staticmethod
    def Place(device, stream):
        return device, stream


def test_emulated_tensors_take_the_decisions_of_a_gpu(force_backend, monkeypatch):
    values = torch.zeros(2)
    native = place(values)
    assert readable(values) and not backend.cuda_path(CPU)
    assert _chunk_rows(1 << 20, CPU) == 128 and _padded_vocabulary(torch.ones(5, 2)).shape == (5, 2)
    monkeypatch.setattr(backend, "native_module", EmulatingModule)
    monkeypatch.setitem(backend._CPU_MULTIPLIES, torch.bfloat16, False)
    assert place(values) == (-1, 0) and native is not None
    assert backend.product_dtype(CPU, torch.bfloat16) == torch.float32
    force_backend("emulated")
    assert backend.use_native(CPU) and backend.cuda_path(CPU)
    assert backend.name(CPU) == "emulated/cuda"
    assert place(values) == (0, 0) and not readable(values)
    assert backend.product_dtype(CPU, torch.bfloat16) == torch.bfloat16
    assert attention_path(torch.zeros(1, 2, 8, dtype=torch.bfloat16), 0.0) == "blocks"
    assert _chunk_rows(1 << 20, CPU) == 1024
    assert _padded_vocabulary(torch.ones(5, 2)).shape == (128, 2)
    with pytest.raises(RuntimeError, match="takes tensors on the CPU"):
        backend.use_native(torch.device("cuda", 0))


def test_emulated_checks_launch_nothing_that_a_kernel_asserts(force_backend, monkeypatch):
    force_backend("emulated")
    monkeypatch.setattr(backend, "native_module", EmulatingModule)
    index, launched = torch.tensor([0, 7]), []
    monkeypatch.setattr(torch, "_assert_async", lambda *said: launched.append(said))
    check_range("index", index, 5, kernel_asserts=True)
    assert not launched
    check_range("index", index, 5)
    ((fine, said),) = launched
    assert not bool(fine) and said == "index must lie in [0, 5)"


# Where a file compares a device's type, it speaks of the device itself, not of an algorithm.
ABOUT_DEVICES = {
    "ops/attention_weights.py": "an operation that only the CPU has",
    "model/attention.py": "torch's varlen kernel exists on GPUs alone",
    "ops/registration.py": "the stream, and what the host can read",
    "cli/bench.py": "names, memory and synchronisation of a GPU",
    "model/products.py": "torch's mkldnn exists on the CPU alone",
    "masking/sample_ids.py": "capture of a graph",
    "training/step_timer.py": "events of a GPU",
    "training/graphed_step.py": "capture of a graph",
    "training/models.py": "which GPUs there are",
    "training/optimizer.py": "float64, which not every accelerator has",
    "training/pretrain_batches.py": "pinned memory, memory of a GPU, shapes on any accelerator",
    "training/resident.py": "pinned memory",
    "training/run.py": "one GPU a process, threads of the host",
    "training/run_log.py": "memory of a GPU",
    "training/run_step.py": "capture of a graph",
    "training/state.py": "generators of a GPU",
    "tasks/coref/predictor.py": "precision that the CPU is slow in",
    "tasks/heads.py": "what the host can read",
}


def compares_device_types(node: ast.Compare) -> bool:
    """Whether the type of a device is compared with a kind of device, in whichever order."""
    sides = [node.left, *node.comparators]
    words = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
    return bool(words & {"cuda", "cpu"}) and any(
        isinstance(side, ast.Attribute) and side.attr == "type" for side in sides
    )


def test_only_the_back_end_chooses_algorithms():
    """Else the emulated path would be another than a GPU's."""
    package = Path(backend.__file__).resolve().parents[1]
    compares = set()
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name == "ops/backend.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                asks = node.attr in ("is_cuda", "is_cpu", "get_device")
                assert not asks, f"{name}:{node.lineno}: ask ops/backend.py"
            if isinstance(node, ast.Compare) and compares_device_types(node):
                compares.add(name)
    assert compares == set(ABOUT_DEVICES)


@pytest.mark.parametrize(
    "code", ["x.device.type == 'cuda'", "'cpu' != d.type", "d.type in ('cuda', 'xpu')"]
)
def test_comparisons_of_a_device_are_seen(code):
    assert compares_device_types(ast.parse(code, mode="eval").body)
    assert not compares_device_types(ast.parse("span.type == kind", mode="eval").body)
