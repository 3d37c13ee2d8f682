"""Training of coreference on the common loop: windows, batches, and updates with two rates."""

import numpy as np
import pytest
import torch
from coref_runs import config_of, coref_words, story
from safetensors.torch import load_file
from transformers import AutoTokenizer

from spanbert_ext.tasks.batching import TrainingOrder
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.coref.features import segment
from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference
from spanbert_ext.tasks.coref.objective import (
    CorefObjective,
    DocumentBatches,
    TwoRateStep,
    build_two_rates,
)
from spanbert_ext.tasks.coref.options import CorefOptimizer, CorefOptions
from spanbert_ext.tasks.coref.predictor import model_inputs
from spanbert_ext.tasks.finetune import finetune
from spanbert_ext.tasks.registry import settings_class
from spanbert_ext.training import checkpoint, loop
from spanbert_ext.training.optimizer import learning_rate


def weights(run):
    return load_file(checkpoint.newest(run) / "model.safetensors")


def test_layers_computed_again_make_the_same_update(toy_bert, tmp_path):
    runs = []
    for name, again in (("kept", "false"), ("again", "true")):
        words = coref_words(toy_bert, tmp_path, tmp_path / name, max_steps=3, evals_per_epoch=0)
        finetune(config_of([*words, f"--batch.checkpointing={again}"]))
        runs.append(weights(tmp_path / name))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=0, atol=1e-6, msg=name)


def training(toy_bert, documents, examples=1, **options):
    """(objective, model) of documents in segments of 16 pieces."""
    tokenizer = AutoTokenizer.from_pretrained(toy_bert)
    options = CorefOptions(ffnn_size=24, max_span_width=4, **options).model_options(None)
    features = segment(documents, tokenizer, 16)
    order = TrainingOrder(np.array([len(f.tokens) for f in features]), examples, 3)
    model = SpanBertForCoreference.from_encoder(toy_bert, options)
    settings = settings_class(FinetuneConfig, "coref")
    objective = CorefObjective(settings(str(toy_bert), ["train"]))
    objective.data = DocumentBatches(features, options, order, 3, torch.device("cpu"))
    return objective, model


def test_windows_depend_on_seed_epoch_and_document_alone(toy_bert):
    documents = [story(number, sentences=20) for number in range(4)]
    objective, _ = training(toy_bert, documents, max_training_segments=2)
    for number in range(4):
        shown = [objective.data.window(number, epoch) for epoch in range(12)]
        assert all(part.segments == 2 for part in shown)
        assert len({int(part.word_of_piece[1]) for part in shown}) > 2
    again, _ = training(toy_bert, documents, max_training_segments=2, examples=2)
    one = again.data.window(3, 5)
    assert np.array_equal(one.word_of_piece, objective.data.window(3, 5).word_of_piece)
    firsts = [int(objective.data.window(number, 0).segment_of[0]) for number in range(4)]
    assert firsts == [0] * 4  # segments are counted within the window
    tokens = sum(len(batch.inputs["input_ids"]) for batch in again.data.batches(1))
    assert tokens == again.data.num_tokens(1) and len(again.data.describe(1)["ids"]) == 2


def test_documents_of_a_batch_are_averaged(toy_bert):
    documents = [story(number) for number in range(3)]
    objective, model = training(toy_bert, documents, examples=3)
    model.eval()
    batches = objective.data.batches(0)
    parts = loop.accumulate(model, objective, batches, torch.device("cpu"), "fp32")
    losses = [model(**batch.inputs).loss for batch in batches]
    torch.testing.assert_close(parts[0], sum(losses).detach() / 3)
    (expected,) = torch.autograd.grad(sum(losses) / 3, [model.coref.antecedents.coarse.weight])
    torch.testing.assert_close(model.coref.antecedents.coarse.weight.grad, expected)


def test_two_rates_with_their_own_warm_up_and_clipping(toy_bert):
    objective, model = training(toy_bert, [story(0)])
    options = CorefOptimizer(
        peak_lr=1e-3, task_lr=1e-2, task_warmup=0.5, clip_norm=0.5, task_clip_norm=2.0
    )
    optimizer = build_two_rates(model, options, torch.device("cpu"))
    numbers = loop.LoopSettings(10, options.peak_lr, 1, options.clip_norm, "fp32", 10)
    step = TwoRateStep(model, optimizer, objective, numbers, options)
    *encoder, head = optimizer.param_groups
    assert [group["weight_decay"] for group in (*encoder, head)] == [0.01, 0.0, 0.0]
    assert [group["eps"] for group in (*encoder, head)] == [1e-6, 1e-6, 1e-8]
    assert sum(len(group["params"]) for group in (*encoder, head)) == len(list(model.parameters()))
    norms = {}

    def watch(*_):
        for name, groups in (("bert", encoder), ("head", [head])):
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            norms.setdefault(name, []).append(float(torch.nn.utils.get_total_norm(gradients)))

    optimizer.register_step_pre_hook(watch)
    for number in range(6):
        step(number)
        assert all(float(g["lr"]) == learning_rate(number, 10, 1, 1e-3) for g in encoder)
        assert float(head["lr"]) == learning_rate(number, 10, 5, 1e-2)
    assert norms["bert"][:2] == pytest.approx([0.5] * 2, rel=1e-3)
    assert norms["head"][:2] == pytest.approx([2.0] * 2, rel=1e-3)
    assert max(norms["bert"]) < 0.501 and max(norms["head"]) < 2.001
    assert step.guard.read()[0][0] > 20  # of both parts, before clipping


def test_an_update_that_is_not_finite_leaves_both_parts_alone(toy_bert):
    objective, model = training(toy_bert, [story(0)])
    options = CorefOptimizer()
    optimizer = build_two_rates(model, options, torch.device("cpu"))
    numbers = loop.LoopSettings(10, 1e-3, 0, 1.0, "fp32", 10)
    step = TwoRateStep(model, optimizer, objective, numbers, options)
    step(0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    handle = model.coref.antecedents.coarse.weight.register_hook(lambda grad: grad * torch.nan)
    step(1)
    handle.remove()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [verdict for _, verdict in step.guard.read()] == [0, 1]
    step(2)
    assert not torch.equal(
        before["coref.mentions.network.out.weight"], model.coref.mentions.network.out.weight
    )


def test_the_model_sees_what_the_segments_say(toy_bert):
    tokenizer = AutoTokenizer.from_pretrained(toy_bert)
    (feature,) = segment([story(0)], tokenizer, 16)
    inputs = model_inputs(feature, 0, torch.device("cpu"), with_gold=True)
    assert inputs["input_ids"].tolist() == feature.tokens.tolist()
    assert {"gold_starts", "gold_ends", "gold_clusters"} < inputs.keys()
    assert model_inputs(feature, 0, torch.device("cpu"), with_gold=False).keys() < inputs.keys()
