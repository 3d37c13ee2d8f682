"""How long does a pre-training step take, where does the time go, and does it grow with the batch?

Ours is the training loop's step: gather, mask, encoder, both heads, clip, AdamW. The peers of
`peer_steps.py` are given masked batches. Hidden dropout is 0.1 for all; attention dropout is 0 in
the fast mode and 0.1 in the mode that matches the published runs, for ours and peers alike.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors, peer_steps, workloads
from benchmarks.harness import Case, Timing, Variant, sizes
from benchmarks.records import rows_of
from spanbert_ext.training.config import RuntimeOptions
from spanbert_ext.training.loop import autocast
from spanbert_ext.training.models import choose_precision
from spanbert_ext.training.step_timer import PARTS, PretrainStep

BUILDERS = {
    "transformers": (peer_steps.transformers_step, None),
    "transformers_compiled": (peer_steps.transformers_step, "default"),
    "transformers_graphs": (peer_steps.transformers_step, "reduce-overhead"),
    "assembly": (peer_steps.assembly_step, "default"),
    "original": (peer_steps.original_step, None),
}
# Kinds of our step. "ours" is what a run takes: on a GPU rows there and CUDA graphs.
OURS = {
    "ours": RuntimeOptions(),
    "ours_packed": RuntimeOptions(),
    "ours_auto": RuntimeOptions(),  # in the precision that `auto` picks, whatever the peers run in
    "ours_compiled_graph": RuntimeOptions(compile="on"),
    "ours_compiled": RuntimeOptions(graph="off", compile="on"),
    "ours_eager": RuntimeOptions(graph="off"),
}


def step_case(
    preset: str,
    rows: int,
    precision: str,
    device: str,
    attention_dropout: float = 0.0,
    named_peers: tuple[str, ...] = (),
    named_ours: tuple[str, ...] = ("ours",),
    length: int = workloads.LENGTH,
    **changes,
) -> Case:
    """Our step in some of its kinds and the named peers.

    Args:
        named_ours: of OURS; the first is checked against transformers if there are peers. Memory of
            a captured step stays taken while its variant lives.
        changes: fields of the configuration other than the preset's.
    """
    config = workloads.model_config(preset, attention_dropout, **changes)
    place = torch.device(device)
    variants = []
    for name in named_ours:
        lengths = packed_lengths(rows, length) if "packed" in name else ()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        own = choose_precision("auto", place) if name == "ours_auto" else precision
        step = PretrainStep(config, rows, length, place, own, lengths, OURS[name])
        if named_peers and not variants:
            check_same_loss(step.model, config, device, length, precision)
        step.warm_up()
        note = step.describe() + (f", {len(lengths)} sequences" if lengths else "")
        note += f", {own}" if own != precision else ""
        if device == "cuda":  # of a captured step the column of one call's memory shows nothing
            note += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most"
        variants.append(Variant(name, step, note=note))
    if named_peers:
        batch = workloads.masked_rows(rows, device, length)
    for name in named_peers:
        build, mode = BUILDERS[name]
        peer = build(config, batch, device, precision, mode)
        variants.append(Variant(name, peer, samples=10))
    layers, hidden = config.num_hidden_layers, config.hidden_size
    flops = rows * floors.step_flops(layers, hidden, length, config.vocab_size)
    return Case(
        "step",
        {
            "preset": preset,
            "rows": rows,
            "length": length,
            "attention_dropout": attention_dropout,
        },
        rows,
        "rows",
        precision,
        variants,
        floor_us=floors.floor_us(device, precision, flops=flops),
        device=device,
        budget_s=15.0,
        measure_memory=device == "cuda",
    )


def check_same_loss(model, config, device: str, length: int, precision: str) -> None:
    """With the same weights, our masked language model's loss is transformers' in fp32, and our
    total is that of the reference path in fp32.
    """
    limit = {"fp32": 1e-4, "bf16": 1e-2}[precision]
    batch = workloads.masked_rows(1, device, length)
    peer = peer_steps.BertForMaskedLM(peer_steps.bert_config(config)).to(device).eval()
    report = peer.load_state_dict(model.state_dict(), strict=False)
    assert all(".decoder." in name for name in report.missing_keys), report.missing_keys
    model.eval()
    with torch.no_grad():
        with autocast(torch.device(device), precision):
            ours = model(batch.input_ids, batch=batch)
        theirs = peer(input_ids=batch.input_ids, labels=batch.labels).loss
        with workloads.reference_backend():
            exact = model(batch.input_ids, batch=batch).loss
    model.train()
    for name, found, wanted in (
        ("masked language model", ours.mlm_loss, theirs),
        ("total", ours.loss, exact),
    ):
        error = float((found - wanted).abs() / wanted.abs())
        assert error < limit, f"{name}: our loss is {found:.6f}, expected {wanted:.6f}"


def packed_lengths(rows: int, length: int) -> list[int]:
    """Lengths of sequences that fill each row: a uniform cut in two or three."""
    draws = workloads.generator(6)
    found = []
    for row in range(rows):
        cuts = torch.randint(length // 8, length - length // 8, (1 + row % 2,), generator=draws)
        borders = [0, *sorted(set(cuts.tolist())), length]
        found += [end - start for start, end in zip(borders, borders[1:], strict=False)]
    return found


def part_rows(case: Case, samples: int) -> list[dict[str, str]]:
    """Rows of `op` step_part, one for every part of our step."""
    step = case.variants[0].run
    timings = {name: Timing() for name in PARTS}
    for _ in range(samples):
        for name, seconds in step.parts().items():
            timings[name].seconds.append(seconds)
    variants = [Variant(name, step) for name in PARTS]
    parts = Case(
        "step_part", case.shapes, case.size, case.size_unit, case.dtype, variants,
        device=case.device, threads=case.threads,
    )  # fmt: skip
    return rows_of(parts, list(timings.values()))


@pytest.fixture
def small(quick) -> dict:
    """Changes that make a smoke run quick."""
    if not quick:
        return {}
    return {"length": 32, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1,
            "intermediate_size": 64, "vocab_size": workloads.VOCAB}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def bench_step_base(measure, record_rows, device, quick, compiled, small, dtype):
    """The mode without attention dropout next to transformers."""
    named = ("transformers",)
    if compiled and dtype == "bf16":
        named += ("transformers_compiled",)
    kinds = ("ours", "ours_auto") if dtype == "bf16" else ("ours",)
    case = step_case("base", 2, dtype, device, 0.0, named, kinds, **small)
    measure(case, "step")
    record_rows("step", part_rows(case, 2 if quick else 4))


def bench_step_published_dropout(measure, device, small):
    """The mode with the published attention dropout."""
    named = ("transformers",)
    measure(step_case("base", 2, "bf16", device, 0.1, named, **small), "step")


@sizes(full=(1, 4, 8), quick=(1, 2))
def bench_step_growth(measure, device, quick, small, size):
    """Growth with the batch; the size between is `bench_step_base`'s."""
    case = step_case("base", size, "bf16", device, **small)
    case.budget_s, case.min_samples = 5.0, 3
    measure(case, "step")
