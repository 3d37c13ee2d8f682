"""How long does masking take next to what others use, how does it grow, and does it use threads?

Rows of 512 tokens, 510 of them maskable. transformers' collators mask whole words or tokens, not
spans; plain Python does what we do. All work on ready tensors; nobody's tokenizer is timed.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors, peers, workloads
from benchmarks.harness import Case, Variant, sizes

CHECKED_ROWS = 8


def masking_case(rows: int, device: str, threads: int | None) -> Case:
    """Our masker and its peers on a batch of `rows`."""
    ids = workloads.text_rows(rows).to(device)
    masker, sample_ids = workloads.masker(), torch.arange(rows, device=device)
    check_against_reference(ids)

    def run():
        return masker(ids, sample_ids=sample_ids)

    variants = [Variant("ours", run)]
    if device == "cuda":
        variants.append(Variant("ours_without_graph", run, capture=False))
    else:
        variants.append(Variant("ours", run, cache="warm"))
    batch = run().used()
    targets, spans = batch.target_ids.numel(), batch.span_left.numel()
    moved = floors.masker_bytes(rows, workloads.LENGTH, targets, spans)
    return Case(
        "span_mask",
        {"rows": rows, "length": workloads.LENGTH},
        rows,
        "rows",
        "int64",
        variants + (_peers(ids.cpu()) if threads in (None, 1) else []),
        floor_us=floors.floor_us(device, "bf16", moved=moved, threads=threads),
        device=device,
        threads=threads,
        budget_s=2.0,
        graphs=True,
    )


def _peers(ids: torch.Tensor) -> list[Variant]:
    rows = len(ids)
    token_level = peers.transformers_collator(ids, whole_words=False)
    variants = [Variant("transformers_token_level", token_level, samples=10)]
    if rows <= 1024:  # the whole-word collator compares all tokens of a row with all others
        whole_word = peers.transformers_collator(ids, whole_words=True)
        plain = ids.numpy()
        variants += [
            Variant("transformers_whole_word", whole_word, samples=5),
            Variant("python_spans", lambda: peers.python_span_masking(plain), samples=5),
        ]
    for variant in variants:
        variant.note, variant.capture = "on the CPU", False
        check_peer(ids, variant.run())
    return variants


def check_against_reference(ids: torch.Tensor) -> None:
    """A row's mask depends on nothing but the row, so a few rows stand for all, bit for bit."""
    masker, sample_ids = workloads.masker(), torch.arange(len(ids))
    ours = masker(ids, sample_ids=sample_ids.to(ids.device))
    with workloads.reference_backend():
        few = ids[:CHECKED_ROWS].cpu()
        exact = masker(few, sample_ids=sample_ids[: len(few)])
    for name in ("input_ids", "labels"):
        found = getattr(ours, name)[:CHECKED_ROWS].cpu()
        assert torch.equal(found, getattr(exact, name)), f"{name} differ from the reference"


def check_peer(ids: torch.Tensor, outputs) -> None:
    """A peer masks about as much as we do, and no special token."""
    labels = torch.as_tensor(outputs[1])
    share = (labels[:, 1:-1] != workloads.IGNORE).float().mean()
    assert 0.1 < share < 0.25, f"a peer masked {share:.0%} of the pieces"
    assert (labels[:, [0, -1]] == workloads.IGNORE).all()


@sizes(full=(64, 256, 1024, 4096), quick=(8, 32))
@pytest.mark.parametrize("all_cores", [False, True], ids=["one_thread", "all_threads"])
def bench_span_mask(measure, device, cores, size, all_cores):
    if device == "cuda":
        if all_cores:
            pytest.skip("threads are a matter of the CPU")
        measure(masking_case(size, device, 1), "masking")
        return
    if all_cores and cores == 1:
        pytest.skip("this machine has one core")
    measure(masking_case(size, device, cores if all_cores else 1), "masking")
