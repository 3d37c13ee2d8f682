"""How everything is measured: check, warm up, then take turns; medians; one CSV row per variant.

In every round each variant runs once, so that whatever else the machine does meets all of them
alike. Before each sample the caches are filled with something else ("cold", what a call sees in the
middle of a training step) unless the variant asks for "warm". The clock is the host's on a CPU and
device events on a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.clocks import clock, extra_bytes, graphed, use_threads

# Largest relative error ||x - reference|| / ||reference|| of a result that counts as right.
ERROR_LIMIT = {"fp32": 1e-4, "bf16": 2e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FLUSH_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # more than the caches one process can fill


@dataclass
class Variant:
    """One way to compute a case.

    Args:
        name: "ours", or what a user could pick instead.
        run: computes the case once and returns its results, a tensor or a sequence of tensors.
        canonical: what `run` returned -> the tensors of the case's reference.
        samples: at most this many timed calls; None: as many as there are rounds.
        inner: calls per sample, for work too short for the clock.
        cache: "cold" or "warm".
        capture: whether it can be one CUDA graph, where the case asks for graphs.
        note: what the reader of the row should know.
    """

    name: str
    run: Callable[[], object]
    canonical: Callable[[object], object] = lambda outputs: outputs
    samples: int | None = None
    inner: int = 1
    cache: str = "cold"
    capture: bool = True
    note: str = ""


@dataclass
class Case:
    """What is computed: an operation at one size.

    Args:
        op: name of the operation.
        shapes: dimension -> size, for people.
        size, size_unit: the size that the cost should be proportional to.
        dtype: "fp32", "bf16" or "int64".
        variants: the first one is ours.
        reference: results every variant must give; None if nothing is compared.
        floor_us: shortest possible time.
        threads: of the CPU; None leaves the number alone.
        budget_s, min_samples: rounds go on for about so long, but never fewer than so many.
        measure_memory: record the memory of one call.
        graphs: on a GPU, replay each variant as a CUDA graph: the kernels count, not the host.
    """

    op: str
    shapes: dict[str, int | str]
    size: float
    size_unit: str
    dtype: str
    variants: list[Variant]
    reference: Sequence[torch.Tensor] | None = None
    floor_us: float | None = None
    device: str = "cpu"
    threads: int | None = None
    budget_s: float = 4.0
    min_samples: int = 5
    measure_memory: bool = False
    graphs: bool = False


@dataclass
class Timing:
    """Samples of one variant, in seconds per call, and what was found while checking it."""

    seconds: list[float] = field(default_factory=list)
    rel_error: float | None = None
    extra_bytes: int | None = None
    estimate: float = 0.0
    fault: str = ""

    def quantile_us(self, share: float) -> float | None:
        """Quantile by linear interpolation, in microseconds; None without samples."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        place = share * (len(ordered) - 1)
        low, high = math.floor(place), math.ceil(place)
        return 1e6 * (ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def sizes(full: Sequence[int], quick: Sequence[int]) -> Callable[[Callable], Callable]:
    """Decorates a benchmark: values of its argument `size` in a full and in a smoke run."""

    def mark(function: Callable) -> Callable:
        function.sizes = {"full": full, "quick": quick}
        return function

    return mark


def as_tensors(outputs: object) -> list[torch.Tensor]:
    """The tensors a variant returned."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def relative_error(outputs: object, reference: Sequence[torch.Tensor]) -> float:
    """Largest ||x - r|| / ||r|| over the results; NaN where a result holds one."""
    errors = []
    for value, exact in zip(as_tensors(outputs), reference, strict=True):
        difference = (value.detach().float() - exact.float()).norm()
        errors.append(float(difference / exact.float().norm().clamp(min=1e-30)))
    return math.nan if any(map(math.isnan, errors)) else max(errors)


class Race:
    """Checks and times the variants of a case in turns.

    Raises:
        AssertionError: our variant gives a wrong result. A wrong peer is timed and its error
            recorded.
    """

    def __init__(self, case: Case):
        self.case = case
        self.timings = [Timing() for _ in case.variants]
        self._flush = torch.empty(_FLUSH_BYTES[case.device], dtype=torch.uint8, device=case.device)
        self._turn = 0
        with use_threads(case.threads):
            for variant, timing in zip(case.variants, self.timings, strict=True):
                self._prepare(variant, timing)
        self.rounds = self._rounds()

    def _prepare(self, variant: Variant, timing: Timing) -> None:
        """First two calls, not among the samples: result, memory, an estimate of the time."""
        try:
            if self.case.graphs and self.case.device == "cuda":
                _capture(variant)
            outputs = variant.run()
            if self.case.reference is not None:
                found = variant.canonical(outputs)
                timing.rel_error = relative_error(found, self.case.reference)
            del outputs
            self._second_call(variant, timing)
        except torch.OutOfMemoryError:
            # A peer that does not fit is a result; ours must fit.
            if variant is self.case.variants[0]:
                raise
            timing.fault = "out of memory"
        if variant.name == "ours" and self.case.reference is not None:
            limit = ERROR_LIMIT[self.case.dtype]
            # Written so that NaN fails.
            assert timing.rel_error <= limit, (
                f"{self.case.op} {self.case.shapes}: relative error {timing.rel_error:.2e}, "
                f"at most {limit:.0e} is right"
            )

    def _second_call(self, variant: Variant, timing: Timing) -> None:
        on_gpu = self.case.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what this variant cached is not the next one's
        began = time.perf_counter()
        if self.case.measure_memory:
            timing.extra_bytes = extra_bytes(variant.run, self.case.device)
        else:
            variant.run()
        if on_gpu:
            torch.cuda.synchronize()
        timing.estimate = time.perf_counter() - began

    def _rounds(self) -> int:
        spent, uncapped = 0.0, 0.0
        for variant, timing in zip(self.case.variants, self.timings, strict=True):
            if timing.fault:
                continue
            if variant.samples is None:
                uncapped += timing.estimate * variant.inner
            else:
                spent += timing.estimate * variant.inner * variant.samples
        fitting = (self.case.budget_s - spent) / max(uncapped, 1e-6)
        return int(min(max(fitting, self.case.min_samples), 10 * self.case.min_samples))

    def _fill_caches(self, variant: Variant) -> None:
        if variant.cache == "cold":
            self._flush.zero_()
        else:
            variant.run()

    def _sample(self, index: int) -> None:
        """Time one variant once."""
        variant, timing = self.case.variants[index], self.timings[index]
        if timing.fault or not self._due(variant):
            return
        if index:
            self._fill_caches(variant)
        with use_threads(self.case.threads):
            seconds = clock(self.case.device)(variant.run, variant.inner)
        timing.seconds.append(seconds / variant.inner)

    def _due(self, variant: Variant) -> bool:
        """Spreads the samples of a capped variant evenly over the rounds."""
        if variant.samples is None or variant.samples >= self.rounds:
            return True
        share = variant.samples / self.rounds
        return math.floor((self._turn + 1) * share) > math.floor(self._turn * share)

    def peers_turn(self) -> None:
        """Times every variant but ours, and prepares the caches for ours."""
        peers = list(range(1, len(self.case.variants)))
        first = self._turn % max(1, len(peers))
        for index in peers[first:] + peers[:first]:
            self._sample(index)
        self._fill_caches(self.case.variants[0])

    def our_turn(self) -> None:
        """Times ours and ends the round."""
        self._sample(0)
        self._turn += 1

    def run(self) -> list[Timing]:
        """All rounds."""
        for _ in range(self.rounds):
            self.peers_turn()
            self.our_turn()
        return self.timings


def _capture(variant: Variant) -> None:
    """Make a variant one CUDA graph; one that reads back in between stays as it is."""
    if not variant.capture:
        return
    try:
        variant.run = graphed(variant.run)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = f"not capturable: {str(error).splitlines()[0]}"
        variant.note = f"{variant.note}; {reason}" if variant.note else reason
