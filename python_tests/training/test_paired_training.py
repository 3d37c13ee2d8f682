"""Pairs in training: masks of each segment, losses and their divisors, whole runs."""

import json

import pytest
import torch
from objective_cases import pretrain_objective
from test_pretrain import digests, metrics, stop_at
from transformers import AutoTokenizer, BertForPreTraining

from spanbert_ext.data import Corpus
from spanbert_ext.errors import ConfigError, Preempted
from spanbert_ext.training.loop import accumulate, evaluate
from spanbert_ext.training.models import build_model
from spanbert_ext.training.pretrain import pretrain
from spanbert_ext.weights import conversion

CPU = torch.device("cpu")


@pytest.fixture
def paired(tiny, change):
    """A run on pairs, with SBO and NSP."""
    return change(tiny, **{"batch.pairs": True, "batch.short_prob": 0.3})


def model_of(config):
    corpus = Corpus.open(config.corpus)
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    torch.manual_seed(0)
    return build_model(config, corpus.vocab_size, tokenizer).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_each_segment_has_its_own_budget(paired, monkeypatch, padded):
    objective = pretrain_objective(paired)
    monkeypatch.setattr(objective.data, "_padded", padded)
    seen = 0
    for step in range(6):
        for micro in objective.data.batches(step):
            masked, types = micro.masked, micro.token_type_ids
            selected = masked.labels != -100
            starts, stops = micro.cu_seqlens[:-1], micro.cu_seqlens[1:]
            for start, stop, label in zip(starts, stops, micro.nsp_labels, strict=True):
                if label == -100:
                    assert padded and not selected[start:stop].any()
                    continue
                second = int(types[start:stop].sum())
                first = int(stop - start) - second
                sizes = (first - 2, second - 1)  # without [CLS] and [SEP]s
                counts = (selected[start : start + first], selected[start + first : stop])
                for size, chosen in zip(sizes, counts, strict=True):
                    assert chosen.sum() == -(-size * 15 // 100)
                    seen += 1
            # A span's boundaries lie in its segment: ordinary tokens on both sides.
            used = masked.span_right > masked.span_left
            left, right = masked.span_left[used], masked.span_right[used]
            assert (types[left] == types[right]).all() and used.any()
    assert seen > 100


def test_a_segments_mask_does_not_depend_on_its_batch(paired, change):
    """A pair masked in another batch, with other neighbours, is masked the same."""
    whole = pretrain_objective(paired).data.batches(5)
    parts = pretrain_objective(change(paired, **{"batch.micro_rows": 1})).data.batches(5)
    for name in ("input_ids", "labels"):
        first = torch.cat([getattr(m.masked, name) for m in whole])
        assert torch.equal(first, torch.cat([getattr(m.masked, name) for m in parts]))
    assert torch.equal(*(torch.cat([m.nsp_labels for m in made]) for made in (whole, parts)))
    again = pretrain_objective(paired).data.batches(5)[0]
    other_seed = pretrain_objective(change(paired, seed=1)).data.batches(5)[0]
    assert torch.equal(again.masked.labels, whole[0].masked.labels)
    assert not torch.equal(other_seed.masked.labels, again.masked.labels)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ("mlm_loss", "sbo_loss", "nsp_loss")),
        ({"loss.sbo_weight": 0.0}, ("mlm_loss", "nsp_loss")),
        ({"batch.pairs": False, "batch.short_prob": 0.0}, ("mlm_loss", "sbo_loss")),
        ({"batch.pairs": False, "batch.short_prob": 0.0, "loss.sbo_weight": 0.0}, ("mlm_loss",)),
    ],
)
@pytest.mark.parametrize("kind", ["code", "paper"])
def test_parts_are_those_of_one_big_batch(paired, change, settings, names, kind):
    """Accumulation: the same loss parts and gradients, however the step is cut; ratio 1."""
    results = []
    for micro_rows in (8, 2):
        config = change(paired, **settings, **{"batch.micro_rows": micro_rows, "loss.kind": kind})
        objective, model = pretrain_objective(config), model_of(config).double()
        assert objective.loss_names == names
        parts = accumulate(model, objective, objective.data.batches(0), CPU, "fp32")
        results.append((parts, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-9, atol=1e-12)
    without = {name for name, gradient in results[0][1].items() if gradient is None}
    assert not without


def test_validation_is_the_mean_over_all_pairs(paired, change):
    parts = []
    for micro_rows in (8, 1):
        config = change(paired, **{"batch.micro_rows": micro_rows, "loss.kind": "paper"})
        objective = pretrain_objective(config)
        parts.append(
            evaluate(model_of(config), objective, objective.data.held_out_batches(), "fp32")
        )
    assert parts[0].keys() == {"mlm_loss", "sbo_loss", "nsp_loss"}
    assert parts[0] == pytest.approx(parts[1], rel=1e-5)
    assert abs(parts[0]["nsp_loss"] - 0.693) < 0.05


def test_a_stopped_run_continues_bit_for_bit(paired, change, tmp_path, monkeypatch):
    whole = pretrain(change(paired, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Preempted):
            pretrain(paired)
    result = pretrain(paired)
    assert digests(result.checkpoint) == digests(whole.checkpoint)
    trained = [row for row in metrics(result.run) if row["event"] == "train"]
    assert all(row["nsp_loss"] > 0 and row["sbo_loss"] > 0 for row in trained)
    conversion.export_bert(result.checkpoint, tmp_path / "plain")
    described = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert described["architectures"] == ["BertForPreTraining"]
    _, info = BertForPreTraining.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_run_without_sbo_is_continued_and_extended(tiny, change, tmp_path, monkeypatch):
    plain = change(tiny, **{"loss.sbo_weight": 0.0, "steps": 6})
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Preempted):
            pretrain(plain)
    result = pretrain(plain)
    assert result.state.step == 6
    assert "sbo_loss" not in result.state.latest_losses
    # Its weights can begin a run that has both further heads.
    heads = {"loss.sbo_weight": 1.0, "batch.pairs": True, "steps": 4}
    further = change(tiny, init=str(result.checkpoint), output=str(tmp_path / "further"), **heads)
    further = change(further, **{f"model.{n}": None for n in ("layers", "hidden", "heads")})
    further = change(further, **{"model.feed_forward": None})
    assert pretrain(further).state.latest_losses.keys() == {"mlm_loss", "sbo_loss", "nsp_loss"}
    wrong = change(further, **{"loss.sbo_layer": 5, "output": str(tmp_path / "wrong")})
    with pytest.raises(ConfigError, match=r"loss.sbo_layer: must lie in \[-2, 2\).*got 5 \(init"):
        pretrain(wrong)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"batch.resident": "on"}, "batch.resident: pairs are made on the host"),
        ({"runtime.graph": "on"}, "runtime.graph: .* pairs are made on the host"),
        ({"batch.pairs": False}, "batch.short_prob: only pairs are shortened"),
        ({"batch.short_prob": 1.5}, r"batch.short_prob: must lie in \[0, 1\]"),
        ({"loss.sbo_layer": 2}, r"loss.sbo_layer: must lie in \[-2, 2\) for a model of 2 layers"),
        ({"loss.sbo_layer": -3}, "loss.sbo_layer: .* got -3"),
    ],
)
def test_impossible_settings(paired, change, settings, line):
    with pytest.raises(ConfigError, match=line):
        change(paired, **settings).validate()
    change(paired, **{"batch.resident": "auto", "loss.sbo_layer": 0}).validate()
