"""What a checkpoint holds besides the model, and the rules for continuing from it."""

from __future__ import annotations

import json
import logging
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

import spanbert_ext
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.files import json_text
from spanbert_ext.settings.build import options
from spanbert_ext.settings.stored import completed
from spanbert_ext.training.checkpoint import GENERATORS, OPTIMIZER, fail_point
from spanbert_ext.training.config import FREE_ON_RESUME
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.replica import divided_like, whole

logger = logging.getLogger("spanbert_ext")

_IDLE = "idle"  # in the optimizer's file: parameters without state, which never had a gradient


@dataclass
class RunState:
    """Progress of a run and the identity of what it depends on; `state.json`.

    Args:
        step: finished updates.
        samples: rows seen.
        tokens: tokens seen.
        seconds: time spent training.
        skipped: updates skipped because of non-finite gradients.
        settings: resolved settings with dotted names.
        corpus: fingerprint of the token files, as recorded beside them.
        corpus_sample: digest of blocks of the files themselves (`resume.content_sample`).
        vocabulary: hash of the tokenizer.
        corpus_facts: sizes of the corpus, for the model card.
        hardware: what trained last, in words.
        starting_losses: held-out losses before the first update.
        latest_losses: held-out losses of the last validation.
        versions: of Python and the libraries.
        threads: of a process on a CPU (torch's intra-op threads), whose number decides how torch
            groups sums; 0 on a GPU and where a checkpoint does not say.
        world_size: processes that trained.
        shift: batches that the run has jumped over; step s sees batch s + shift.
        rollbacks: how often it went back because of a gradient spike.
        recent_norms: gradient norms that spikes are measured against.
        best: of a fine-tuning, the best development evaluation so far: its step and numbers.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    corpus: str = ""
    corpus_sample: str = ""
    vocabulary: str = ""
    corpus_facts: dict[str, Any] = field(default_factory=dict)
    hardware: str = ""
    starting_losses: dict[str, float] = field(default_factory=dict)
    latest_losses: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    world_size: int = 1
    shift: int = 0
    rollbacks: int = 0
    recent_norms: list[float] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)


def current_versions() -> dict[str, str]:
    """Versions that can change a result."""
    return {
        "spanbert_ext": spanbert_ext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


@dataclass(frozen=True)
class Snapshot:
    """Host tensors of a moment of training, whole whatever the ranks' shares are.

    Args:
        weights: by parameter name; None means those of the model itself.
        moments: `<parameter name>:<slot>`.
        generators: of every rank, as `rng-<rank>.safetensors` holds them.
    """

    weights: dict[str, torch.Tensor] | None
    moments: dict[str, torch.Tensor]
    generators: list[dict[str, torch.Tensor]]


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, ranks: Ranks = ALONE
) -> Snapshot:
    """What a checkpoint holds of this moment; all ranks must call it, rank 0 writes it."""
    own = generator_tensors(device)
    gathered = {name: ranks.gather(state) for name, state in own.items()}
    generators = [
        {name: states[rank] for name, states in gathered.items()}
        for rank in range(ranks.world if ranks.is_main else 0)
    ]
    return Snapshot(whole_weights(model), optimizer_tensors(model, optimizer), generators)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The weights of a model that ranks hold in shares, put together on the host, by parameter
    name; None where the model has them itself. All ranks must call it."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    return {name: whole(value).cpu() for name, value in model.state_dict().items()}


def write_training_state(
    directory: Path,
    model: nn.Module,
    snapshot: Snapshot,
    state: RunState,
    tokenizer_dir: Path | None,
) -> None:
    """Fill a checkpoint directory: model, tokenizer, optimizer, generators, state."""
    model.save_pretrained(directory, state_dict=snapshot.weights)
    fail_point("after_model")
    if tokenizer_dir is not None:
        for path in sorted(p for p in Path(tokenizer_dir).iterdir() if p.is_file()):
            shutil.copyfile(path, directory / path.name)
    owners = _owners(snapshot.moments)
    idle = [name for name, _ in model.named_parameters() if name not in owners]
    save_file(snapshot.moments, directory / OPTIMIZER, metadata={_IDLE: json.dumps(idle)})
    fail_point("after_optimizer")
    for rank, tensors in enumerate(snapshot.generators):
        save_file(tensors, directory / f"{GENERATORS}{rank}.safetensors")
    text = json_text(asdict(state), indent=1, sort_keys=True)
    (directory / "state.json").write_text(text + "\n", "utf-8")


def read_state(directory: Path) -> RunState:
    """The state of a checkpoint.

    Raises:
        StorageError: state.json is missing or not ours.
    """
    path = directory / "state.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        unknown = content.keys() - {f.name for f in fields(RunState)}
        if unknown:
            writer = content.get("versions", {}).get("spanbert_ext", "another version")
            raise ValueError(
                f"this version does not know {', '.join(sorted(unknown))}; it was written by "
                f"spanbert_ext {writer}"
            )
        return RunState(**content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Optimizer state as `<parameter name>:<slot>` -> whole, contiguous CPU tensor."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{slot}"] = whole(value).cpu().contiguous()
    return tensors


def load_optimizer(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore what `optimizer_tensors` gave.

    A parameter that never had a gradient (it is frozen, or the head does not read it) has no state;
    the file lists these. They get one with their first gradient, as in a run that never stopped.

    Raises:
        StorageError: names parameters that lack their state, or state without a parameter.
    """
    path = directory / OPTIMIZER
    if not path.is_file():
        raise StorageError(f"{path} is missing; without it the run cannot continue exactly")
    with safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        listed = (file.metadata() or {}).get(_IDLE)
    parameters = dict(model.named_parameters())
    owners = _owners(stored)
    # A file without the list was written before there was one: what has no state there is idle.
    idle = parameters.keys() - owners if listed is None else set(json.loads(listed))
    if owners | idle != parameters.keys():
        odd = sorted((owners | idle) ^ parameters.keys())
        raise StorageError(
            f"{path} does not fit the model; differing parameters: {', '.join(odd[:5])}"
        )
    for name in idle:  # after steps that a run goes back behind, it may have some
        for value in optimizer.state.get(parameters[name], {}).values():
            value.zero_()
    for key, value in stored.items():
        name, _, slot = key.rpartition(":")
        slots, own = optimizer.state[parameters[name]], divided_like(value, parameters[name])
        if slot in slots:  # in place: captured graphs go on with the same memory
            slots[slot].copy_(own)
        else:
            slots[slot] = own


def _owners(moments: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that optimizer state belongs to."""
    return {key.rpartition(":")[0] for key in moments}


def generator_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the generators that dropout draws from."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def load_generators(
    directory: Path, device: torch.device, ranks: Ranks = ALONE, written_by: int = 1
) -> None:
    """Restore what `generator_tensors` gave; a checkpoint of another kind of device, or of another
    number of processes, continues with a warning and with draws of its own.

    Args:
        written_by: number of processes that wrote the checkpoint.

    Raises:
        StorageError: the file is missing.
    """
    if written_by != ranks.world:
        logger.warning(
            "the checkpoint was written by %d process(es), now there are %d: dropout is drawn anew "
            "from here",
            written_by,
            ranks.world,
        )
        return
    path = directory / f"{GENERATORS}{ranks.rank}.safetensors"
    if not path.is_file():
        raise StorageError(f"{path} is missing; without it the run cannot continue exactly")
    stored = load_file(path)
    torch.set_rng_state(stored["cpu"])
    if device.type == "cuda" and "cuda" in stored:
        torch.cuda.set_rng_state(stored["cuda"], device)
    elif (device.type == "cuda") != ("cuda" in stored):
        logger.warning(
            "the checkpoint comes from another kind of device: dropout is drawn anew from here"
        )


def seed_generators(seed: int, rank: int, step: int) -> None:
    """Streams that differ between ranks, and between the starts of a run at different steps; rank 0
    of a new run has the seed itself.
    """
    mixed = seed + rank * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9
    torch.manual_seed(mixed % (1 << 63))


def differing_settings(
    stored: RunState, current: Mapping[str, Any], cls: type, where: Path
) -> list[str]:
    """One line for every setting that changes the updates of a run, where it differs.

    Args:
        stored: state of a checkpoint, also of an earlier version.
        current: settings with dotted names; a precision of auto may be any.
        cls: class of the settings.
        where: the checkpoint.

    Raises:
        ConfigError: the checkpoint has a setting that this version does not know.
    """
    tasks = [settings.get("task", "pre-training") for settings in (stored.settings, current)]
    if tasks[0] != tasks[1]:  # which have other settings
        return [f"task was {tasks[0]}, is {tasks[1]}"]
    written_by = stored.versions.get("spanbert_ext")
    file = where / "state.json"
    then = completed(stored.settings, cls, file, written_by, wanted=current.keys())
    lines = []
    for name in sorted(then.keys() | current.keys()):
        before, now = then.get(name), current.get(name)
        if before == now or name in FREE_ON_RESUME or (name, now) == ("precision", "auto"):
            continue
        why = " (every step's learning rate depends on it)" if name in _SCHEDULE else ""
        lines.append(f"{name} was {before}, is {now}{why}")
    return lines


_SCHEDULE = ("steps", "epochs", "max_steps")


def check_same_run(stored: RunState, current: RunState, directory: Path, cls: type) -> None:
    """Refuse to continue with settings or data that change the updates of the run.

    Args:
        stored, current: of a checkpoint, and of the run that is to continue it.
        directory: the checkpoint.
        cls: class of the settings.

    Raises:
        ConfigError: lists every differing setting with both values.
    """
    faults = differing_settings(stored, current.settings, cls, directory)
    if stored.corpus != current.corpus:
        faults.append(f"the corpus had fingerprint {stored.corpus}, has {current.corpus}")
    elif stored.corpus_sample not in ("", current.corpus_sample):  # "": by an earlier version
        faults.append(
            f"the corpus's token files had the sample digest {stored.corpus_sample}, have "
            f"{current.corpus_sample}: a file was exchanged or damaged"
        )
    if stored.vocabulary != current.vocabulary:
        faults.append(f"the tokenizer had hash {stored.vocabulary}, has {current.vocabulary}")
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        start = "init" if any(option.name == "init" for option in options(cls)) else "model"
        raise ConfigError(
            f"{directory} cannot be continued with other settings or data:\n{lines}\n"
            f"To continue it, give the earlier ones ({directory.parent / 'config.yaml'} has the "
            "settings). To train with these, name another --output; there, "
            f"--{start} {directory} begins with its weights"
        )
    changed = {k: v for k, v in current.versions.items() if stored.versions.get(k) != v}
    if changed:
        listed = ", ".join(f"{k} {stored.versions.get(k)} -> {v}" for k, v in changed.items())
        logger.warning(
            "versions changed since the checkpoint (%s): equal, but perhaps not bit for bit", listed
        )
    if stored.threads and current.threads and stored.threads != current.threads:
        logger.warning(
            "the run was computed with %d thread(s), now it has %d: equal, but perhaps not bit for "
            "bit; OMP_NUM_THREADS=%d restores them",
            stored.threads,
            current.threads,
            stored.threads,
        )
