"""Names of a package that are imported on first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, own: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        own: its `globals()`; a name that was used is kept there.
        homes: public name -> the module below the package that holds it; a dot in front leads out
            of the package, as in a relative import.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        own[name] = getattr(importlib.import_module(f".{homes[name]}", package), name)
        return own[name]

    return get, lambda: sorted([*own, *homes])
