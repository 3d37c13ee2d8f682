"""What the CUDA tests share: devices, the sync check, and how operations are called."""

import contextlib
import os

import torch
from sbo_cases import make_head, padded_formula, run
from strategies import assert_as_good_as_torch, randn, text_batch

from spanbert_ext import MaskedBatch
from spanbert_ext.ops import backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# How compute-sanitizer is run: it slows kernels a hundredfold, and every release of memory waits.
UNCACHED = bool(os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"))
# Chunks that one lap of the sums over chunks adds (kChunkLanes in csrc/cuda/group.cuh).
LAP = 16


@contextlib.contextmanager
def no_waiting(device: str):
    """Whatever waits for the GPU raises."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def moved(arguments, device: str) -> list:
    """Detached copies of the tensors among `arguments` on a device; the rest as it is."""
    return [a.detach().clone().to(device) if isinstance(a, torch.Tensor) else a for a in arguments]


def tuple_of(outputs) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def operation(name: str):
    return getattr(torch.ops.spanbert_ext, name)


def check_head(device: str, dtype: torch.dtype, size: int, batch: MaskedBatch) -> None:
    """SBOHead of a batch: values and gradients at most twice as far from float64 as the padded
    formula in torch."""
    batch = batch.to(device)
    hidden = randn(batch.labels.numel(), size, seed=1).to(device, dtype)
    grad = randn(batch.sbo_ids.shape[0], size, seed=2).to(device, dtype)

    def head():
        return make_head(size, dtype=dtype).to(device)

    ours = run(lambda h, b, m: m(h, b), hidden, batch, head(), grad)
    own = run(padded_formula, hidden, batch, head(), grad)
    exact = run(padded_formula, hidden.double(), batch, head().double(), grad.double())
    for name, value in ours.items():
        assert_as_good_as_torch(value, own[name], exact[name], name)


def many_spans() -> MaskedBatch:
    """More spans than one lap of the sums over chunks adds."""
    batch = text_batch(rows=40, width=200)
    spans = int((batch.span_right > batch.span_left).sum())
    assert spans > LAP * backend.native_module.spans_per_chunk
    return batch
