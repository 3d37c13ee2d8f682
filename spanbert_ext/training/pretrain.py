"""A pre-training run from its settings."""

from __future__ import annotations

from pathlib import Path

from spanbert_ext.data import open_corpus
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.entry import BuildRun, Kind, run_all
from spanbert_ext.training.pretrain_run import PretrainRun
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.run import RunResult
from spanbert_ext.training.state import RunState, differing_settings


def pretrain(config: PretrainConfig) -> RunResult:
    """Pre-train, or continue a run, until its last step.

    With `nproc` above 1 the processes are started here. Under torchrun every process calls this.

    Raises:
        ConfigError: also for settings that are impossible; otherwise as `entry.run_all`.
    """
    config.validate()
    if config.corpus is None:
        raise ConfigError("corpus: a directory written by `spanbert prepare` is required")

    def is_finished(state: RunState, start: Path) -> bool:
        # With other settings it is not this run: going on will refuse, and name them.
        done = state.step >= config.steps
        return done and not differing_settings(state, as_flat_dict(config), PretrainConfig, start)

    def read(_ranks: Ranks) -> BuildRun:
        corpus = open_corpus(config.corpus)
        return lambda *where: PretrainRun(config, corpus, *where)

    return run_all(config, Kind(["pretrain"], is_finished, read))
