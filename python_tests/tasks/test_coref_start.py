"""Where a coreference model comes from: fresh weights, a BERT, a file; and its options."""

import json

import pytest
import torch
from coref_model_cases import HEAD, config, document, make_model
from transformers import BertForMaskedLM, BertModel

from spanbert_ext import SpanBertConfig, SpanBertForPreTraining
from spanbert_ext.errors import ConfigError
from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference


def test_saved_and_loaded_bit_for_bit(tmp_path):
    model = make_model(genres=["nw", "bc"], singletons=True, coref_depth=3)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert CorefModelOptions.from_dict(saved["coref"]) == model.options
    again = SpanBertForCoreference.from_pretrained(tmp_path)
    assert again.options == model.options
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs = document()
    assert torch.equal(model(**inputs).antecedent_scores, again(**inputs).antecedent_scores)


def test_every_parameter_of_the_head_is_initialised():
    """Weights within two standard deviations of 0.02, biases 0; nothing is left to torch."""
    torch.manual_seed(0)
    model = SpanBertForCoreference(config(genres=["nw"], ffnn_size=300))
    for name, parameter in model.task_parameters():
        if name.endswith("bias"):
            assert not bool(parameter.any()), name
        else:
            assert 0 < parameter.abs().max().item() <= 0.04, name
    # A normal distribution cut at two deviations has 0.88 of its deviation; 21 000 numbers.
    deviation = model.coref.antecedents.network.inner.weight.std().item()
    assert deviation == pytest.approx(0.02 * 0.8796, rel=0.03)


def bert_folder(tmp_path, kind):
    torch.manual_seed(2)
    plain = config()
    del plain.coref
    source = kind(plain)
    source.save_pretrained(tmp_path)
    return source


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_start_from_bert(tmp_path, kind):
    source = bert_folder(tmp_path, kind)
    options = CorefModelOptions(**HEAD)
    for encoder in (source, tmp_path):
        model = SpanBertForCoreference.from_encoder(encoder, options)
        assert model.options == options
        own = source.base_model.state_dict()
        for name, values in model.bert.state_dict().items():
            assert torch.equal(values, own[name]), name
    assert not hasattr(source.config, "coref")
    loaded = SpanBertForCoreference.from_pretrained(tmp_path)
    assert loaded.options == CorefModelOptions()
    for name, values in loaded.bert.state_dict().items():
        assert torch.equal(values, own[name]), name


def test_a_start_from_our_pretraining(tmp_path):
    fields = config().to_dict()
    fields = {n: fields[n] for n in ("vocab_size", "hidden_size", "num_attention_heads")}
    source = SpanBertForPreTraining(
        SpanBertConfig(
            **fields, num_hidden_layers=1, intermediate_size=8, weights_licence="CC-BY-NC 4.0"
        )
    )
    source.save_pretrained(tmp_path)
    for encoder in (source, tmp_path):
        model = SpanBertForCoreference.from_encoder(encoder, CorefModelOptions(**HEAD))
        assert model.config.model_type == "bert"
        assert model.config.weights_licence == "CC-BY-NC 4.0"
        assert not hasattr(model.config, "sbo_weight")
        own = source.bert.state_dict()
        assert all(torch.equal(v, own[n]) for n, v in model.bert.state_dict().items())


def test_other_encoders_are_refused():
    from transformers import ElectraConfig, ElectraModel

    small = ElectraConfig(
        vocab_size=9, hidden_size=4, embedding_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="must be BERT; got 'electra'"):
        SpanBertForCoreference.from_encoder(ElectraModel(small))


@pytest.mark.parametrize(
    "head, message",
    [
        ({"span_ratio": 0}, "coref.span_ratio: must be above 0; got 0"),
        ({"ffnn_size": 2.5}, "coref.ffnn_size: must be an integer of at least 1; got 2.5"),
        ({"dropout": 1.0}, r"coref.dropout: must lie in \[0, 1\); got 1.0"),
        ({"genres": []}, "coref.genres: must be a list of codes, or null"),
        ({"genres": ["nw", "nw"]}, "coref.genres: nw stands there twice"),
        ({"speakers": 1}, "coref.speakers: must be true or false; got 1"),
        ({"depth": 1}, "has no setting coref.depth; the file was written by another"),
    ],
)
def test_impossible_options_are_named(head, message):
    with pytest.raises(ConfigError, match=message):
        SpanBertForCoreference(config(**head))


def test_genres_have_numbers():
    options = CorefModelOptions(genres=["nw", "bc"])
    assert [options.genre_id(code) for code in ("nw", "bc", "tc", None)] == [1, 2, 0, 0]
    assert CorefModelOptions().genre_id("nw") == 0
