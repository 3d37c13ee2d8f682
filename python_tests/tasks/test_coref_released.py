"""Models of the original TensorFlow coreference, made up here with its variables' names."""

import json

import numpy as np
import pytest
import torch
from coref_runs import story
from tensorflow_cases import write_bundle
from toy_tasks import toy_tokenizer

from spanbert_ext.cli import command
from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref.features import segment
from spanbert_ext.tasks.coref.model.released import read_released
from spanbert_ext.tasks.coref.pipeline import CorefResolver
from spanbert_ext.tasks.coref.predictor import model_inputs
from spanbert_ext.weights.tensorflow import TensorflowCheckpoint

H, LAYERS, INNER, UNITS, FEATURES, WIDTH, SEGMENTS = 12, 2, 16, 10, 3, 4, 3
SPAN = 3 * H + FEATURES
HEAD_SHAPES = {
    "span_width_embeddings": (WIDTH, FEATURES),
    "span_width_prior_embeddings": (WIDTH, FEATURES),
    "genre_embeddings": (7, FEATURES),
    "antecedent_distance_emb": (10, FEATURES),
    "coref_layer/antecedent_distance_emb": (10, FEATURES),
    "coref_layer/same_speaker_emb": (2, FEATURES),
    "coref_layer/segment_distance/segment_distance_embeddings": (SEGMENTS, FEATURES),
}
# Scope -> inputs, hidden units (0: none), outputs.
NETWORKS = {
    "mention_word_attn/": (H, 0, 1),
    "mention_scores/": (SPAN, UNITS, 1),
    "width_scores/": (FEATURES, UNITS, 1),
    "src_projection/": (SPAN, 0, SPAN),
    "": (FEATURES, 0, 1),
    "coref_layer/slow_antecedent_scores/": (3 * SPAN + 4 * FEATURES, UNITS, 1),
    "coref_layer/f/": (2 * SPAN, 0, SPAN),
}


def shapes(vocabulary):
    found = dict(HEAD_SHAPES)
    for scope, (inputs, units, outputs) in NETWORKS.items():
        if units:
            found |= {
                f"{scope}hidden_weights_0": (inputs, units),
                f"{scope}hidden_bias_0": (units,),
            }
        found |= {f"{scope}output_weights": (units or inputs, outputs)}
        found |= {f"{scope}output_bias": (outputs,)}
    bert = {"embeddings/word_embeddings": (vocabulary, H)}
    bert |= {"embeddings/position_embeddings": (64, H), "embeddings/token_type_embeddings": (2, H)}
    norms = ["embeddings/LayerNorm"]
    for n in range(LAYERS):
        layer = f"encoder/layer_{n}"
        dense = {f"attention/self/{part}": (H, H) for part in ("query", "key", "value")}
        dense |= {"attention/output/dense": (H, H), "intermediate/dense": (H, INNER)}
        dense |= {"output/dense": (INNER, H)}
        for name, shape in dense.items():
            bert |= {f"{layer}/{name}/kernel": shape, f"{layer}/{name}/bias": shape[1:]}
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    bert |= {f"{norm}/{part}": (H,) for norm in norms for part in ("gamma", "beta")}
    bert |= {"pooler/dense/kernel": (H, H), "pooler/dense/bias": (H,)}
    found |= {f"bert/{name}": shape for name, shape in bert.items()}
    return found | {"bert/embeddings/word_embeddings/adam_m": (1,), "genre_embeddings/Adam_1": (1,)}


@pytest.fixture(scope="module")
def variables():
    draw = np.random.default_rng(3)
    found = {
        name: draw.normal(0, 0.4, shape).astype(np.float32)
        for name, shape in shapes(len(toy_tokenizer())).items()
    }
    return found | {"global_step": np.int64(57000), "beta1_power": np.float32(0.9)}


def write(folder, variables, **config):
    folder.mkdir()
    fields = {
        "hidden_size": H,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "vocab_size": len(toy_tokenizer()),
        "directionality": "bidi",
    }
    (folder / "bert_config.json").write_text(json.dumps(fields | config))
    pieces = sorted(toy_tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n")
    write_bundle(folder / "model.max.ckpt", variables)
    return folder


@pytest.fixture(scope="module")
def folder(variables, tmp_path_factory):
    return write(tmp_path_factory.mktemp("released") / "spanbert_toy", variables)


def test_arrays_come_back(variables, folder):
    stored = TensorflowCheckpoint(folder / "model.max.ckpt")
    assert set(stored) == set(variables) and len(stored) == len(variables)
    for name, array in variables.items():
        assert np.array_equal(stored[name], array) and stored[name].dtype == array.dtype


def network(variables, scope, x):
    """The feed-forward network of a scope."""
    if f"{scope}hidden_weights_0" in variables:
        x = x @ variables[f"{scope}hidden_weights_0"] + variables[f"{scope}hidden_bias_0"]
        x = np.maximum(x, 0)
    return x @ variables[f"{scope}output_weights"] + variables[f"{scope}output_bias"]


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def span_vectors(variables, hidden, spans):
    attention = network(variables, "mention_word_attn/", hidden)[:, 0]
    rows = []
    for first, last in spans:
        inside = slice(first, last + 1)
        head = softmax(attention[inside]) @ hidden[inside]
        width = variables["span_width_embeddings"][last - first]
        rows.append(np.concatenate([hidden[first], hidden[last], width, head]))
    return np.array(rows)


def bucket(distance):
    return distance if distance < 5 else min(9, int(np.log2(distance)) + 3)


def pair_scores(variables, vectors, i, js, coarse, speakers, segments, genre):
    rows = []
    for j in js:
        features = [
            variables["coref_layer/same_speaker_emb"][int(speakers[i] == speakers[j])],
            variables["genre_embeddings"][genre],
            variables["coref_layer/antecedent_distance_emb"][bucket(i - j)],
            variables["coref_layer/segment_distance/segment_distance_embeddings"][
                min(segments[i] - segments[j], SEGMENTS - 1)
            ],
        ]
        rows.append(np.concatenate([vectors[i], vectors[j], vectors[i] * vectors[j], *features]))
    return coarse + network(variables, "coref_layer/slow_antecedent_scores/", np.array(rows))[:, 0]


@pytest.mark.parametrize("known", [True, False])
def test_scores_are_those_of_the_original_formulas(variables, folder, known):
    """Written once more from its variables, without our layers; with and without speakers."""
    model = read_released(folder).double().eval()
    wide = {name: array.astype(np.float64) for name, array in variables.items()}
    document = story(1, sentences=12)
    (feature,) = segment([document], toy_tokenizer(), 16)
    inputs = model_inputs(feature, 3, torch.device("cpu"), with_gold=False)  # mz, their number 2
    inputs["speakers"] = torch.arange(len(feature.tokens)) // 6 % 2 + 1
    if not known:
        inputs["speakers"][:] = 0
    with torch.no_grad():
        output = model(**inputs)
        hidden = model.encode(inputs["input_ids"], inputs["cu_seqlens"])[0].numpy()
    spans = list(zip(output.starts.tolist(), output.ends.tolist(), strict=True))
    assert len(spans) > 12 and feature.segments > 2
    vectors = span_vectors(wide, hidden, spans)
    prior = network(wide, "width_scores/", wide["span_width_prior_embeddings"])[:, 0]
    mentions = network(wide, "mention_scores/", vectors)[:, 0]
    mentions += prior[[last - first for first, last in spans]]
    np.testing.assert_allclose(output.mention_scores.numpy(), mentions, rtol=1e-9)
    speakers = inputs["speakers"].numpy()[[first for first, _ in spans]]
    segments = feature.segment_of[[first for first, _ in spans]]
    sources = network(wide, "src_projection/", vectors)
    distances = network(wide, "", wide["antecedent_distance_emb"])[:, 0]
    antecedents = [row[row >= 0].tolist() for row in output.antecedents.numpy()]
    coarse = [
        np.array([mentions[i] + mentions[j] + sources[i] @ vectors[j] + distances[bucket(i - j)]
                  for j in js])
        for i, js in enumerate(antecedents)
    ]  # fmt: skip
    facts = (speakers, segments, 2)
    refined = vectors.copy()
    for i, js in enumerate(antecedents):
        scores = np.zeros(1)
        if js:
            scores = np.append(0.0, pair_scores(wide, vectors, i, js, coarse[i], *facts))
        attended = softmax(scores) @ np.stack([vectors[i], *vectors[js]])
        gate = network(wide, "coref_layer/f/", np.concatenate([vectors[i], attended]))
        gate = 1 / (1 + np.exp(-gate))
        refined[i] = gate * attended + (1 - gate) * vectors[i]
    for i, js in enumerate(antecedents):
        found = output.antecedent_scores[i].numpy()
        assert np.isneginf(found[1 + len(js) :]).all()
        if js:
            expected = pair_scores(wide, refined, i, js, coarse[i], *facts)
            np.testing.assert_allclose(found[1 : 1 + len(js)], expected, rtol=1e-8, atol=1e-8)


def test_the_encoder_is_transposed(variables, folder):
    own = read_released(folder).state_dict()
    kernel = variables["bert/encoder/layer_1/attention/self/key/kernel"]
    assert np.array_equal(own["bert.encoder.layer.1.attention.self.key.weight"], kernel.T)
    gamma = variables["bert/encoder/layer_0/output/LayerNorm/gamma"]
    assert np.array_equal(own["bert.encoder.layer.0.output.LayerNorm.weight"], gamma)
    words = variables["bert/embeddings/word_embeddings"]
    assert np.array_equal(own["bert.embeddings.word_embeddings.weight"], words)


def test_export_makes_a_model_that_predicts(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["export", str(folder), str(out)]) == 0
    said = capsys.readouterr().out
    assert "original coreference in TensorFlow" in said and "spanbert predict coref" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    resolver = CorefResolver(out, device="cpu")
    assert resolver.predictor.task.options.max_segment_len == 64
    assert resolver.predictor.model.options.genres[2] == "mz"
    assert resolver("Anna was bad. Boris is fine.", genre="bn").words[0] == "Anna"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mention_scores/output_bias": None}, "1 missing: mention_scores/output_bias"),
        ({"char_emb": np.zeros(3, np.float32)}, "1 unknown: char_emb"),
        ({"src_projection/output_bias": np.zeros(3, np.float32)}, r"is \(3,\), not \(39,\)"),
        ({"genre_embeddings": np.zeros((2, FEATURES), np.float32)}, "7 genres are expected"),
    ],
)
def test_other_variables_are_refused(variables, tmp_path, change, message):
    changed = {k: v for k, v in (variables | change).items() if v is not None}
    with pytest.raises(DataError, match=message):
        read_released(write(tmp_path / "odd", changed))


def test_damaged_files_are_named(variables, tmp_path):
    folder = write(tmp_path / "x", variables)
    data, index = (folder / f"model.max.ckpt.{end}" for end in ("data-00000-of-00001", "index"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-10_000])
    with pytest.raises(DataError, match="the file ends inside"):
        read_released(folder)
    data.unlink()
    with pytest.raises(DataError, match="data-00000-of-00001: cannot be read"):
        read_released(folder)
    for content in (b"", index.read_bytes()[:-1], b"x" * 100, index.read_bytes()[100:]):
        index.write_bytes(content)
        with pytest.raises(DataError, match="not the index of a TensorFlow checkpoint"):
            read_released(folder)
    index.unlink()
    with pytest.raises(DataError, match="exactly one checkpoint is expected"):
        read_released(folder)
