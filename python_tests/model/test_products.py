"""16-bit inputs on CPUs that multiply fp32 faster: who decides, and what it changes."""

import pytest
import torch
from strategies import classes, randn

from spanbert_ext import linear_cross_entropy
from spanbert_ext.ops import backend, cross_entropy

CPUS = {
    "amx": ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "amx_bf16": True}, True),
    "intel": ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True}, False),
    "amd": ({"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
    "old amd": ({"architecture": "x86_64", "cpu_name": "AMD EPYC"}, False),
    "arm": ({"architecture": "arm64"}, True),
}


@pytest.mark.parametrize(("features", "fast"), CPUS.values(), ids=CPUS)
def test_16_bit_products_run_in_fp32_where_the_cpu_is_slow_in_bf16(monkeypatch, features, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert backend.cpu_multiplies(torch.bfloat16) is fast
    monkeypatch.setitem(backend._CPU_MULTIPLIES, torch.bfloat16, fast)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    expected = torch.bfloat16 if fast else torch.float32
    assert backend.product_dtype(cpu, torch.bfloat16) == expected
    assert backend.product_dtype(cuda, torch.bfloat16) == torch.bfloat16
    for dtype in (torch.float32, torch.float64):
        assert backend.product_dtype(cpu, dtype) == dtype


@pytest.mark.parametrize("chunk_bytes", [1 << 27, 4 * 11 * 3], ids=["one chunk", "chunks of 3"])
def test_16_bit_inputs_multiplied_in_fp32_lose_only_the_last_rounding(monkeypatch, chunk_bytes):
    """Weights are widened four of eleven at a time; the result is fp32's on the same numbers."""
    monkeypatch.setattr(backend, "product_dtype", lambda device, dtype: torch.float32)
    monkeypatch.setattr(cross_entropy, "_WIDE_BLOCK", 4)
    monkeypatch.setitem(cross_entropy._CHUNK_BYTES, "cpu", chunk_bytes)
    narrow = [randn(8, 6, seed=1).bfloat16(), randn(11, 6, seed=2).bfloat16()]
    bias, targets = randn(11, seed=3), classes(8, 11)

    def run(inputs):
        leaves = [t.clone().requires_grad_() for t in (*inputs, bias)]
        loss = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])
        loss.backward()
        return loss.detach(), *(leaf.grad for leaf in leaves)

    loss, grad_rows, grad_weight, grad_bias = run(narrow)
    exact = run([t.float() for t in narrow])
    assert (grad_rows.dtype, grad_weight.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close((loss, grad_bias), (exact[0], exact[3]), rtol=1e-6, atol=1e-7)
    half_a_step = 2.0**-8  # of bf16, relative
    for found, wide in ((grad_rows, exact[1]), (grad_weight, exact[2])):
        torch.testing.assert_close(found.float(), wide, rtol=1.01 * half_a_step, atol=1e-8)
