"""Corpora shared by the data tests; made once, read only."""

import pytest
from corpora import small_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Prose of Python's manual in blank-line documents, with a small learned vocabulary."""
    return small_corpus(tmp_path_factory.mktemp("corpus"))
