"""Strict settings: every fault at once, nearest names, impossible values."""

import dataclasses
import subprocess
import sys
from typing import Literal

import pytest
import yaml

from spanbert_ext.data.config import PrepareConfig
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import as_flat_dict, build, convert, flatten, nest, options
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.coref.options import CorefFinetuneConfig
from spanbert_ext.training.config import DEMONSTRATION, FREE_ON_RESUME, PretrainConfig
from spanbert_ext.training.presets import model_size


def faults_of(**settings):
    with pytest.raises(ConfigError) as caught:
        build(PretrainConfig, settings)
    return str(caught.value)


def test_defaults_are_the_published_settings():
    """Paper section 4.2 and SPEC 3.1, typed by hand."""
    flat = as_flat_dict(build(PretrainConfig, {}))
    published = {
        "preset": "base",
        "steps": 2_400_000,
        "masking.scheme": "span",
        "masking.candidate_prob": 0.5,
        "masking.endpoints": "external",
        "masking.mask_ratio": 0.15,
        "masking.geometric_p": 0.2,
        "masking.min_words": 1,
        "masking.max_words": 10,
        "masking.replacement": "span",
        "masking.max_span_targets": 15,
        "loss.sbo_weight": 1.0,
        "loss.kind": "code",
        "optimizer.peak_lr": 1e-4,
        "optimizer.warmup_steps": 10_000,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 0.1,
        "optimizer.clip_norm": 1.0,
        "batch.rows": 256,
        "batch.max_length": 512,
    }
    assert {name: flat[name] for name in published} == published


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("masking.mask_ratio", 0, "(0, 1]"),
        ("masking.mask_ratio", 1.5, "(0, 1]"),
        ("masking.mask_ratio", "nan", "a number; got 'nan'"),
        ("masking.geometric_p", 1, "(0, 1)"),
        ("masking.min_words", 0, "at least 1"),
        ("masking.max_words", 0, "below masking.min_words 1"),
        ("masking.max_span_targets", 0, "at least 1"),
        ("masking.replacement", "word", "span, piece"),
        ("masking.scheme", "entities", "span, piece, word, entity, phrase"),
        ("masking.candidate_prob", 0.3, "the scheme span does not use it"),
        ("masking.endpoints", "outer", "external, internal"),
        ("model.heads", 7, "do not divide a hidden size of 768"),
        ("model.dropout", 1, "[0, 1)"),
        ("optimizer.warmup_steps", 3_000_000, "do not fit into 2400000 steps"),
        ("optimizer.peak_lr", 0, "greater than 0"),
        ("optimizer.peak_lr", "inf", "a number; got 'inf'"),
        ("optimizer.beta2", 1, "[0, 1)"),
        ("batch.micro_rows", 100, "does not divide batch.rows 256"),
        ("batch.rows", "many", "a whole number"),
        ("batch.rows", 1.5, "a whole number"),
        ("batch.max_length", 1024, "at most 512"),
        ("seed", -1, "[0, 9223372036854775807]"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("precision", "fp16", "auto, bf16, fp32"),
        ("checkpoint.space_check", "maybe", "true or false"),
        ("checkpoint.keep", 0, "at least 1"),
        ("log_every", True, "a whole number"),
    ],
)
def test_impossible_values(name, value, part):
    message = faults_of(**{name: value})
    assert message.startswith(f"{name}: ")
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("scheme", ["piece", "word", "entity", "phrase"])
def test_settings_that_a_scheme_does_not_read_are_refused(scheme):
    lengths = {"geometric_p": 0.3, "min_words": 2, "max_words": 5}
    given = {f"masking.{name}": value for name, value in lengths.items()}
    sbo_weight = 0.0 if scheme == "piece" else 1.0
    message = faults_of(**{"masking.scheme": scheme, "loss.sbo_weight": sbo_weight, **given})
    for name in lengths:
        assert f"masking.{name}: the scheme {scheme} does not use it" in message
    probability = {"masking.scheme": scheme, "masking.candidate_prob": 0.9}
    if scheme in ("entity", "phrase"):
        build(PretrainConfig, probability)
        assert "[0, 1]; got 1.1" in faults_of(**probability | {"masking.candidate_prob": 1.1})
    else:
        assert "masking.candidate_prob" in faults_of(**probability)


def test_pieces_have_no_boundary_objective():
    message = faults_of(**{"masking.scheme": "piece"})
    assert message.startswith("loss.sbo_weight: the scheme piece has no targets")
    build(PretrainConfig, {"masking.scheme": "piece", "loss.sbo_weight": 0})


def test_all_faults_are_listed_at_once():
    message = faults_of(
        **{
            "masking.mask_rate": 0.1,
            "stepz": 3,
            "batch.rows": "x",
            "masking.mask_ratio": 2,
            "zzz": 1,
        }
    )
    assert message.startswith("5 settings cannot be used:")
    assert "masking.mask_rate: no such setting, did you mean masking.mask_ratio?" in message
    assert "stepz: no such setting, did you mean steps?" in message
    assert "batch.rows: must be a whole number; got 'x'" in message
    assert "masking.mask_ratio: must lie in (0, 1]; got 2.0" in message
    assert "  - zzz: no such setting\n" in message


def test_a_forgotten_group_is_suggested():
    assert "did you mean batch.max_length?" in faults_of(max_length=128)


def test_size_overrides_do_not_go_with_init():
    message = faults_of(init="somewhere", **{"model.layers": 3, "model.hidden": 64})
    assert "model.layers: the size comes from init" in message
    assert "model.hidden: the size comes from init" in message


def test_round_trip_through_nested_mappings():
    flat = as_flat_dict(DEMONSTRATION)
    assert flatten(nest(flat)) == flat
    assert build(PretrainConfig, flat) == DEMONSTRATION


def test_model_size_overrides_the_preset():
    config = build(PretrainConfig, {"preset": "mini", "model.layers": 3, "model.dropout": 0.2})
    size = model_size(config.preset, config.model)
    assert (size["num_hidden_layers"], size["hidden_size"], size["intermediate_size"]) == (
        3,
        256,
        1024,
    )
    assert size["hidden_dropout_prob"] == size["attention_probs_dropout_prob"] == 0.2


@pytest.mark.parametrize("cls", [PretrainConfig, PrepareConfig])
def test_every_setting_is_explained(cls):
    assert [option.name for option in options(cls) if len(option.help) < 10] == []


def test_free_settings_exist():
    classes = (PretrainConfig, FinetuneConfig, CorefFinetuneConfig)
    assert {option.name for cls in classes for option in options(cls)} >= FREE_ON_RESUME


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("1e-4", float, 1e-4),
        (3, float, 3.0),
        ("12", int, 12),
        ("1e3", int, 1000),
        ("null", int | None, None),
        (None, int | None, None),
        ("true", bool, True),
        ("False", bool, False),
        (5, str, "5"),
        ("b", Literal["a", "b"], "b"),
        (["a", "b"], list[str], ["a", "b"]),
        ("a", list[str], ["a"]),
    ],
)
def test_conversion_literals(value, kind, expected):
    converted = convert(value, kind)
    assert converted == expected
    assert type(converted) is type(expected)


def test_prepare_needs_an_output():
    with pytest.raises(ConfigError, match="output: expected the directory to create"):
        build(PrepareConfig, {"inputs": ["a.txt"]})


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEMONSTRATION.steps = 3


def test_settings_load_without_torch():
    code = (
        "import sys, spanbert_ext.training.config\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("value", "kept"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_makes_booleans_of_on_and_off(value, kept):
    assert build(PretrainConfig, {"runtime.graph": value}).runtime.graph == kept
    assert yaml.safe_load("graph: on") == {"graph": True}  # or this test is about nothing


def test_a_value_of_an_earlier_version_has_its_present_name():
    assert (
        build(PrepareConfig, {"inputs": "a", "output": "b", "executor": "local"}).executor == "own"
    )
    with pytest.raises(ConfigError, match="executor: must be one of own, slurm, ray; got 'Local'"):
        build(PrepareConfig, {"inputs": "a", "output": "b", "executor": "Local"})
