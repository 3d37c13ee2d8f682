"""What may be used without the packages that only the training path needs."""

from strategies import run_python


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
