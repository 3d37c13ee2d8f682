"""Named model sizes. No torch here: the command line reads them before anything heavy is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanbert_ext.training.config import ModelOptions


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


def model_size(preset: str, model: ModelOptions) -> dict[str, int | float]:
    """The preset's BertConfig fields with the overrides of `model`."""
    overrides = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": model.feed_forward,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
    }
    return PRESETS[preset] | {key: value for key, value in overrides.items() if value is not None}
