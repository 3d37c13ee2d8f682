"""Where a run's numbers go besides metrics.jsonl: TensorBoard and Weights & Biases.

Every tracker is opened once for a process, gets one dict of numbers for every log line, and is
closed. None of them may cost the run anything: whatever one raises is said once, and that tracker
is left alone from then on. Torch-free and without either package until one is opened.

A run that is continued from a checkpoint, or goes back to one, logs the steps behind it again.
TensorBoard drops the earlier ones, Weights & Biases keeps both in one run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

logger = logging.getLogger("spanbert_ext")

PROJECT = "spanbert"
IDENTITY = "trackers.json"


class Tracker(Protocol):
    """One open tracker. `where` tells the person watching how to look at it."""

    where: str

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def go_back(self, step: int) -> None: ...
    def close(self) -> None: ...


def missing(names: Sequence[str]) -> list[str]:
    """One line for every named tracker whose package is not installed."""
    return [
        f'report_to: {name} is not installed; `pip install "spanbert-ext[{name}]"`'
        for name in names
        if not _is_installed(name)
    ]


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # A bare directory of that name, as wandb leaves one where it ran, has a spec without a file.
    return spec is not None and spec.origin is not None


def run_identity(run: Path) -> str:
    """A short random name that stays with the run's directory, so that a continued run continues
    its curves and two directories of the same name stay apart.
    """
    path = run / IDENTITY
    try:
        return str(json.loads(path.read_text("utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        identity = secrets.token_hex(4)
        path.write_text(json.dumps({"id": identity}) + "\n", "utf-8")
        return identity


class _TensorBoard:
    """Event files in RUN/tensorboard.

    Args:
        run: directory of the run.
        settings: shown beside the curves.
        next_step: events at this step or behind it, of a process that was killed, are dropped.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any], next_step: int):
        self._folder = run / "tensorboard"
        self.where = f"tensorboard --logdir {shlex.quote(str(self._folder))}"
        self._writer = self._open(next_step)
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown for code
        self._writer.add_text("settings", indented, next_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # what a checkpoint knows must not be lost with a killed process

    def go_back(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(step + 1)

    def _open(self, next_step: int):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=next_step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run in RUN/wandb: offline, unless WANDB_MODE says otherwise.

    Steps are a value like the others, not W&B's own counter, which never goes back.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any], next_step: int):
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would call home otherwise
        import wandb

        identity = run_identity(run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=f"{run.resolve().name}-{identity}",
            dir=str(run),
            config=dict(settings),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        parts = f"{shlex.quote(str(run / 'wandb'))}/offline-run-*-{identity}"
        where = f"to upload: wandb sync {parts}" if mode == "offline" else self._run.url
        self.where = f"Weights & Biases, {mode}; {where}"
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def go_back(self, step: int) -> None:
        """W&B cannot drop what it has; the repeated steps lie beside the earlier ones."""

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


class Trackers:
    """The open trackers of a run; none of the calls raises what a tracker raises.

    Args:
        names: of `report_to`.
        run: directory of the run; it exists.
        settings: resolved settings with dotted names.
        next_step: the first step this process logs.
    """

    def __init__(
        self, names: Sequence[str], run: Path, settings: Mapping[str, Any], next_step: int
    ):
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._forgiven(name):
                self._open[name] = _KINDS[name](run, settings, next_step)

    @property
    def where(self) -> list[str]:
        """How to look at each tracker that is open."""
        return [tracker.where for tracker in self._open.values()]

    def log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Hand `values` on as `group/name`."""
        numbers = {f"{group}/{name}": value for name, value in values.items()}
        self._each(lambda tracker: tracker.log(step, numbers))

    def go_back(self, step: int) -> None:
        """What was logged behind `step` did not happen."""
        self._each(lambda tracker: tracker.go_back(step))

    def close(self) -> None:
        """Write what is left and end the trackers."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._forgiven(name):
                call(tracker)

    @contextlib.contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a tracker's fault of any kind, not the run's
            self._open.pop(name, None)
            logger.warning(
                "report_to: %s failed and gets nothing more of this run: %s: %s; training and "
                "metrics.jsonl go on",
                name,
                type(error).__name__,
                " ".join(str(error).split()) or "no reason given",
            )
