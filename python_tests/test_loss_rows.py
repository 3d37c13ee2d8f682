"""The row operation of the vocabulary loss on the CPU, at sizes where long sums lose digits."""

import pytest
from row_cases import SHAPES, check_alignment, check_rows
from test_ops import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary, stride", SHAPES)
def test_rows_are_torch(force_backend, dtype, vocabulary, stride):
    force_backend("native")
    check_rows("cpu", dtype, vocabulary, stride)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 3])
def test_rows_of_other_heads(force_backend, dtype, heads):
    force_backend("native")
    check_rows("cpu", dtype, 517, 520, heads, rows=1500)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_changes_no_bit(force_backend, dtype):
    force_backend("native")
    check_alignment("cpu", dtype, 1009, 1024)
