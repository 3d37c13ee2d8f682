"""Finds, without a GPU, what a CUDA graph could not capture: run a step inside `CaptureSafe`.

On the CPU nothing waits, so a step that reads back runs through there. `as_on_a_gpu` makes the
package believe that numbers cannot be read, and `CaptureSafe` refuses every operation that would
wait for a GPU, whose result's shape depends on numbers, that copies from the host, or that makes a
tensor without saying where.
"""

import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Reading a number; shapes that depend on numbers; tensors made from Python lists (on a GPU a copy
# from pageable memory).
FORBIDDEN = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.lift_fresh,
    aten.repeat_interleave,
}
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# Without a device these make a tensor on the CPU, wherever the others are.
FACTORIES = {torch.arange, torch.empty, torch.full, torch.ones, torch.rand, torch.tensor}
FACTORIES |= {torch.zeros, torch.randn, torch.eye}


class _Placed(TorchFunctionMode):
    """Raises AssertionError where a tensor is made on the default device."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in FACTORIES and options.get("device") is None:
            raise AssertionError(f"{function.__name__} does not say on which device")
        return function(*arguments, **options)


class CaptureSafe(TorchDispatchMode):
    """Raises AssertionError on operations that a CUDA graph cannot hold; counts the others."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self._placed = _Placed()

    def __enter__(self):
        self._placed.__enter__()
        return super().__enter__()

    def __exit__(self, *reason):
        super().__exit__(*reason)
        self._placed.__exit__(*reason)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        packet = function.overloadpacket
        repeats = packet is aten.repeat_interleave and options.get("output_size") is not None
        if packet in FORBIDDEN and not repeats:
            raise AssertionError(f"a CUDA graph cannot hold {function}")
        indices = arguments[1] if packet in INDEXING else ()
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise AssertionError(f"{function} by a mask has a shape that depends on numbers")
        self.calls += 1
        return function(*arguments, **options)


def as_on_a_gpu(monkeypatch) -> None:
    """No module of the package may look at numbers, as on a GPU."""
    from spanbert_ext.ops import registration

    for name, module in list(sys.modules.items()):
        if name.startswith("spanbert_ext") and hasattr(module, "readable"):
            monkeypatch.setattr(module, "readable", lambda values: False)
    assert not registration.readable(torch.zeros(1))
