"""The installed command in real processes, in fresh directories."""

from types import SimpleNamespace

import pytest
from kill_harness import final_files, training_rows
from runs import Command, prepare_corpus, pretrain_words


@pytest.fixture
def command(tmp_path):
    """A command in a fresh directory, started afresh every time."""
    return Command(tmp_path)


@pytest.fixture
def warm(tmp_path):
    """A command in a fresh directory, forked from a process that has imported everything."""
    return Command(tmp_path, warm=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus of about 1600 pieces, prepared by the command itself."""
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def settings(corpus):
    """Words of the run that `runs.SETTINGS` describes."""
    return pretrain_words(corpus)


@pytest.fixture(scope="session")
def clean(tmp_path_factory, corpus):
    """An uninterrupted run of the command, started afresh: `run`, its directory; `files`, the
    tensors of its last checkpoint; `rows`, what it logged of every step.
    """
    home = tmp_path_factory.mktemp("clean")
    code, output = Command(home).run(*pretrain_words(corpus))
    assert code == 0, output
    run = home / "run"
    return SimpleNamespace(run=run, files=final_files(run), rows=training_rows(run))
