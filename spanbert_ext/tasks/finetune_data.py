"""The files of a fine-tuning run as examples."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_ext.files import new_digest
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.examples import read_examples
from spanbert_ext.tasks.file_checks import same_files
from spanbert_ext.tasks.rejects import as_lines
from spanbert_ext.tasks.task import DownstreamTask

logger = logging.getLogger("spanbert_ext")


@dataclass(frozen=True)
class FinetuneData:
    """What was read before the run's directory is touched.

    Args:
        train, dev: examples.
        digest: of the files' bytes.
        rejects: JSON lines of records left out.
    """

    train: list[Any]
    dev: list[Any]
    digest: str
    rejects: str


def read_data(config: FinetuneConfig, task: DownstreamTask) -> FinetuneData:
    """Read the files of a run; the task learns its labels from the training files.

    Raises:
        DataError: as `read_examples`.
    """
    for one, other in same_files(config.dev, config.train):
        logger.warning(
            "dev %s is the training file %s: its scores say nothing about other text", other, one
        )
    digest, rejects = new_digest(), []

    def examples_of(paths: list[str], purpose: str) -> list[Any]:
        examples = read_examples(task, paths, config.on_error, config.reject_limit, purpose)
        rejects.extend(examples.rejects)
        for path in paths:
            digest.update(Path(path).read_bytes())
        return examples.all

    train = examples_of(config.train, "train")
    task.learn_labels(train)  # a label that only dev has is a fault of dev
    dev = examples_of(config.dev, "choose the best model (without --dev the last one counts)")
    return FinetuneData(train, dev, digest.hexdigest(), as_lines(rejects))


def draw_sample(data: FinetuneData, config: FinetuneConfig) -> FinetuneData:
    """The data with `train_limit` of its training examples, in their order."""
    if config.train_limit is None or config.train_limit >= len(data.train):
        return data
    draw = np.random.Generator(np.random.Philox(key=[config.seed, 1 << 32]))
    kept = sorted(draw.permutation(len(data.train))[: config.train_limit])
    return replace(data, train=[data.train[i] for i in kept])
