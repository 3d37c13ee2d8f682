"""A tiny model to fine-tune, and one thread: sums must not depend on what else runs."""

import pytest
import torch
from toy_tasks import toy_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_bert(tmp_path_factory):
    """A directory of a tiny BERT with random weights."""
    return toy_model(tmp_path_factory.mktemp("toy") / "bert")
