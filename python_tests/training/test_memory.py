"""Running out of memory becomes advice; other errors stay what they are."""

import numpy as np
import pytest
import torch

from spanbert_ext.errors import OutOfMemory
from spanbert_ext.training.memory import explained
from spanbert_ext.training.pretrain import PretrainObjective


def allocate_torch():
    torch.empty(10**13)


def allocate_numpy():
    np.empty(10**14)


def run_out_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def advised(config, processes=1):
    return explained(lambda: PretrainObjective(config).memory_advice(processes))


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (allocate_torch, "40000.00 GB more were asked for"),
        (allocate_numpy, "Unable to allocate 728. TiB"),
        (run_out_on_a_gpu, "CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_the_message_says_what_to_set(tiny, change, fail, said):
    with pytest.raises(OutOfMemory) as caught, advised(change(tiny, **{"batch.rows": 12})):
        fail()
    text = str(caught.value)
    assert text.startswith(f"memory ran out ({said}")
    assert "4 rows of 32 tokens are computed at a time: `--batch.micro_rows 2`" in text
    assert caught.value.exit_code == 71


@pytest.mark.parametrize(
    ("rows", "micro", "processes", "fewer"),
    [(9, None, 1, 3), (7, None, 1, 1), (12, 6, 1, 3), (36, None, 2, 9), (30, None, 2, 5)],
)
def test_the_advice_divides_the_rows_of_a_process(tiny, change, rows, micro, processes, fewer):
    config = change(tiny, **{"batch.rows": rows, "batch.micro_rows": micro})
    change(config, **{"batch.micro_rows": fewer}).micro_rows(processes)  # is accepted
    with pytest.raises(OutOfMemory, match=f"micro_rows {fewer}`"), advised(config, processes):
        raise MemoryError


def test_one_row_cannot_be_divided(tiny, change):
    config = change(tiny, **{"batch.micro_rows": 1})
    with (
        pytest.raises(OutOfMemory, match=r"1 row of 32 tokens is computed at a time: only another"),
        advised(config),
    ):
        raise MemoryError


def test_other_errors_are_left_alone(tiny):
    with pytest.raises(RuntimeError, match="size mismatch"), advised(tiny):
        raise RuntimeError("size mismatch")
