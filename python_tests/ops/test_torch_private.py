"""Private interfaces of torch against the public ones that the package falls back to."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from strategies import assert_as_good_as_torch, randn

import spanbert_ext
from spanbert_ext.ops.torch_private import (
    assert_later,
    block_weight,
    blocked_linear,
    has_blocked_linear,
)

PACKAGE = Path(spanbert_ext.__file__).parent
PRIVATE = re.compile(r"\btorch(\.[a-z]\w*)*\._[a-z]|from torch(\.\w+)*\._|from torch.* import _")


@pytest.mark.parametrize("private", [True, False])
def test_assertions(private, monkeypatch):
    if not private:
        monkeypatch.delattr(torch, "_assert_async")
    assert_later(torch.tensor(True), "all is well")
    with pytest.raises(RuntimeError, match="rows must ascend"):
        assert_later(torch.tensor(False), "rows must ascend")


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocked_products_are_linear(dtype, gelu):
    if not has_blocked_linear(dtype):
        pytest.skip("torch has no such product here")
    x, weight, bias = (
        randn(*size, dtype=dtype, seed=len(size)) for size in ((37, 48), (64, 48), (64,))
    )

    def public(x, weight, bias):
        product = F.linear(x, weight, bias)
        return F.gelu(product) if gelu else product

    with torch.no_grad():
        ours = blocked_linear(x, block_weight(weight), bias, gelu)
    exact = public(x.double(), weight.double(), bias.double())
    assert_as_good_as_torch(ours, public(x, weight, bias), exact)


def test_other_dtypes_have_none():
    assert not has_blocked_linear(torch.float64)


def test_no_other_file_uses_what_torch_does_not_promise():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "torch_private.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert not found, "\n".join(found)
