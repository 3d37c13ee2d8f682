"""The row operation of the vocabulary loss on a GPU: every way a row is read, alignment, sizes
beyond 2**31 elements, and the second GPU; skipped without one."""

import pytest
import torch
import torch.nn.functional as F
from cuda_helpers import DTYPES
from row_cases import SHAPES, check_alignment, check_rows, row_case
from strategies import randn, run_python

from spanbert_ext import _ops

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("native_back_end")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary, stride", SHAPES)
def test_rows_are_torch(dtype, vocabulary, stride):
    check_rows("cuda", dtype, vocabulary, stride)


@pytest.mark.parametrize("heads", [1, 3])
def test_rows_of_other_heads(heads):
    check_rows("cuda", torch.bfloat16, 517, 520, heads, rows=1500)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary, stride", [(1000, 1024), (28996, 29056), (70_000, 70_016)])
def test_alignment_changes_no_bit(dtype, vocabulary, stride):
    check_alignment("cuda", dtype, vocabulary, stride)


def test_repeats_give_the_same_bits():
    case = [t.cuda() for t in row_case(torch.bfloat16, 2000, 28996, 29056, 2)]
    results = []
    for _ in range(3):
        logits = case[0].clone()
        results.append((*_ops.cross_entropy_rows_(logits, *case[1:], 28996), logits))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_more_than_2_to_the_31_logits():
    rows, vocabulary = 75_000, 29_056
    assert rows * vocabulary > 2**31
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    logits[-3:] = randn(3, vocabulary, dtype=torch.bfloat16, seed=1).cuda()
    tail = logits[-3:].float()
    targets = torch.arange(rows, device="cuda") % vocabulary
    bias = torch.zeros(1, vocabulary, device="cuda")
    scale = torch.zeros(rows, device="cuda")
    scale[-3:] = 1
    losses, grad_bias = _ops.cross_entropy_rows_(logits, targets, bias, None, scale, vocabulary)
    expected = F.cross_entropy(tail, targets[-3:], reduction="none")
    assert torch.allclose(losses[-3:], expected, rtol=1e-5)
    assert torch.allclose(losses[:2], bias.new_tensor(float(vocabulary)).log(), rtol=1e-6)
    assert torch.allclose(grad_bias[0], logits[-3:].float().sum(0), atol=1e-6)


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
