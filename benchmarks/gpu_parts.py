"""The measurements of `benchmarks.gpu`: `python -m benchmarks.gpu_parts NAME [NAME ...]`.

`--device cpu --quick` runs the same code at tiny sizes on any machine.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import floors, records, workloads
from benchmarks.attention_cases import attention_case
from benchmarks.bench_cross_entropy import loss_case
from benchmarks.bench_masking import masking_case
from benchmarks.bench_residual import residual_case
from benchmarks.bench_sbo import sbo_case
from benchmarks.bench_step import OURS, part_rows, step_case
from benchmarks.harness import Case, Race, Variant
from spanbert_ext.training.step_timer import PretrainStep

_WITHOUT_GRAPHS = ("ours_eager", "ours_compiled")
_COMPILED_PEERS = ("transformers_compiled", "assembly")
_TARGETS_PER_ROW = 153  # 77 of the masked language model, 76 of the SBO
_SMOKE = {
    "length": 32, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
    "intermediate_size": 64,
}  # fmt: skip


class Session:
    """Where a part measures and writes.

    Args:
        device: cuda, or cpu for a smoke run.
        quick: tiny sizes, two samples.
    """

    def __init__(self, out: Path, device: str, quick: bool):
        self.out, self.device, self.quick = out, device, quick
        if quick:
            floors.use_small_ceilings()

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    def measure(self, question: str, case: Case, budget_s: float) -> None:
        """Race a case and write its rows at once."""
        case.budget_s, case.min_samples = (0.1, 2) if self.quick else (budget_s, case.min_samples)
        rows = records.rows_of(case, Race(case).run())
        records.append(self.out / f"{question}.csv", rows)
        for row in rows:
            print(row["op"], row["shapes"], row["dtype"], row["variant"], row["median_us"], "us")
        if self.device == "cuda":
            torch.cuda.empty_cache()


def measure_sync(session: Session) -> None:
    """A step that waits for the device raises."""
    changes = _SMOKE if session.quick else {}
    length = changes.get("length", workloads.LENGTH)
    fields = {name: size for name, size in changes.items() if name != "length"}
    config = workloads.model_config("base", 0.0, **fields)
    precision = "bf16" if session.device == "cuda" else "fp32"
    for name in ("ours_eager", "ours"):
        step = PretrainStep(
            config, 8, length, torch.device(session.device), precision, options=OURS[name]
        )
        step.warm_up()
        if session.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            step()
        if session.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        print(f"{step.describe()}: nothing was read back; losses {step.losses()}")


def measure_ceilings(session: Session) -> None:
    """Square product and copy, then the products of the model and of the vocabulary."""
    for case in floors.ceiling_cases(session.device):
        session.measure("ceilings", case, 1.0)
    tokens = session.size(256 * 512, 64)
    shapes = [(tokens, n, k) for k in (768, 3072) for n in (768, 2304, 3072)]
    rows = session.size(_TARGETS_PER_ROW * 256, 64)
    shapes += [(rows, n, 768) for n in (workloads.VOCAB, 29056, 29184)]
    for m, n, k in shapes[: session.size(len(shapes), 2)]:
        a, b = (_random(session, *shape) for shape in ((m, k), (n, k)))
        flops = 2.0 * m * n * k
        floor = floors.floor_us(session.device, "bf16", flops=flops)
        run = partial(F.linear, a, b)
        shape = {"m": m, "n": n, "k": k}
        case = Case("gemm_shape", shape, flops, "flop", "bf16", [Variant("torch", run)])
        case.floor_us, case.device = floor, session.device
        session.measure("ceilings", case, 0.3)


def measure_masking(session: Session) -> None:
    """The masker at three batch sizes; peers on one core."""
    for rows in (64, 256, 8192) if not session.quick else (8,):
        session.measure("masking", masking_case(rows, session.device, 1), 1.5)


def measure_sbo(session: Session) -> None:
    """The head at base and large width."""
    for hidden in (768, 1024) if not session.quick else (64,):
        for rows in (64, 256) if not session.quick else (2,):
            compiled = not session.quick
            session.measure("sbo", sbo_case(rows, hidden, "bf16", session.device, compiled), 1.0)


def measure_residual(session: Session) -> None:
    """Dropout, addition and LayerNorm of a layer of base and of large."""
    tokens = session.size(256 * 512, 64)
    for hidden in (768, 1024) if not session.quick else (64,):
        for p in (0.0, 0.1):
            case = residual_case(tokens, hidden, p, "bf16", session.device)
            session.measure("residual", case, 0.3)


def measure_loss(session: Session) -> None:
    """The vocabulary loss; the peers that compile run at the size of the targets only."""
    for hidden in (768, 1024) if not session.quick else (64,):
        for batch in (256, 64) if not session.quick else (1,):
            compiled = hidden == 768 and batch == 256
            vocabulary = session.size(workloads.VOCAB, 1000)
            case = loss_case(
                _TARGETS_PER_ROW * batch, hidden, "bf16", session.device, vocabulary,
                slow_peers=True, compiled=compiled,
            )  # fmt: skip
            session.measure("cross_entropy", case, 2.0)


def measure_warm(session: Session) -> None:
    """Compiles what the step parts compile, so that they find it in torch's cache; writes no row.

    Runs beside the tests, where compiling takes no time from what is measured.
    """
    changes = _SMOKE if session.quick else {}
    for preset, rows in (("base", 256), ("large", 128)):
        case = step_case(
            preset, session.size(rows, 2), "bf16", session.device,
            named_peers=() if session.quick else _COMPILED_PEERS,
            named_ours=("ours_compiled",), **changes,
        )  # fmt: skip
        for variant in case.variants:
            variant.run()
        del case, variant
        _free(session)


def _measure_step(session: Session, preset: str, rows: int, **options) -> None:
    changes = _SMOKE if session.quick else {}
    case = step_case(preset, session.size(rows, 2), "bf16", session.device, **options, **changes)
    session.measure("step", case, 5.0)
    if case.variants[0].name == "ours_eager":
        records.append(session.out / "step.csv", part_rows(case, 2 if session.quick else 5))
    del case
    _free(session)  # what a captured step holds is gone with it


def _free(session: Session) -> None:
    gc.collect()
    if session.device == "cuda":
        torch.cuda.empty_cache()


def _named(session: Session, *names: str) -> tuple[str, ...]:
    """All peers in a full run, the first in a quick one."""
    return names[: session.size(len(names), 1)]


def measure_step_base(session: Session) -> None:
    """BERT-base, 256 rows, without attention dropout: what a run takes, alone, because a captured
    step keeps its memory; then the same without graphs in turns with the peers.
    """
    _measure_step(session, "base", 256)
    named = _named(session, "transformers", *_COMPILED_PEERS)
    _measure_step(session, "base", 256, named_peers=named, named_ours=_WITHOUT_GRAPHS)


def measure_step_large(session: Session) -> None:
    """BERT-large, 128 rows, as for base."""
    _measure_step(session, "large", 128)
    named = _named(session, "transformers", *_COMPILED_PEERS)
    _measure_step(session, "large", 128, named_peers=named, named_ours=_WITHOUT_GRAPHS)


def measure_step_small(session: Session) -> None:
    """BERT-base, 8 rows, where the host's part counts; all fit side by side."""
    kinds = ("ours", "ours_compiled_graph", *_WITHOUT_GRAPHS)
    named = _named(session, "transformers", "transformers_graphs")
    _measure_step(session, "base", 8, named_peers=named, named_ours=kinds)


def measure_step_kinds(session: Session) -> None:
    """Rows packed with several sequences; then graphs and torch.compile together."""
    for name in ("ours_packed", "ours_compiled_graph"):
        _measure_step(session, "base", 256, named_ours=(name,))


def measure_step_dropout(session: Session) -> None:
    """The published attention dropout, 0.1, base and large."""
    for preset, rows in (("base", 256), ("large", 128)):
        _measure_step(session, preset, rows, attention_dropout=0.1)
        options = {"named_ours": ("ours_eager",), "named_peers": ("transformers",)}
        _measure_step(session, preset, rows, attention_dropout=0.1, **options)


def measure_step_original(session: Session) -> None:
    """The original's arithmetic at the largest batch that fits."""
    _measure_step(session, "base", 64, named_peers=("original",), named_ours=())


def measure_attention(session: Session) -> None:
    """Every attention there is, at the shapes of base and large and at a small batch."""
    shapes = [(256, 512, 12, 64), (128, 512, 16, 64), (8, 512, 12, 64)]
    for shape in shapes if not session.quick else [(2, 16, 2, 16)]:
        for dropout in (0.0, 0.1):
            for packed in (False, True):
                case = attention_case(*shape, dropout, packed, session.device)
                if case.variants:
                    session.measure("attention", case, 0.5)
                del case
                _free(session)


def measure_epilogue(session: Session) -> None:
    """Linear, bias and GELU of the feed-forward layer, forward: what an epilogue would save."""
    tokens, hidden = session.size(256 * 512, 64), session.size(768, 32)
    x, weight = _random(session, tokens, hidden), _random(session, 4 * hidden, hidden) * 0.02
    bias = _random(session, 4 * hidden)

    def eager():
        return F.gelu(F.linear(x, weight, bias))

    def epilogue():
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)

    variants = [
        Variant("linear_and_gelu", eager),
        Variant("linear", partial(F.linear, x, weight, bias), note="without GELU"),
        Variant("cublaslt_epilogue", epilogue, note="tanh GELU, no gradient"),
    ]
    if not session.quick:
        variants.append(Variant("compiled", torch.compile(eager, dynamic=False)))
    shapes = {"tokens": tokens, "hidden": hidden, "inner": 4 * hidden}
    flops = 2.0 * tokens * hidden * 4 * hidden
    case = Case("linear_gelu", shapes, tokens, "tokens", "bf16", variants, device=session.device)
    case.floor_us = floors.floor_us(session.device, "bf16", flops=flops)
    session.measure("attention", case, 1.0)


def _random(session: Session, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=session.device, dtype=torch.bfloat16)


PARTS: dict[str, Callable[[Session], None]] = {
    name.removeprefix("measure_"): function
    for name, function in list(globals().items())
    if name.startswith("measure_")
}


def main(words: list[str] | None = None) -> int:
    """Run parts one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", description=__doc__)
    parser.add_argument("parts", choices=sorted(PARTS), nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.parts:
        PARTS[name](Session(given.out, given.device, given.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
