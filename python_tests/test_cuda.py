"""The CUDA back end: masks equal the CPU's bit for bit, floats obey the rule, no step reads back
from the device."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    assert_as_good_as_torch,
    assert_same_batch,
    classes,
    epochs,
    fields,
    make_masker,
    maskers,
    randn,
    run_python,
    sequences,
    torch_loss,
    value_and_gradients,
    word_text,
)
from test_ops_contract import op_samples, registered_operations
from test_sbo import framed_batch, make_head, padded_formula, run

from spanbert_ext import _backend, cross_entropy, linear_cross_entropy
from spanbert_ext.cross_entropy import two_head_cross_entropy

pytestmark = pytest.mark.cuda
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def native(force_backend):
    force_backend("native")


def test_native_code_runs():
    assert _backend.name(torch.device("cuda")) == "native/cuda"


@given(
    masker=maskers(),
    texts=st.lists(sequences(300), max_size=8),
    epoch=epochs,
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=200)
def test_masks_equal_the_cpu(masker, texts, epoch, dtype):
    tokens = torch.tensor([i for t in texts for i in t], dtype=dtype)
    cu_seqlens = torch.tensor([0, *(len(t) for t in texts)]).cumsum(0)
    on_gpu = masker.packed(tokens.cuda(), cu_seqlens.cuda(), epoch=epoch)
    assert {t.device.type for t in fields(on_gpu).values()} == {"cuda"}
    assert_same_batch(on_gpu, masker.packed(tokens, cu_seqlens, epoch=epoch))


@pytest.mark.parametrize("rows, width", [(1, 1), (256, 512), (3000, 64), (2, 5000), (1, 100_000)])
def test_large_masks_equal_the_cpu(rows, width):
    ids = word_text(rows * width, seed=1).view(rows, width)
    masker = make_masker(seed=-9)
    lengths = torch.randint(0, width + 1, (rows,), generator=torch.Generator().manual_seed(2))
    for options in ({}, {"lengths": lengths}):
        moved = {k: v.cuda() for k, v in options.items()}
        assert_same_batch(masker(ids.cuda(), epoch=7, **moved), masker(ids, epoch=7, **options))


@pytest.mark.parametrize("name", registered_operations())
def test_opcheck(name):
    for arguments in op_samples()[name]:
        moved = []
        for a in arguments:
            moved.append(
                a.detach().cuda().requires_grad_(a.requires_grad)
                if isinstance(a, torch.Tensor)
                else a
            )
        torch.library.opcheck(getattr(torch.ops.spanbert_ext, name).default, moved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [24, 129, 768])
def test_head_is_the_formula(dtype, size):
    batch = framed_batch(8, 200).to("cuda")
    hidden = randn(1600, size, seed=1).to(dtype).cuda()
    grad = randn(batch.sbo_ids.shape[0], size, seed=2).to(dtype).cuda()
    ours = run(lambda h, b, m: m(h, b), hidden, batch, make_head(size, dtype=dtype).cuda(), grad)
    own = run(padded_formula, hidden, batch, make_head(size, dtype=dtype).cuda(), grad)
    exact = run(
        padded_formula,
        hidden.double(),
        batch,
        make_head(size, dtype=dtype).cuda().double(),
        grad.double(),
    )
    for name, value in ours.items():
        assert_as_good_as_torch(value, own[name], exact[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [1 << 29, 40 * 1024])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_is_torch(monkeypatch, dtype, elements, reduction):
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", {"cuda": elements})
    leaves = [randn(130, 33, seed=1), randn(1009, 33, seed=2), randn(2, 1009, seed=3)]
    leaves = [t.to(dtype).cuda() for t in leaves]
    targets, head = classes(130, 1009).cuda(), torch.arange(130).cuda() % 2
    grad = randn(130, seed=4).cuda() if reduction == "none" else None

    def ours(r, w, b):
        return linear_cross_entropy(r, w, targets, b, head, reduction=reduction)

    def own(r, w, b):
        return torch_loss(r, w, targets, b, head, reduction)

    exact = value_and_gradients(own, [t.double() for t in leaves], grad)
    for g, o, e in zip(
        value_and_gradients(ours, leaves, grad),
        value_and_gradients(own, leaves, grad),
        exact,
        strict=True,
    ):
        assert_as_good_as_torch(g, o, e, dtype=dtype)


class Step:
    """Masking, SBO head and both losses, forward and backward, on fixed buffers."""

    def __init__(self):
        self.ids = word_text(16 * 128, seed=1).view(16, 128).cuda()
        self.epoch = torch.tensor([0], device="cuda")
        self.masker, self.head = make_masker(seed=3), make_head(64).cuda()
        self.table = randn(200, 64, seed=4).cuda().requires_grad_()
        self.bias = torch.zeros(2, 200, device="cuda", requires_grad=True)
        self.counts = torch.tensor(300.0, device="cuda")

    def __call__(self):
        batch = self.masker(self.ids, epoch=self.epoch)
        hidden = F.embedding(batch.input_ids, self.table)
        rows = hidden.view(-1, 64)[batch.target_positions]
        loss = two_head_cross_entropy(
            rows,
            self.head(hidden, batch),
            self.table,
            batch.target_ids,
            batch.sbo_ids,
            self.bias,
            num_mlm_targets=self.counts,
        )[0]
        gradients = torch.autograd.grad(loss, (self.table, self.bias, *self.head.parameters()))
        return batch.labels, loss, *gradients


def test_no_step_waits_for_the_device():
    step = Step()
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_whole_numbers_as_divisors_do_not_wait():
    step = Step()
    step.counts = 300
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_step_replays_with_new_inputs():
    step = Step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for epoch in (0, 5, 2**31 - 1):
        step.epoch.fill_(epoch)
        graph.replay()
        replayed = [t.clone() for t in outputs]
        for got, expected in zip(replayed, step(), strict=True):
            assert torch.allclose(got.double(), expected.double(), rtol=1e-4, atol=1e-6)


def test_a_side_stream_is_used():
    """Work queued on a stream of its own comes after a long delay there and is not seen before."""
    step = Step()
    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.ids.zero_()
        torch.cuda._sleep(50_000_000)
        step.ids.copy_(word_text(16 * 128, seed=1).view(16, 128))
        got = step()
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], rtol=1e-5)


def test_repeats_give_the_same_bits():
    step = Step()
    first = step()
    for _ in range(5):
        assert torch.equal(step()[0], first[0])
    batch = framed_batch(8, 200).to("cuda")
    hidden, grad = randn(1600, 64, seed=1).cuda(), randn(batch.sbo_ids.shape[0], 64, seed=2).cuda()
    head = make_head(64).cuda()
    once = run(lambda h, b, m: m(h, b), hidden, batch, head, grad)
    for _ in range(5):
        again = run(lambda h, b, m: m(h, b), hidden, batch, head, grad)
        assert all(torch.equal(once[name], again[name]) for name in once)


def test_devices_may_not_be_mixed():
    batch, head = framed_batch(), make_head().cuda()
    with pytest.raises(ValueError, match="cuda"):
        head(torch.zeros(240, 24, device="cuda"), batch)
    with pytest.raises(ValueError, match="cuda"):
        make_masker()(
            torch.zeros(1, 4, dtype=torch.int64, device="cuda"), lengths=torch.tensor([4])
        )
    with pytest.raises(ValueError, match="targets.*cuda"):
        linear_cross_entropy(
            torch.zeros(2, 3, device="cuda"), torch.zeros(5, 3, device="cuda"), torch.tensor([0, 1])
        )


@pytest.mark.parametrize(
    "code, said",
    [
        (
            "make_masker()(torch.tensor([[5, 6, 777, 8]]).cuda())",
            "token 2 of the flat batch has id 777",
        ),
        (
            "make_masker().packed(torch.arange(5, 15).cuda(), torch.tensor([0, 99, 10]).cuda())",
            "sequence 0 has bounds",
        ),
        (
            "r, w, t = zeros(1, 3), zeros(5, 3), ~zeros(1).long()\n"
            "linear_cross_entropy(r.cuda(), w.cuda(), t.cuda())",
            "target outside the vocabulary",
        ),
    ],
)
def test_a_bad_index_stops_the_process_with_its_name(code, said):
    """Nothing is read silently; the context does not survive, so a child takes the blow."""
    child = run_python(
        "import torch\nfrom torch import zeros\nfrom strategies import make_masker\n"
        "from spanbert_ext import linear_cross_entropy\n"
        f"{code}\ntorch.cuda.synchronize()\n",
        SPANBERT_EXT_BACKEND="native",
    )
    assert child.returncode != 0
    assert said in child.stdout + child.stderr
