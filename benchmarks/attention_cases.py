"""Which attention is fastest at which shape? Every candidate, forward and backward.

Full rows (one sequence a row) can be served by torch's fused attention on a padded batch; packed
rows need the kernel that takes cu_seqlens ("varlen") or a mask ("blocks"). Candidates are named
after what computes them: `dense_*` ignores borders of sequences, so it is no choice for packed
rows; `varlen` and `blocks_*` are the paths of `spanbert_ext.model.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import floors
from benchmarks.bench_step import packed_lengths
from benchmarks.harness import Case, Variant
from spanbert_ext.model.attention import Packing, attention_path, packed_attention

_BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def attention_case(
    rows: int, length: int, heads: int, width: int, dropout: float, packed: bool, device: str
) -> Case:
    """All candidates that run here on rows of one or of several sequences; inputs in bf16."""
    lengths = packed_lengths(rows, length) if packed else [length] * rows
    borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device)
    shape = (rows * length, heads, width)
    draws = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(*shape, generator=draws, device=device, dtype=torch.bfloat16) for _ in range(4)
    )
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    packing = Packing(borders, length, length)

    def ours(path, backend=None):
        with sdpa_kernel(backend if backend is not None else _all_backends()):
            out = packed_attention(*leaves, borders, packing, dropout, path, length)
            return torch.autograd.grad(out, leaves, grad)

    def dense(backend):
        batch = [x.unflatten(0, (rows, length)).transpose(1, 2) for x in leaves]
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*batch, dropout_p=dropout)
            return torch.autograd.grad(out.transpose(1, 2).flatten(0, 1), leaves, grad)

    named = {}
    if dropout == 0:
        named["varlen"] = partial(ours, "varlen")  # the kernel has no dropout
    for name in _BACKENDS:
        backend = getattr(SDPBackend, name)
        short = name.removesuffix("_ATTENTION").lower()
        if name != "FLASH_ATTENTION":  # takes no mask
            named[f"blocks_{short}"] = partial(ours, "blocks", backend)
        if not packed and name != "MATH":
            named[f"dense_{short}"] = partial(dense, backend)
    chosen = attention_path(q, dropout)
    variants = [Variant(name, run, note=f"a step takes {chosen}") for name, run in named.items()]
    variants = [variant for variant in variants if usable(variant)]
    shapes = {"rows": rows, "length": length, "heads": heads, "width": width, "dropout": dropout}
    shapes["packed"] = int(packed)
    # Two products forward and five backward, each 2 h t^2 D for a sequence of t tokens.
    flops = 7 * 2.0 * heads * width * sum(n * n for n in lengths)
    floor = floors.floor_us(device, "bf16", flops=flops)
    return Case(
        "attention", shapes, rows, "rows", "bf16", variants, floor_us=floor, device=device,
        min_samples=3, graphs=True,
    )  # fmt: skip


def _all_backends() -> list[SDPBackend]:
    return [getattr(SDPBackend, name) for name in _BACKENDS]


def usable(variant: Variant) -> bool:
    """Whether this machine has it; the reason is printed if not."""
    try:
        variant.run()
    except (RuntimeError, ImportError, NotImplementedError) as error:
        print(f"{variant.name}: {str(error).splitlines()[0]}")
        return False
    return True


def fastest_table(rows: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    """(shapes, the path a step takes, its median, the fastest that may serve, its median) of every
    measured shape; what `attention_path` must be held against."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["op"] == "attention" and row["median_us"]:
            found.setdefault(row["shapes"], []).append(row)
    lines = [("attention", "a step takes", "us", "fastest", "us")]
    for shapes, group in found.items():
        chosen = group[0]["note"].removeprefix("a step takes ").partition(";")[0]
        best = min(group, key=lambda row: float(row["median_us"]))
        own = [float(r["median_us"]) for r in group if r["variant"].startswith(chosen)]
        own_us = f"{min(own):.0f}" if own else "-"
        lines.append((shapes, chosen, own_us, best["variant"], f"{float(best['median_us']):.0f}"))
    return lines
