"""Named model sizes. No torch here: the command line reads them before anything heavy is loaded."""

from __future__ import annotations


def _size(layers: int, hidden: int) -> dict[str, int]:
    # Every BERT size keeps heads 64 wide and the inner layer four times the hidden size.
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


# Fields of `BertConfig`. The vocabulary size belongs to the tokenizer and is not part of a preset.
# base and large are the published SpanBERT sizes; the others are the sizes of the small BERT
# family.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": _size(2, 128),
    "mini": _size(4, 256),
    "small": _size(4, 512),
    "base": _size(12, 768),
    "large": _size(24, 1024),
}
