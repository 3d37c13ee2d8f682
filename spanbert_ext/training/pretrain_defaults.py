"""Defaults of pre-training that depend on what is given: what does not fit a short run or a small
corpus is lowered, and said. Settings that are given are never changed. Torch-free to import.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spanbert_ext.training.config import DEMONSTRATION, PretrainConfig
from spanbert_ext.training.config_checks import short_warmup

logger = logging.getLogger("spanbert_ext")


def pretrain_defaults(given: Mapping[str, Any]) -> PretrainConfig:
    """What holds where nothing is given: the published settings, without a corpus those of the
    demonstration; a run that is shorter than their warm-up warms up for a tenth of its steps.

    Args:
        given: dotted names and values.
    """
    defaults = DEMONSTRATION if given.get("corpus") is None else PretrainConfig()
    steps = given.get("steps", defaults.steps)
    if steps >= defaults.optimizer.warmup_steps:
        return defaults
    shorter = replace(defaults.optimizer, warmup_steps=short_warmup(steps))
    return replace(defaults, optimizer=shorter)


def tell_of_warmup(config: PretrainConfig) -> None:
    """Say that a run without a given warm-up has a shorter one than the default, if it has."""
    usual = DEMONSTRATION if config.corpus is None else PretrainConfig()
    found, default = config.optimizer.warmup_steps, usual.optimizer.warmup_steps
    if found != default and os.environ.get("RANK", "0") == "0":
        logger.info(
            "optimizer.warmup_steps: the default, %d, does not fit into %d steps; taking %d",
            default,
            config.steps,
            found,
        )


def lowered_rows(config: PretrainConfig) -> PretrainConfig:
    """Settings whose `batch.rows` are at most what the corpus fills, for a run that names none.

    Raises:
        ConfigError, DataError: the corpus cannot be opened.
    """
    from spanbert_ext.data import open_corpus
    from spanbert_ext.data.mixture import MixedCorpus
    from spanbert_ext.training.pretrain_batches import fitting_rows, training_rows
    from spanbert_ext.training.ranks import place_in_world

    batch, (rank, world, _) = config.batch, place_in_world()
    corpus = open_corpus(config.corpus)
    tokens = corpus.num_tokens * (1 - corpus.validation_fraction)
    if isinstance(corpus, MixedCorpus) or tokens > 2 * batch.rows * batch.max_length:
        return config  # a row holds at most max_length of them: there are enough
    found = len(training_rows(corpus, config))
    fitting = fitting_rows(config, found, max(world, config.nproc))
    if found >= batch.rows or not fitting:
        return config
    if rank == 0:
        logger.info(
            "batch.rows: %s fills %d rows of %d tokens, fewer than the default, %d; taking %d",
            *(config.corpus, found, batch.max_length, batch.rows, fitting),
        )
    return replace(config, batch=replace(batch, rows=fitting))
