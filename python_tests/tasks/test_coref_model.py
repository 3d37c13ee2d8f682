"""The coreference model as a whole: segments, its output, memory, and that it learns."""

import subprocess
import sys

import pytest
import torch
from coref_model_cases import GOLD, document, gold, make_model


def gradients_of(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=1e-12, msg=name)


def test_segments_do_not_see_each_other():
    model, inputs = make_model().double(), document(4)
    ids, borders = inputs["input_ids"], inputs["cu_seqlens"]
    hidden, segments = model.encode(ids, borders)
    apart = [model.bert(part, torch.tensor([0, 10])) for part in ids.split(10)]
    torch.testing.assert_close(hidden, torch.cat(apart), rtol=0, atol=1e-12)
    assert segments.tolist() == torch.arange(4).repeat_interleave(10).tolist()


@pytest.mark.parametrize("pieces", [1, 10, 25, 30])
def test_a_few_segments_at_a_time(pieces):
    """The encoder's passes change no number; segments of several lengths, one of them empty."""
    model, inputs = make_model().double(), document(3)
    inputs["cu_seqlens"] = torch.tensor([0, 10, 17, 17, 29, 30])
    inputs |= gold(*GOLD)
    calls = []
    model.bert.register_forward_hook(lambda _, __, out: calls.append(out.shape[0]))
    whole, gradients = model(**inputs), gradients_of(model, inputs)
    assert calls == [30, 30]
    calls.clear()
    model.pieces_per_pass = pieces
    parts = model(**inputs)
    assert sum(calls) == 30 and (len(calls) > 1) == (pieces < 30)
    assert_same(dict(whole.items()), dict(parts.items()))
    assert_same(gradients, gradients_of(model, inputs))


def test_layers_may_be_computed_again_for_their_gradient():
    model = make_model(dropout=0.0).double()
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention_dropout = 0.0
    model.train()
    inputs = document() | gold(*GOLD)
    plain = gradients_of(model, inputs)
    model.bert.encoder.gradient_checkpointing = True
    assert_same(plain, gradients_of(model, inputs))


def test_the_output_says_what_it_promises():
    model, inputs = make_model(), document()
    output = model(**inputs)
    assert output.loss is None
    kept = output.starts.numel()
    assert kept == int(0.4 * 30)
    assert output.mention_scores.shape == (kept,) and output.antecedents.shape == (kept, 8)
    assert output.antecedent_scores.shape == (kept, 9)
    assert not bool(output.antecedent_scores[:, 0].any())
    spans = list(zip(output.starts.tolist(), output.ends.tolist(), strict=True))
    assert spans == sorted(set(spans))
    rows = torch.arange(kept).unsqueeze(1)
    assert bool((output.antecedents < rows).all())
    absent = output.antecedents < 0
    assert torch.equal(absent, output.antecedent_scores[:, 1:] == -torch.inf)
    assert torch.equal(absent, torch.arange(8) >= rows)


def test_both_back_ends_say_the_same(force_backend):
    model, inputs = make_model(), document()
    outputs = []
    for mode in ("native", "reference"):
        force_backend(mode)
        outputs.append(model(**inputs))
    for name in ("starts", "ends", "antecedents"):
        assert torch.equal(outputs[0][name], outputs[1][name]), name
    scores = [output.antecedent_scores for output in outputs]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("singletons", [False, True])
def test_it_learns_a_document(singletons):
    """Single pieces, all of which are kept: what pruning loses of one document never comes back."""
    model = make_model(singletons=singletons, max_span_width=1, span_ratio=1.0, dropout=0.0)
    clusters = [[(2, 2), (5, 5), (24, 24)], [(7, 7), (14, 14)]]
    clusters += [[(16, 16)]] if singletons else []
    inputs = document() | gold(*clusters)
    groups = [
        {"params": model.bert.parameters(), "lr": 3e-3},
        {"params": [p for _, p in model.task_parameters()], "lr": 1e-2},
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(120):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    with torch.no_grad():
        output = model(**document())
    assert model.clusters(output) == sorted(clusters)


def test_two_groups_hold_every_parameter_once():
    model = make_model()
    named = [*model.bert.named_parameters(prefix="bert"), *model.task_parameters()]
    assert dict(named) == dict(model.named_parameters())
    assert len(named) == len(dict(named))


def test_speakers_and_genre_change_the_scores_and_only_where_they_may():
    inputs = document()
    told = {"speakers": torch.arange(30) // 7, "genre": 1}
    model = make_model(genres=["nw"])
    first = model(**inputs)
    for name, value in told.items():
        changed = model(**inputs, **{name: value})
        assert not torch.equal(changed.antecedent_scores, first.antecedent_scores), name
        assert torch.equal(changed.mention_scores, first.mention_scores), name
    model = make_model(speakers=False)
    first, changed = model(**inputs), model(**inputs, **told)
    assert torch.equal(changed.antecedent_scores, first.antecedent_scores)


@pytest.mark.parametrize("sentences", [[-1] * 30, [-1, 0, *[-1] * 28]])
def test_a_document_of_next_to_nothing(sentences):
    """Without a candidate, or with one: every parameter gets a gradient."""
    model = make_model(singletons=True)
    inputs = document() | {"sentence_map": torch.tensor(sentences)}
    output = model(**inputs, **gold(*GOLD))
    candidates = sum(sentence >= 0 for sentence in sentences)
    assert output.starts.numel() == candidates
    assert output.antecedents.shape == (candidates, candidates)
    assert output.antecedent_scores.shape == (candidates, 1 + candidates)
    if not candidates:
        assert output.loss.item() == 0
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    silent = model(**inputs)
    assert silent.loss is None
    assert len(model.clusters(silent)) == int(bool((silent.mention_scores > 0).any()))


def test_no_pieces_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    model = make_model()
    output = model(nothing, torch.zeros(1, dtype=torch.int64), nothing)
    assert output.starts.numel() == 0 and model.clusters(output) == []


def test_scores_keep_fp32_under_autocast():
    model, inputs = make_model(), document() | gold(*GOLD)
    exact = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    for name in ("loss", "mention_scores", "antecedent_scores"):
        assert output[name].dtype == torch.float32, name
    # Scores of bf16 would agree with their own rounding.
    assert not torch.equal(output.mention_scores, output.mention_scores.bfloat16().float())
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    output.loss.backward()


def test_wrong_inputs_are_named():
    model, inputs = make_model(), document()
    with pytest.raises(ValueError, match=r"sentence_map must have shape \(30,\); got \(29,\)"):
        model(**{**inputs, "sentence_map": inputs["sentence_map"][:29]})
    with pytest.raises(TypeError, match="speakers must be int64; got torch.int32"):
        model(**inputs, speakers=torch.zeros(30, dtype=torch.int32))
    with pytest.raises(ValueError, match="gold mentions need gold_clusters too"):
        model(**inputs, gold_starts=torch.tensor([1]), gold_ends=torch.tensor([1]))
    with pytest.raises(ValueError, match="a sequence has 20 tokens; at most 16 are allowed"):
        model(**{**inputs, "cu_seqlens": torch.tensor([0, 20, 30])})


GROWTH = """
import resource, sys
import torch
from transformers import BertConfig
from spanbert_ext.tasks.coref.model import SpanBertForCoreference
torch.set_num_threads(1)
model = SpanBertForCoreference(BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=1,
    intermediate_size=32, coref={"ffnn_size": 128, "max_antecedents": 10},
))
def step(length):
    ids = torch.arange(length) % 50
    borders = torch.arange(0, length + 1, 250)
    gold = torch.arange(1, length, 9)
    loss = model(ids, borders, ids.new_zeros(length), None, 0, gold, gold, gold % 7).loss
    loss.backward()
step(250)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_document_in_little_memory():
    """2000 pieces make 60 000 candidates of one sentence: one hidden layer of all of them would be
    31 MB, their attention over the document 480 MB, and the gradient needs several of each."""
    run = subprocess.run(
        [sys.executable, "-c", GROWTH, "2000"], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 400_000, run.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["native", "reference"])
def test_a_gpu_says_what_the_cpu_says(force_backend, mode):
    force_backend(mode)
    model, inputs = make_model(singletons=True).double(), document() | gold(*GOLD)
    here, gradients = model(**inputs), gradients_of(model, inputs)
    model, inputs = model.cuda(), {name: values.cuda() for name, values in inputs.items()}
    there = {name: values.cpu() for name, values in model(**inputs).items()}
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, rtol=0, atol=1e-9, msg=name)
    for name, values in gradients_of(model, inputs).items():
        torch.testing.assert_close(values.cpu(), gradients[name], rtol=0, atol=1e-9, msg=name)
