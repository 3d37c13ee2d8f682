"""A pre-training run from its settings."""

from __future__ import annotations

from spanbert_ext.data import open_corpus
from spanbert_ext.errors import ConfigError
from spanbert_ext.training.config import PretrainConfig
from spanbert_ext.training.entry import BuildRun, Kind, run_all
from spanbert_ext.training.pretrain_run import PretrainRun
from spanbert_ext.training.ranks import Ranks
from spanbert_ext.training.run import RunResult
from spanbert_ext.training.state import RunState


def pretrain(config: PretrainConfig) -> RunResult:
    """Pre-train, or continue a run, until its last step.

    With `nproc` above 1 the processes are started here. Under torchrun every process calls this.

    Raises:
        ConfigError: also for settings that are impossible; otherwise as `entry.run_all`.
    """
    config.validate()
    if config.corpus is None:
        raise ConfigError("corpus: a directory written by `spanbert prepare` is required")

    def is_finished(state: RunState) -> bool:
        return state.step >= config.steps and state.settings.get("steps") == config.steps

    def read(_ranks: Ranks) -> BuildRun:
        corpus = open_corpus(config.corpus)
        return lambda *where: PretrainRun(config, corpus, *where)

    return run_all(config, Kind(["pretrain"], is_finished, read))
