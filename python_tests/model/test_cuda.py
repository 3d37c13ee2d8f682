"""What only a GPU has: streams, graphs, waiting, and several devices; skipped without one.

All else runs on every device in the other files.
"""

import pytest
import torch
from device_cases import UNCACHED, no_waiting
from sbo_cases import framed_batch, make_head
from strategies import make_masker, run_python
from test_steps import Step

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import backend
from spanbert_ext.ops.dropout_norm import add_layer_norm_dropout

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_back_end")]


def test_native_code_runs():
    assert backend.name(torch.zeros(1, device="cuda").device) == "native/cuda"


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


def test_the_second_gpu_leaves_the_first_alone():
    """A context on GPU 0 would cost half a gigabyte of a GPU that somebody else may use."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    child = run_python(
        "import torch\n"
        "from spanbert_ext import linear_cross_entropy\n"
        "r, w, b = (torch.ones(*s, device='cuda:1', requires_grad=True)"
        " for s in ((3, 4), (7, 4), (7,)))\n"
        "loss = linear_cross_entropy(r, w, torch.zeros(3, dtype=torch.int64).cuda(1), b)\n"
        "loss.backward()\n"
        "torch.cuda.synchronize(1)\n"
        "assert torch._C._cuda_hasPrimaryContext(1) and not torch._C._cuda_hasPrimaryContext(0)\n"
        "assert torch.cuda.current_device() == 0\n",
        SPANBERT_EXT_BACKEND="native",
    )
    assert child.returncode == 0, child.stderr[-2000:]


# Waiting and graphs -----------------------------------------------------------------------------


def test_no_step_waits_for_the_device():
    step = Step("cuda")
    step()
    with no_waiting("cuda"):
        step()


def test_whole_numbers_as_divisors_do_not_wait():
    step = Step("cuda")
    step.counts = 300
    step()
    with no_waiting("cuda"):
        step()


@pytest.mark.skipif(UNCACHED, reason="a graph captures no cudaMalloc")
def test_a_captured_step_replays_with_new_inputs():
    step = Step("cuda")
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
    step = Step("cuda")
    expected, text = step(), step.ids.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # what is allocated once for a stream must not wait below
        stream.synchronize()
        step.ids.zero_()
        torch.cuda._sleep(400_000_000)
        step.ids.copy_(text)
        got = step()
        # Otherwise the delay was over before the kernels started, and any stream would have done.
        assert UNCACHED or not stream.query()
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], rtol=1e-5)


def test_a_captured_step_draws_new_masks_without_waiting():
    """The seed is drawn inside the graph, from the generator that torch registers with it."""
    rows, parameters = torch.zeros(8, 768, device="cuda"), torch.zeros(2, 768, device="cuda")
    parameters[1] = 1

    def step():
        seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,), device="cuda")
        return add_layer_norm_dropout(rows, rows, *parameters, 1.0, 0.5, seed)

    with no_waiting("cuda"):
        step()
    graph, masks = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        graph.replay()
        masks.append(out.clone())
    assert not any(torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(set(mask.unique().tolist()) == {0.0, 2.0} for mask in masks)
