"""Code written for 0.1.0 finds its modules."""

import importlib
import sys

import pytest
from strategies import run_python

from spanbert_ext._moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_a_module_has_its_old_name_too(name):
    with pytest.warns(
        DeprecationWarning, match=f"spanbert_ext.{name} is spanbert_ext.{MOVED[name]}"
    ):
        sys.modules.pop(f"spanbert_ext.{name}", None)
        old = importlib.import_module(f"spanbert_ext.{name}")
    new = importlib.import_module(f"spanbert_ext.{MOVED[name]}")
    assert old is new
    assert new.__spec__.name == new.__name__ == f"spanbert_ext.{MOVED[name]}"


def test_names_of_old_modules_are_the_new_ones():
    child = run_python(
        "from spanbert_ext.cross_entropy import two_head_cross_entropy as old\n"
        "import spanbert_ext.modeling\n"
        "from spanbert_ext.masked_batch import MaskedBatch\n"
        "from spanbert_ext import MaskedBatch as public\n"
        "from spanbert_ext.ops.cross_entropy import two_head_cross_entropy as new\n"
        "assert old is new and MaskedBatch is public\n"
        "assert spanbert_ext.modeling.SpanBertConfig\n"
    )
    assert child.returncode == 0, child.stderr


def test_other_names_are_missing_as_ever():
    with pytest.raises(ModuleNotFoundError, match="spanbert_ext.nothing"):
        importlib.import_module("spanbert_ext.nothing")
