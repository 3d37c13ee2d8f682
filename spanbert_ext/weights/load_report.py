"""What a model took from a file, and what it did not: for the console, for a run's `init.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from torch import nn

# First parts of a parameter's name -> how a person calls that part of the model.
_PARTS = {
    "cls.sbo": "SBO head",
    "cls.sbo_bias": "SBO head",
    "cls.predictions": "MLM head",
    "cls.seq_relationship": "NSP head",
    "bert.pooler": "pooler",
    "pooler": "pooler",
    "coref": "coreference head",
}


@dataclass(frozen=True)
class LoadReport:
    """Where weights came from and which.

    Args:
        source: as the user named it.
        layout: what kind of file or directory it is, in words.
        tensors, parameters: how much of the model was found in it.
        new: part of the model -> number of its tensors that start from random values.
        unused: part of the file -> number of its tensors that the model has no place for.
        notes: sentences about what was assumed.
        licence: of the weights, where their layout tells it.
    """

    source: str
    layout: str
    tensors: int
    parameters: int
    new: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    licence: str | None = None

    @classmethod
    def of(
        cls, model: nn.Module, source: str, layout: str, info: Mapping[str, Iterable[str]], **more
    ) -> LoadReport:
        """Of a model loaded with `from_pretrained(..., output_loading_info=True)`.

        Args:
            info: the second of its two results; names of the model's own tensors.
            more: the remaining fields.
        """
        missing = set(info["missing_keys"])
        found = [p.numel() for name, p in model.named_parameters() if name not in missing]
        return cls(
            source,
            layout,
            len(found),
            sum(found),
            _by_part(missing),
            _by_part(info["unexpected_keys"]),
            **more,
        )

    def __str__(self) -> str:
        lines = [
            f"weights of {self.source} ({self.layout})",
            f"taken over: {self.tensors} tensors, {self.parameters / 1e6:.2f} M parameters",
        ]
        for part, count in self.new.items():
            lines.append(f"new: the {part} starts from random weights ({_tensors(count)})")
        lines += [f"not used: {part} ({_tensors(count)})" for part, count in self.unused.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.licence:
            lines.append(f"licence: {self.licence}")
        return "\n  ".join(lines)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def _by_part(names: Iterable[str]) -> dict[str, int]:
    """Tensor counts under the names of parts; another part is called by its module's first two
    words.
    """
    counts: dict[str, int] = {}
    for name in sorted(names):
        words = name.split(".")
        part = _PARTS.get(".".join(words[:2])) or _PARTS.get(words[0])
        part = part or ".".join(words[:-1][:2]) or name
        counts[part] = counts.get(part, 0) + 1
    return counts


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"
