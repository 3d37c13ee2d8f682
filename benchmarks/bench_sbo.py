"""How long does the span boundary objective's head take, forward and backward?

`sbo`: both layers, from hidden states to rows, with the gradients of the hidden states and of all
parameters. Peers compute the same rows from the paper's formula: on the targets that exist, eager
and compiled, and on every slot of every padded span, as the original did.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors, peers, workloads
from benchmarks.harness import DTYPES, Case, Variant, sizes

GROWTH = (1, 4, 8, 16, 64)  # rows of 512 tokens
TARGET_ROWS = 8  # have about 600 targets, the size targets name; every peer runs there
PADDED_ROWS = 16  # beyond, the padded formula takes most of a session


def sbo_case(rows: int, hidden: int, dtype: str, device: str, compiled: bool = False) -> Case:
    """Our head and its peers on `rows` masked rows."""
    batch = workloads.masked_rows(rows, device)
    kind, targets = DTYPES[dtype], workloads.num_sbo_targets(batch)
    head = workloads.sbo_head(hidden, kind, device)
    tokens = batch.labels.numel()
    states = workloads.random_like_hidden(tokens, hidden, dtype=kind, device=device)
    states.requires_grad_()
    ragged = peers.ragged_targets(batch)
    padded = peers.padded_targets(batch, workloads.LENGTH, workloads.SLOTS)
    grad = workloads.random_like_hidden(targets, hidden, dtype=kind, device=device, seed=3)
    whole_grad = torch.zeros(batch.sbo_ids.shape[0], hidden, dtype=kind, device=device)
    whole_grad[ragged.slots] = grad
    place = (padded.row, padded.pair, padded.slot)
    slot_grad = grad.new_zeros(*padded.ids.shape, hidden).index_put(place, grad)
    leaves = (states, *head.parameters())

    def differentiate(rows_of, upstream):
        out = rows_of()
        return out.detach(), *torch.autograd.grad(out, leaves, upstream)

    def ragged_rows(h=states, m=head):
        return peers.ragged_sbo(h, ragged.left, ragged.right, ragged.offsets, m)

    def padded_rows():
        return peers.padded_sbo(states.view(rows, workloads.LENGTH, hidden), padded.pairs, head)

    def select(index):
        return lambda outputs: (outputs[0][index], *outputs[1:])

    slots = select(ragged.slots)
    variants = [
        Variant("ours", lambda: differentiate(lambda: head(states, batch), whole_grad), slots),
        Variant("ragged_eager", lambda: differentiate(ragged_rows, grad)),
    ]
    if rows <= PADDED_ROWS or device == "cuda":
        run = lambda: differentiate(padded_rows, slot_grad)  # noqa: E731
        variants.append(Variant("padded_original", run, select(place), samples=8))
    if compiled:
        fast = torch.compile(peers.ragged_sbo, dynamic=False)
        index = (ragged.left, ragged.right, ragged.offsets)
        run = lambda: differentiate(lambda: fast(states, *index, head), grad)  # noqa: E731
        variants.append(Variant("ragged_compiled", run))
    exact = workloads.sbo_head(hidden, torch.float32, device)
    exact.load_state_dict(head.state_dict())
    wide = states.detach().float().requires_grad_()
    out = ragged_rows(wide, exact)
    reference = out.detach(), *torch.autograd.grad(out, (wide, *exact.parameters()), grad.float())
    spans = int((batch.span_right > batch.span_left).sum())
    shapes = {"rows": rows, "targets": targets, "spans": spans, "hidden": hidden}
    flops = floors.sbo_flops(spans, targets, hidden)
    floor = floors.floor_us(device, dtype, flops=flops)
    return Case(
        "sbo",
        {**shapes, "slots": workloads.SLOTS},
        rows,
        "rows",
        dtype,
        variants,
        reference,
        floor,
        device,
        budget_s=3.0,
        graphs=True,
    )


@sizes(full=GROWTH, quick=(1, 2))
@pytest.mark.parametrize("dtype", DTYPES)
def bench_sbo(measure, device, quick, compiled, size, dtype):
    hidden = 64 if quick else 768
    case = sbo_case(size, hidden, dtype, device, compiled and size == TARGET_ROWS)
    measure(case, "sbo")
