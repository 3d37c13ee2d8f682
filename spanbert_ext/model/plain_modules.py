"""Whether a fast path may read a module's parameters instead of calling the module.

It may not where somebody replaced the module or changed what a call does: adapters, quantisation,
parametrisations, hooks. Hooks are kept in private attributes of `nn.Module`; should torch rename
one, modules count as changed and are called.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
_KNOWN = all(hasattr(nn.Module(), name) for name in _HOOKS) and all(
    hasattr(torch_module, name) for name in _GLOBAL_HOOKS
)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is `kind.forward` with its parameters, and nothing besides.

    A parametrised module has a class of its own, so it is none.
    """
    if type(module) is not kind or not _KNOWN or "forward" in module.__dict__:
        return False
    if (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    ):
        return False
    return not (
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


def has_affine(norm: nn.Module) -> bool:
    """Whether a plain LayerNorm has both parameters."""
    return norm.weight is not None and norm.bias is not None
