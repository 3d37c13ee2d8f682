"""Synthetic weights in the files of the original SpanBERT, and its forward pass in plain torch.

Names and shapes are those of the released archives, sizes are small; the forward pass follows the
formulas of BERT and of the paper's section 3 on those names, with no code of this package.
"""

import argparse
import json
import tarfile

import torch
import torch.nn.functional as F

VOCAB, HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 160, 128, 2, 2, 96, 24
SPAN_POSITIONS, POSITION_SIZE = 15, 200


def encoder_shapes():
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **norm("embeddings.LayerNorm"),
    }
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        shapes |= linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        shapes |= norm(f"{layer}.attention.output.LayerNorm")
        shapes |= linear(f"{layer}.intermediate.dense", HIDDEN, INNER)
        shapes |= linear(f"{layer}.output.dense", INNER, HIDDEN)
        shapes |= norm(f"{layer}.output.LayerNorm")
    return {f"bert.{name}": shape for name, shape in shapes.items()}


def head_shapes():
    pair = "cls.pair_target_predictions"
    return {
        **linear("cls.predictions.transform.dense", HIDDEN, HIDDEN),
        **norm("cls.predictions.transform.LayerNorm"),
        "cls.predictions.bias": (VOCAB,),
        f"{pair}.position_embeddings.weight": (SPAN_POSITIONS, POSITION_SIZE),
        **linear(f"{pair}.mlp_layer_norm.linear1", 2 * HIDDEN + POSITION_SIZE, HIDDEN),
        **norm(f"{pair}.mlp_layer_norm.layer_norm1"),
        **linear(f"{pair}.mlp_layer_norm.linear2", HIDDEN, HIDDEN),
        **norm(f"{pair}.mlp_layer_norm.layer_norm2"),
        f"{pair}.bias": (VOCAB,),
    }


def linear(name, inside, outside):
    return {f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)}


def norm(name):
    return {f"{name}.gamma": (HIDDEN,), f"{name}.beta": (HIDDEN,)}


def draw(shapes):
    generator = torch.Generator().manual_seed(3)
    weights = {n: torch.randn(s, generator=generator) * 0.15 for n, s in shapes.items()}
    for name in weights:
        if name.endswith(".gamma"):
            weights[name] += 1.0
    return weights


def fairseq_weights(nsp=False):
    """Tensors of `model.pt`."""
    extra = linear("bert.pooler.dense", HIDDEN, HIDDEN) | linear("cls.seq_relationship", HIDDEN, 2)
    weights = draw({**encoder_shapes(), **head_shapes(), **(extra if nsp else {})})
    for head in ("predictions", "pair_target_predictions"):
        words = weights["bert.embeddings.word_embeddings.weight"]
        weights[f"cls.{head}.decoder.weight"] = words.clone()
    return {f"decoder.{name}": tensor for name, tensor in weights.items()}


def write_fairseq(path, weights=None, **more):
    """As the training code of 2019 saved: options, optimizer state, torch's older file format."""
    content = {
        "args": argparse.Namespace(arch="cased_bert_pair_large", lr=[1e-4], max_pair_targets=15),
        "model": fairseq_weights() if weights is None else weights,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 5}],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": 2.5},
        **more,
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def write_encoder(folder, **changes):
    """`config.json` without model_type and `pytorch_model.bin`, as in spanbert_hf_base."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = draw(encoder_shapes() | linear("bert.pooler.dense", HIDDEN, HIDDEN))
    config = {
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": 2,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return weights


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


class Reference:
    """The original model in double precision on one sequence, from its own tensors."""

    def __init__(self, weights):
        self.weights = {n.removeprefix("decoder."): t.double() for n, t in weights.items()}

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        gamma, beta = self.weights[f"{name}.gamma"], self.weights[f"{name}.beta"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * gamma + beta

    def table(self, name):
        return self.weights[f"{name}.weight"]

    def hidden(self, ids):
        """[L] to [L, H]."""
        place = "bert.embeddings"
        x = self.table(f"{place}.word_embeddings")[ids]
        x = x + self.table(f"{place}.position_embeddings")[: len(ids)]
        x = x + self.table(f"{place}.token_type_embeddings")[0]
        x = self.norm(x, f"{place}.LayerNorm")
        for n in range(LAYERS):
            layer = f"bert.encoder.layer.{n}"
            q, k, v = (
                self.linear(x, f"{layer}.attention.self.{part}").view(len(ids), HEADS, -1)
                for part in ("query", "key", "value")
            )
            scores = torch.einsum("ihd,jhd->hij", q, k) / (HIDDEN // HEADS) ** 0.5
            context = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
            attended = self.linear(context, f"{layer}.attention.output.dense")
            x = self.norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(
                x + self.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm"
            )
        return x

    def mlm_logits(self, hidden):
        """[L, H] to [L, V]."""
        place = "cls.predictions"
        x = F.gelu(self.linear(hidden, f"{place}.transform.dense"))
        x = self.norm(x, f"{place}.transform.LayerNorm")
        return x @ self.table(f"{place}.decoder").T + self.weights[f"{place}.bias"]

    def sbo_logits(self, hidden, left, right, offset):
        """[V] of the `offset`-th token (from 0) of the span between two tokens."""
        place = "cls.pair_target_predictions"
        position = self.table(f"{place}.position_embeddings")[offset]
        x = torch.cat([hidden[left], hidden[right], position])
        for n in (1, 2):
            x = F.gelu(self.linear(x, f"{place}.mlp_layer_norm.linear{n}"))
            x = self.norm(x, f"{place}.mlp_layer_norm.layer_norm{n}")
        return self.table(f"{place}.decoder") @ x + self.weights[f"{place}.bias"]
