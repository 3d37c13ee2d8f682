"""The measurements of `benchmarks.gpu`, one a process: `python -m benchmarks.gpu_parts NAME`.

`--device cpu --quick` runs the same code at tiny sizes on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import floors, records, workloads
from benchmarks.bench_cross_entropy import loss_case
from benchmarks.bench_masking import masking_case
from benchmarks.bench_sbo import gelu_layer_norm_case, sbo_case
from benchmarks.bench_step import part_rows, step_case
from benchmarks.harness import Case, Race, Variant
from spanbert_ext.step_timer import PretrainStep

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
    step = PretrainStep(config, 8, length, torch.device(session.device), precision)
    step()
    if session.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    step()
    print("the step read nothing back")


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
    """The head at base and large width, then its activation and normalisation alone."""
    for hidden in (768, 1024) if not session.quick else (64,):
        for rows in (64, 256) if not session.quick else (2,):
            compiled = not session.quick
            session.measure("sbo", sbo_case(rows, hidden, "bf16", session.device, compiled), 1.0)
        rows = session.size(_TARGETS_PER_ROW * 256, 64)
        case = gelu_layer_norm_case(rows, hidden, "bf16", session.device)
        session.measure("gelu_layer_norm", case, 0.5)


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


def _measure_step(session: Session, preset: str, rows: int, **options) -> None:
    changes = _SMOKE if session.quick else {}
    rows = session.size(rows, 2)
    precision = "bf16"
    case = step_case(preset, rows, precision, session.device, **options, **changes)
    session.measure("step", case, 8.0)
    if case.variants[0].name == "ours":
        records.append(session.out / "step.csv", part_rows(case, 2 if session.quick else 5))


def measure_step_base(session: Session) -> None:
    """BERT-base, 256 rows: the fast mode with all peers, then the published dropout."""
    named = ("transformers", "transformers_compiled", "assembly")
    named = named[: session.size(3, 1)]
    _measure_step(session, "base", 256, named_peers=named, packed=True)
    _measure_step(session, "base", 256, attention_dropout=0.1, named_peers=named[:1])


def measure_step_large(session: Session) -> None:
    """BERT-large, 128 rows."""
    named = ("transformers", "transformers_compiled", "assembly")
    _measure_step(session, "large", 128, named_peers=named[: session.size(3, 1)])


def measure_step_small(session: Session) -> None:
    """BERT-base, 8 rows, where the host's part counts."""
    named = ("transformers", "transformers_graphs")
    _measure_step(session, "base", 8, named_peers=named[: session.size(2, 1)])


def measure_step_original(session: Session) -> None:
    """The original's arithmetic at the largest batch that fits."""
    _measure_step(session, "base", 64, named_peers=("original",), ours=False)


def measure_attention(session: Session) -> None:
    """Fused attention, forward and backward, with and without dropout."""
    batch, length = session.size(256, 2), session.size(512, 16)
    q, k, v = (_random(session, batch, 12, length, 64).requires_grad_() for _ in range(3))
    grad = _random(session, batch, 12, length, 64)
    cu_seqlens = torch.arange(0, (batch + 1) * length, length, device=session.device).int()
    for dropout in (0.0, 0.1):
        variants = []
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            run = partial(_attend, q, k, v, grad, getattr(SDPBackend, backend), dropout)
            variants.append(Variant(backend.lower(), run))
        if dropout == 0:
            variants.append(Variant("varlen", partial(_attend_varlen, q, k, v, grad, cu_seqlens)))
        variants = [variant for variant in variants if _usable(variant)]
        # Two products forward and five backward, each 2 B h T^2 D.
        flops = 7 * 2.0 * batch * 12 * length**2 * 64
        shapes = {"rows": batch, "heads": 12, "length": length, "width": 64, "dropout": dropout}
        case = Case("attention", shapes, batch, "rows", "bf16", variants, device=session.device)
        case.floor_us = floors.floor_us(session.device, "bf16", flops=flops)
        if variants:
            session.measure("attention", case, 1.0)


def _attend(q, k, v, grad, backend, dropout):
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return torch.autograd.grad(out, (q, k, v), grad)


def _attend_varlen(q, k, v, grad, cu_seqlens):
    from torch.nn.attention.varlen import varlen_attn

    length = q.shape[2]
    streams = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    out = varlen_attn(*streams, cu_seqlens, cu_seqlens, length, length)
    return torch.autograd.grad(out, (q, k, v), grad.transpose(1, 2).flatten(0, 1))


def _usable(variant: Variant) -> bool:
    """Whether this machine has it; the reason is printed if not."""
    try:
        variant.run()
    except (RuntimeError, ImportError) as error:
        print(f"{variant.name}: {error}")
        return False
    return True


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
    """Run one part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    PARTS[given.part](Session(given.out, given.device, given.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
