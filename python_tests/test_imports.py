"""What may be used without the packages that only the training path needs."""

import pytest
from strategies import run_python

TASKS = {
    "qa": ("data", "features", "decode", "metrics"),
    "tagging": ("data", "features", "decode", "metrics"),
    "relation": ("data", "features", "metrics"),
    "classification": ("data", "metrics"),
    "coref": ("data", "features", "decode", "metrics"),
}


def test_masker_and_head_need_torch_and_numpy_alone():
    code = """
import sys
BLOCKED = {"transformers", "tokenizers", "yaml", "pyarrow", "datatrove", "xxhash", "tqdm",
           "safetensors", "scipy"}
class Wall:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Wall())
import torch
from spanbert_ext import SpanMasker, MaskedBatch, SBOHead, linear_cross_entropy
batch = SpanMasker([True] * 9, [0, 1], 1)(torch.arange(2, 9)[None])
assert isinstance(batch, MaskedBatch)
rows = SBOHead(4)(torch.zeros(1, 7, 4), batch)
print(float(linear_cross_entropy(rows, torch.zeros(9, 4), batch.sbo_ids)))
"""
    child = run_python(code)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("task", TASKS)
def test_reading_and_scoring_a_task_needs_no_torch(task):
    """A predictor without torch has these."""
    code = f"""
import importlib, sys
class Wall:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Wall())
for name in {TASKS[task]}:
    importlib.import_module("spanbert_ext.tasks.{task}." + name)
"""
    child = run_python(code)
    assert child.returncode == 0, child.stderr
