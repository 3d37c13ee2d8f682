"""Outputs of a model that are no numbers: no task decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spanbert_ext.errors import NumericsError


def owners(features: Sequence[Any]) -> list[int]:
    """The place of each feature's example; features that name none are one for each example."""
    return [getattr(feature, "example", place) for place, feature in enumerate(features)]


def broken_examples(features: Sequence[Any], outputs: Sequence[Any]) -> set[int]:
    """Places of the examples with an output that holds NaN or infinity.

    Args:
        outputs: of every feature: an array, or what says `is_finite` itself.
    """
    return {
        owner
        for owner, output in zip(owners(features), outputs, strict=True)
        if not _is_finite(output)
    }


def _is_finite(output: Any) -> bool:
    return bool(np.isfinite(output).all()) if isinstance(output, np.ndarray) else output.is_finite


def fault_of(id: str, precision: str) -> NumericsError:
    """What is wrong with an example's outputs, and what to do."""
    remedy = "fp32 does not hold what its weights make of this text; take an earlier checkpoint"
    if precision != "fp32":
        remedy = f"{precision} may not hold them: try precision fp32"
    return NumericsError(f"{id}: the model's outputs are not finite (NaN or infinity); {remedy}")
