"""Settings of `spanbert fill`. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanbert_ext.errors import ConfigError
from spanbert_ext.training.config_checks import device_faults


@dataclass(frozen=True)
class FillConfig:
    """What to fill, and how.

    Args:
        inputs: a model (directory of a run, a checkpoint or a BERT), then texts with one gap each:
            [MASK] once for every missing piece, or ___ for an unknown number.
        pieces: how many pieces are missing; null takes the number of [MASK]s, and tries 1 to
            max_pieces for ___.
        max_pieces: most pieces tried where their number is open.
        top_k: fillings to print for a text.
        by: heads that decide; combined multiplies their probabilities.
        refine: 0 takes the pieces as independent, N searches from left to right with N candidates
            and asks the MLM head again after each piece.
        device: auto, cpu, cuda or cuda:N.
    """

    inputs: list[str]
    pieces: int | None = None
    max_pieces: int = 5
    top_k: int = 5
    by: Literal["combined", "mlm", "sbo"] = "combined"
    refine: int = 0
    device: str = "auto"

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = []
        if len(self.inputs) < 2:
            faults.append("inputs: expected a model and at least one text")
        for name, least in (("pieces", 1), ("max_pieces", 1), ("top_k", 1), ("refine", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                faults.append(f"{name}: must be at least {least}; got {value}")
        faults += device_faults(self.device)
        if faults:
            raise ConfigError("\n".join(faults))
