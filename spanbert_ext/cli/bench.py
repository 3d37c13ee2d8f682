"""`spanbert bench`: how fast this machine pre-trains, and where the time goes. Torch is loaded when
it runs, not for its help.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from spanbert_ext.device import peak_memory
from spanbert_ext.errors import ConfigError
from spanbert_ext.training.presets import PRESETS

_ROWS = {"cpu": 2, "cuda": 64}


@dataclass(frozen=True)
class BenchConfig:
    """What to measure; the defaults are BERT-base on full rows.

    Args:
        preset: size of the model.
        rows: rows of a batch; null means 2 on a CPU and 64 on a GPU.
        max_length: tokens of a row.
        steps: timed updates, after two that are not timed.
        precision: bf16 or fp32 for the matrix products; auto as in training.
        device: auto, cpu, cuda or cuda:N.
        dropout: dropout on embeddings and sublayer outputs.
        attention_dropout: dropout on attention probabilities; published runs use 0.1, without it
            faster attention can be used.
        vocab_size: pieces of the vocabulary.
        graph: replay the step as CUDA graphs; auto does so on a GPU.
        compile: run the model through torch.compile, which takes a minute or two at the start; auto
            does not.
    """

    preset: Literal["tiny", "mini", "small", "base", "large"] = "base"
    rows: int | None = None
    max_length: int = 512
    steps: int = 5
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    vocab_size: int = 28996
    graph: Literal["auto", "on", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = []
        if self.preset not in PRESETS:
            faults.append(f"preset: must be one of {', '.join(PRESETS)}; got {self.preset}")
        for name, low, high in (
            ("rows", 1, None), ("max_length", 8, 512), ("steps", 1, None), ("vocab_size", 32, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                upper = "" if high is None else f" and at most {high}"
                faults.append(f"{name}: must be at least {low}{upper}; got {value}")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                faults.append(f"{name}: must lie in [0, 1); got {value}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            faults.append(f"device: must be auto, cpu, cuda or cuda:N; got {self.device!r}")
        if self.graph == "on" and self.device == "cpu":
            faults.append("graph: there are no CUDA graphs on a CPU; device is cpu")
        if faults:
            raise ConfigError("\n".join(faults))


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Args:
        rows: rows of a batch, of `length` tokens each.
        seconds: median time of an update.
        parts: median seconds of each part, in the order of a step.
        peak_bytes: largest memory of torch's allocator on a GPU, of the process on a CPU.
        facts: (name, value) of everything the numbers depend on.
    """

    rows: int
    length: int
    seconds: float
    parts: dict[str, float]
    peak_bytes: int
    facts: tuple[tuple[str, str], ...]


def run(config: BenchConfig, progress: Callable[[str], None] = lambda _: None) -> BenchResult:
    """Measure.

    Args:
        progress: told what is going on, a line at a time.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    from spanbert_ext.model.pretraining import SpanBertConfig
    from spanbert_ext.training.config import RuntimeOptions
    from spanbert_ext.training.models import choose_device, choose_precision
    from spanbert_ext.training.step_timer import PARTS, PretrainStep

    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    rows = config.rows or _ROWS[device.type]
    model = SpanBertConfig(
        **PRESETS[config.preset],
        vocab_size=config.vocab_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
    )
    if config.graph == "on" and device.type != "cuda":
        raise ConfigError("graph: there are no CUDA graphs on a CPU; choose auto or off")
    options = RuntimeOptions(config.graph, config.compile)
    progress(f"{config.preset} model, {rows} rows of {config.max_length} tokens, {precision}")
    step = PretrainStep(model, rows, config.max_length, device, precision, options=options)
    for _ in range(2):
        step.warm_up()
    whole, parts = [], []
    for number in range(config.steps):
        whole.append(_seconds(step, device))
        parts.append(step.parts())
        progress(f"update {number + 1} of {config.steps}: {1e3 * whole[-1]:.4g} ms")
    facts = (
        ("model", f"{config.preset}, {sum(p.numel() for p in step.model.parameters()):,} weights"),
        ("batch", f"{rows} rows of {config.max_length} tokens"),
        ("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"),
        ("threads", str(torch.get_num_threads())),
        ("precision", precision),
        ("dropout", f"{config.dropout:g}, attention {config.attention_dropout:g}"),
        ("back end", _backend_name(device)),
        ("step", step.describe()),
        ("torch", torch.__version__),
    )
    typical = {name: median(found.get(name, 0.0) for found in parts) for name in PARTS}
    return BenchResult(rows, config.max_length, median(whole), typical, _peak_bytes(device), facts)


def report(result: BenchResult) -> str:
    """The result for people."""
    rate = result.rows / result.seconds
    lines = [f"{name:12}{value}" for name, value in result.facts]
    lines += [
        "",
        f"{rate:.3g} rows/s, {rate * result.length:,.0f} tokens/s, "
        f"{1e3 * result.seconds:.4g} ms a step, {result.peak_bytes / 2**30:.2f} GiB at most",
        "",
        "parts, each operation by itself:",
    ]
    total = sum(result.parts.values())
    for name, seconds in result.parts.items():
        share = seconds / total
        bar = "#" * round(40 * share)
        lines.append(f"{name:18}{1e3 * seconds:10.3f} ms {share:6.1%}  {bar}".rstrip())
    return "\n".join(lines)


def _seconds(step, device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _backend_name(device) -> str:
    from spanbert_ext.ops import backend

    return backend.name(device)


def _peak_bytes(device) -> int:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()
