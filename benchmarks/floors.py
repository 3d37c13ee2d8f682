"""Shortest possible times: operations over the measured rate of matrix products, bytes over the
measured rate of copies. The larger one is the floor of an operation.
"""

from __future__ import annotations

import functools
import time

import torch

from benchmarks.clocks import use_threads
from benchmarks.harness import DTYPES, Case, Variant

_GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}


def use_small_ceilings() -> None:
    """For smoke runs, whose numbers mean nothing."""
    _GEMM_SIDE.update(cpu=128, cuda=512)
    _COPY_BYTES.update(cpu=1 << 20, cuda=1 << 24)


@functools.cache
def gemm_rate(device: str, dtype: str, threads: int | None = None) -> float:
    """FLOP/s of torch's square product on random numbers, best of five."""
    run, flops = _gemm(device, dtype)
    return flops / _best(run, device, threads)


@functools.cache
def copy_rate(device: str, threads: int | None = None) -> float:
    """Bytes read plus bytes written in a second by a large copy, best of five."""
    run, moved = _copy(device)
    return moved / _best(run, device, threads)


def floor_us(
    device: str, dtype: str, flops: float = 0, moved: float = 0, threads: int | None = None
) -> float:
    """Microseconds no version of the work can beat on this machine."""
    bounds = [0.0]
    if flops:
        # Where a CPU multiplies fp32 faster, nothing forces 16-bit inputs to stay 16-bit.
        dtypes = {dtype, "fp32"} if device == "cpu" else {dtype}
        bounds.append(flops / max(gemm_rate(device, kind, threads) for kind in dtypes))
    if moved:
        bounds.append(moved / copy_rate(device, threads))
    return 1e6 * max(bounds)


def ceiling_cases(device: str) -> list[Case]:
    """The two ceilings as rows of their own."""
    cases = []
    for dtype in DTYPES:
        run, flops = _gemm(device, dtype)
        case = Case("gemm", {"side": _GEMM_SIDE[device]}, flops, "flop", dtype, [])
        cases.append(_alone(case, run, device))
    run, moved = _copy(device)
    cases.append(_alone(Case("copy", {"bytes": moved}, moved, "byte", "uint8", []), run, device))
    return cases


def _alone(case: Case, run, device: str) -> Case:
    case.variants, case.device, case.budget_s = [Variant("torch", run)], device, 1.0
    return case


def _gemm(device: str, dtype: str):
    side = _GEMM_SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    return lambda: a @ b, 2.0 * side**3


def _copy(device: str):
    # Random bytes: constant ones can move faster than data does.
    source = torch.randint(0, 255, (_COPY_BYTES[device] // 2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel()


def _best(run, device: str, threads: int | None) -> float:
    times = []
    with use_threads(threads):
        for _ in range(6):
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return min(times[1:])


def masker_bytes(rows: int, length: int, targets: int, spans: int, id_bytes: int = 8) -> int:
    """Ids read and written, labels written, five lists of targets, two of spans."""
    return rows * length * (2 * id_bytes + 8) + 8 * (5 * targets + 2 * spans)


def sbo_flops(spans: int, targets: int, hidden: int) -> int:
    """Forward and backward of both layers with the first one on spans: 6 (2 S H^2 + n H^2)."""
    return 6 * (2 * spans + targets) * hidden * hidden


def vocabulary_flops(rows: int, hidden: int, vocab_size: int) -> int:
    """Logits, gradient of the rows, gradient of the embedding."""
    return 6 * rows * hidden * vocab_size


def step_flops(
    layers: int, hidden: int, length: int, vocab_size: int, spans=20, targets=76, masked=77
) -> float:
    """Useful operations of one row of a pre-training step: encoder, both heads, forward and
    backward, every layer on every token.
    """
    encoder = layers * (72 * hidden**2 * length + 12 * length**2 * hidden)
    heads = vocabulary_flops(masked + targets, hidden, vocab_size) + 6 * masked * hidden**2
    return encoder + heads + sbo_flops(spans, targets, hidden)
