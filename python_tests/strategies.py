"""Inputs shared by the tests of the core: vocabularies, batches, plain readings of a batch, float
oracles."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from spanbert_ext.masking.batch import MaskedBatch
from spanbert_ext.masking.masker import SpanMasker
from spanbert_ext.masking.settings import SCHEMES

# A vocabulary with every role: 0 PAD, 1 CLS, 2 SEP, 3 MASK, then word starts, continuation pieces
# and the random pool.
PAD, CLS, SEP, MASK = range(4)
WORDS = range(4, 100)
CONTINUATIONS = range(100, 140)
POOL = range(140, 200)
VOCAB = 200
IGNORE = -100
SPECIALS = (PAD, CLS, SEP, MASK)


def word_starts() -> torch.Tensor:
    """[VOCAB] bool: everything begins a word but CONTINUATIONS."""
    starts = torch.ones(VOCAB, dtype=torch.bool)
    starts[list(CONTINUATIONS)] = False
    return starts


def make_masker(**options) -> SpanMasker:
    """A masker over the shared vocabulary whose random pieces (POOL) never occur in a text."""
    options.setdefault("random_tokens", list(POOL))
    return SpanMasker(word_starts(), SPECIALS, MASK, **options)


def rewound(masker: SpanMasker) -> SpanMasker:
    """The same masker; a call without sample_ids has the ids 0, 1 ... again."""
    masker.next_sample_id = 0
    return masker


def word_text(pieces: int, seed: int, shares=(0.80, 0.12, 0.05, 0.03)) -> torch.Tensor:
    """[pieces] int64 of words with 1, 2, 3, 4 pieces in the given shares, cut at the end; no
    specials."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 + torch.multinomial(torch.tensor(shares), max(pieces, 1), True, generator=generator)
    first = torch.zeros(int(sizes.sum()), dtype=torch.bool)
    first[torch.cumsum(sizes, 0) - sizes] = True
    first = first[:pieces]
    draws = torch.randint(0, 1 << 30, (pieces,), generator=generator)
    return torch.where(
        first, WORDS[0] + draws % len(WORDS), CONTINUATIONS[0] + draws % len(CONTINUATIONS)
    )


def fields(batch: MaskedBatch) -> dict[str, torch.Tensor]:
    return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}


def assert_same_batch(one: MaskedBatch, other: MaskedBatch) -> None:
    """Every field equal, dtype and shape included."""
    for name, value in fields(one).items():
        same = getattr(other, name)
        assert value.dtype == same.dtype and value.shape == same.shape, name
        assert torch.equal(value.cpu(), same.cpu()), f"{name}: {value.tolist()} != {same.tolist()}"


@dataclasses.dataclass
class Span:
    """One merged span as the batch describes it: flat positions, whether it has boundaries."""

    positions: list[int]
    left: int
    right: int
    sbo: list[int]


def spans_of(batch: MaskedBatch) -> list[Span]:
    """The spans that the used target slots list, in order."""
    spans: list[Span] = []
    for place, target, span, offset, sbo in zip(
        batch.target_positions.tolist(),
        batch.target_ids.tolist(),
        batch.target_spans.tolist(),
        batch.target_offsets.tolist(),
        batch.sbo_ids.tolist(),
        strict=True,
    ):
        if target == -100:
            break
        if offset == 0:
            spans.append(Span([], int(batch.span_left[span]), int(batch.span_right[span]), []))
        spans[-1].positions.append(place)
        spans[-1].sbo.append(sbo)
    return spans


token_ids = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS),
    st.sampled_from(CONTINUATIONS),
    st.sampled_from(SPECIALS),
)
sample_id_values = st.integers(-(2**63), 2**63 - 1)
seeds = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 2**64 - 1, 2**32, 2**63, -1])
)
epochs = st.one_of(st.integers(0, 2**31), st.sampled_from([0, 1, 2**31 - 1, 2**31]))
ratios = st.one_of(st.sampled_from([0.15, 1.0, 1e-6, 0.5, 1 / 3, 0.999999]), st.floats(1e-5, 1.0))


@st.composite
def maskers(draw):
    """SpanMasker with any legal options. Its batches take `marks_for` with the ids."""
    shortest = draw(st.integers(1, 6))
    mask_prob = draw(st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]))
    return make_masker(
        seed=draw(seeds),
        mask_ratio=draw(ratios),
        geometric_p=draw(st.sampled_from([0.01, 0.2, 0.7, 1.0])),
        min_words=shortest,
        max_words=shortest + draw(st.sampled_from([0, 1, 9, 30])),
        replacement=draw(st.sampled_from(["span", "piece"])),
        mask_prob=mask_prob,
        random_prob=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) * (1 - mask_prob),
        max_span_targets=draw(st.sampled_from([1, 3, 15])),
        random_tokens=draw(st.sampled_from([None, [7], list(POOL)])),
        scheme=draw(st.sampled_from(["span", "span", *SCHEMES])),
        candidate_prob=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        endpoints=draw(st.sampled_from(["external", "internal"])),
    )


def marks_for(masker: SpanMasker, ids: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """`candidates` of random marks where the masker needs them: few or many spans, short or longer
    than a word of a bitmap, some without a beginning."""
    if not masker.needs_candidates:
        return {}
    shares = ((0.5, 0.2, 0.3), (0.1, 0.01, 0.89), (0.98, 0.01, 0.01), (0.0, 1.0, 0.0))[seed % 4]
    generator = torch.Generator().manual_seed(seed)
    marks = torch.multinomial(torch.tensor(shares), max(ids.numel(), 1), True, generator=generator)
    return {"candidates": marks[: ids.numel()].to(ids.device, torch.uint8).view(ids.shape)}


@st.composite
def sequences(draw, longest: int = 90):
    """Ids of one sequence: free text, all special, one long word, or framed by CLS and SEP."""
    kind = draw(st.sampled_from(["free", "special", "long word", "framed"]))
    size = draw(
        st.one_of(st.integers(0, 3), st.integers(0, longest), st.sampled_from([63, 64, 65]))
    )
    if kind == "special":
        return [draw(st.sampled_from(SPECIALS))] * size
    if kind == "long word":
        return [5] * min(size, 1) + [101] * max(size - 1, 0)
    ids = draw(st.lists(token_ids, min_size=size, max_size=size))
    return [CLS, *ids, SEP] if kind == "framed" else ids


def inside_larger_buffer(values: torch.Tensor, offset: int, guard: int = -7) -> torch.Tensor:
    """The same values as a contiguous view that begins `offset` elements into a larger buffer."""
    buffer = torch.full((values.numel() + offset + 3,), guard, dtype=values.dtype)
    buffer[offset : offset + values.numel()] = values.reshape(-1)
    return buffer[offset : offset + values.numel()].view(values.shape)


def assert_as_good_as_torch(ours, torch_own, exact, name: str = "result", dtype=None) -> None:
    """Our error against float64 is at most twice torch's own error in the same dtype.

    One rounding of the largest value is allowed besides, or a lucky torch run (error 0) would
    demand luck of us. In float64 the oracle is itself a torch run with errors like ours, so there
    the bound is 1e-12 of the largest value. `dtype` is that of the computation where the result is
    wider.
    """
    assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} != {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    exact = exact.double()
    mine = (ours.double() - exact).abs().max().item()
    own = (torch_own.double() - exact).abs().max().item()
    dtype = dtype or ours.dtype
    unit = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    rounding = unit * exact.abs().max().item()
    assert mine <= 2 * own + rounding, f"{name}: error {mine:.3g}, torch's own {own:.3g}"


def naming(*parts) -> str:
    """A pattern for a message that contains every part, in any order and wording."""
    return "".join(rf"(?=.*(?<![\w.-]){re.escape(str(part))}(?![\w.]))" for part in parts)


def case_id(value) -> str:
    """Names a case of bad input by what it changes; the patterns of messages make no names."""
    if isinstance(value, dict):
        return "+".join(value)
    return value.__name__ if isinstance(value, type) else ""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A child interpreter that finds what this one finds, for what may end a process or needs a
    fresh import. It runs beside the tests: in the source tree the package without a native module
    would come first."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        cwd=Path(__file__).parent,
    )


def randn(*shape, dtype=torch.float32, seed=0, scale=1.0) -> torch.Tensor:
    """Normal numbers of a seed, the same in every dtype up to rounding."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def text_batch(rows=3, width=64, seed=0, **options) -> MaskedBatch:
    """A masked batch of text without specials, with more targets than usual."""
    options = {"mask_ratio": 0.3, **options}
    return make_masker(seed=seed, **options)(word_text(rows * width, seed).view(rows, width))


def classes(count, vocabulary, seed=0, ignored=0.2) -> torch.Tensor:
    """[count] int64 targets, a share of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    targets[torch.rand(count, generator=generator) < ignored] = IGNORE
    return targets


def torch_loss(rows, weight, targets, bias, head, reduction):
    """torch's own linear and cross entropy; a mean over nothing is 0."""
    logits = F.linear(rows, weight)
    if bias is not None:
        table = bias if bias.dim() == 2 else bias.unsqueeze(0)
        logits = logits + (table[head] if head is not None else table[0])
    losses = F.cross_entropy(logits, targets, reduction="none")
    if reduction == "none":
        return losses
    count = max(1, int((targets != IGNORE).sum())) if reduction == "mean" else 1
    return losses.sum() / count


def value_and_gradients(function, leaves, grad=None) -> list[torch.Tensor]:
    """The value of `function` at copies of `leaves`, then their gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    value = function(*leaves)
    grad = torch.ones_like(value) if grad is None else grad.to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, leaves, grad)]
