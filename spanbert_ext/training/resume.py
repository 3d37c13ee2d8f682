"""Which checkpoint a run continues, and what is restored besides its weights."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from spanbert_ext.data import Corpus
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.files import new_digest
from spanbert_ext.training import checkpoint
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.ranks import ALONE, Ranks
from spanbert_ext.training.state import load_generators, load_optimizer, read_state

logger = logging.getLogger("spanbert_ext")

_BLOCKS, _BLOCK_TOKENS = 64, 2048  # of a token file's sample


def choose_start(run: Path, config: PretrainConfig) -> Path | None:
    """The checkpoint to continue, None to start afresh.

    Args:
        run: the run's own directory.
        config: `resume`, `strict_resume` and `weights_only` decide.

    Raises:
        ConfigError: `never` with checkpoints present, or a path that is no checkpoint and no run,
            or one of another run.
        StorageError: the chosen checkpoint, or every one there is, is damaged.
    """
    rules = {"strict": config.strict_resume, "weights_only": config.weights_only}
    if config.resume == "auto":
        return checkpoint.newest(run, **rules)
    existing = checkpoint.list_steps(run)
    if config.resume == "never":
        if existing:
            raise ConfigError(
                f"{run} already holds {len(existing)} checkpoint(s) and resume is never; choose "
                f"another output"
            )
        return None
    added = checkpoint.newest(run, weights_only=config.weights_only)
    if added is not None and read_state(added).settings.get("resume") == config.resume:
        logger.info("this command has continued %s before: going on from there", config.resume)
        return checkpoint.newest(run, **rules) if config.strict_resume else added
    return _named_start(run, Path(config.resume), bool(existing), rules)


def _named_start(run: Path, path: Path, run_has_steps: bool, rules: dict[str, bool]) -> Path:
    """The checkpoint at `path`, or the newest of the run at `path`."""
    if (path / checkpoint.MANIFEST).is_file():
        fault = checkpoint.find_fault(path, rules["weights_only"])
        if fault:
            raise StorageError(f"checkpoint {path} is damaged: {fault}")
        found = path
    else:
        found = checkpoint.newest(path, **rules)
    if found is None:
        raise ConfigError(
            f"resume: {path} is neither a checkpoint (no {checkpoint.MANIFEST}) nor a run that "
            "holds one"
        )
    if found.resolve().parent == run.resolve():
        return run / found.name
    if run_has_steps:
        raise ConfigError(
            f"resume: {found} belongs to another run, and {run} already holds checkpoints; choose "
            f"another output, or leave resume out to continue {run}"
        )
    return found


def content_sample(corpus: Corpus) -> str:
    """Digest of a few blocks spread over each token file, 32 hex digits.

    An exchanged file shows in it at no cost worth naming; a single flipped bit shows only in
    `Corpus.verify`, which reads everything.
    """
    digest = new_digest()
    for shard in corpus.shards:
        size = shard.tokens.size
        for start in sorted({size * i // _BLOCKS for i in range(_BLOCKS)}):
            digest.update(shard.tokens[start : start + _BLOCK_TOKENS].tobytes())
    return digest.hexdigest()


def restore_training_state(
    start: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    ranks: Ranks = ALONE,
    weights_only: bool = False,
) -> None:
    """Moments and generators of a checkpoint; with `weights_only` those of a damaged one stay as
    they are, with a warning.

    Raises:
        StorageError: they cannot be restored.
    """
    fault = checkpoint.find_fault(start) if weights_only else ""
    if fault:
        logger.warning(
            "%s: %s; continuing with its weights, moments and generators start anew", start, fault
        )
        return
    load_optimizer(start, model, optimizer)
    load_generators(start, device, ranks, read_state(start).world_size)
