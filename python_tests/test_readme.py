"""The README's example for other people's trainers, run as it stands."""

import re
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_trains_both_heads(tmp_path):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat"]
    words += ["and", "##s", "look", "##ed"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    encoder = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
    )
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    (example,) = [text for text in examples if "SpanMasker" in text]
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 12
    lengths = torch.tensor([24, 17])
    input_ids = torch.randint(5, len(words), (2, 24), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(24) < lengths.unsqueeze(1)).long()
    names = {
        "tokenizer": tokenizer,
        "encoder": encoder,
        "input_ids": input_ids * mask,
        "lengths": lengths,
        "mask": mask,
        "ids": torch.tensor([5, 9]),
        "epoch": 0,
    }
    exec(compile(example, str(README), "exec"), names)
    assert torch.isfinite(names["mlm"] + names["span"])
    for module in (encoder, names["sbo"]):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
