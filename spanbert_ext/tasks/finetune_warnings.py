"""What a fine-tuning is warned of: too few updates, and numbers that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.task import DownstreamTask

# A new head and a published learning rate want a few hundred; below this the loss hardly falls.
FEW_UPDATES = 100


def few_updates(config: FinetuneConfig, steps: int, epochs: float) -> str | None:
    """A line where a run has few updates; None where it has enough."""
    if steps >= FEW_UPDATES:
        return None
    return f"only {steps} updates in all, which seldom train a new head: {_advice(config, epochs)}"


def no_better_than_chance(
    task: DownstreamTask,
    config: FinetuneConfig,
    dev: Sequence[Any],
    best: Mapping[str, Any],
    untrained: Mapping[str, float],
    epochs: float,
) -> str | None:
    """A line where the best number on dev needs no training; None where it does, or nothing is
    known.

    Args:
        dev: examples with gold answers.
        best, untrained: numbers of `task.score` on them.
    """
    name = task.best_metric
    if name not in best:
        return None
    trivial = task.trivial_predictions(dev)
    if trivial is not None:
        what, predictions = trivial
        least = task.score(dev, predictions)[name]
        if best[name] <= least:
            return (
                f"the best {name} on dev is {best[name]:.2f}; {what} gives {least:.2f}. The model "
                f"has not learned the task: {_advice(config, epochs)}"
            )
    if best[name] <= untrained.get(name, -float("inf")):
        return (
            f"the best {name} on dev is {best[name]:.2f}, no better than before training "
            f"({untrained[name]:.2f}): {_advice(config, epochs)}"
        )
    return None


def _advice(config: FinetuneConfig, epochs: float) -> str:
    changes = [
        f"more --epochs ({epochs:g} now)",
        f"a smaller --batch.examples ({config.batch.examples} now)",
        f"another --optimizer.peak_lr ({config.optimizer.peak_lr:g} now)",
    ]
    if config.max_steps is not None:
        changes[0] = f"a larger --max_steps ({config.max_steps} now)"
    if config.batch.examples == 1:
        del changes[1]
    return f"try {', '.join(changes[:-1])} or {changes[-1]}"
