"""`PackedBert` against transformers' BERT; packing, padding and row subsets against each other."""

import pytest
import torch
from encoder_cases import VOCAB, config, gradients, packed, padded_batch
from transformers import BertConfig, BertModel

from spanbert_ext.model.encoder import PackedBert
from spanbert_ext.training.presets import PRESETS


@pytest.fixture
def pair():
    """(transformers' BERT, ours) with the same weights, in evaluation mode."""
    torch.manual_seed(3)
    theirs = BertModel(config(), add_pooling_layer=False).eval()
    # Biases and gains start from constants, which hide errors.
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = PackedBert(config()).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture
def padded():
    return padded_batch()


def test_parameter_names_are_berts():
    ours = PackedBert(config()).state_dict()
    theirs = BertModel(config(), add_pooling_layer=False).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_equals_transformers_with_gradients(pair, padded, layout, kind):
    theirs, ours = pair
    ids, mask = padded
    kept = mask.bool()
    expected = theirs(ids, attention_mask=mask).last_hidden_state[kept]
    if layout == "padded":
        found = ours(ids.to(kind), attention_mask=mask)[kept]
    elif layout == "lengths":
        found = ours(ids.to(kind), lengths=mask.sum(1).to(kind))[kept]
    else:
        tokens, cu_seqlens = packed(ids, mask)
        found = ours(tokens.to(kind), cu_seqlens.to(kind))
    assert (found - expected).abs().max() < 1e-5
    probe = torch.randn_like(expected)
    (expected * probe).sum().backward()
    (found * probe).sum().backward()
    reference = gradients(theirs)
    # [PAD] has no input gradient in transformers (padding_idx); ours treats it as any other id.
    word = "embeddings.word_embeddings.weight"
    for name, gradient in gradients(ours).items():
        a, b = (gradient[1:], reference[name][1:]) if name == word else (gradient, reference[name])
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())), name


def test_token_types_equal_transformers(pair, padded):
    theirs, ours = pair
    ids, mask = padded
    types = torch.randint(0, 2, ids.shape)
    expected = theirs(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    found = ours(ids, attention_mask=mask, token_type_ids=types)
    assert (found - expected)[mask.bool()].abs().max() < 1e-5


def test_a_changed_document_leaves_the_others_bit_identical(pair, padded):
    _, ours = pair
    tokens, cu_seqlens = packed(*padded)
    changed = tokens.clone()
    changed[14:21] = (changed[14:21] + 1) % VOCAB
    before, after = ours(tokens, cu_seqlens), ours(changed, cu_seqlens)
    assert torch.equal(before[:14], after[:14]) and torch.equal(before[21:], after[21:])
    assert not torch.equal(before[14:21], after[14:21])


def test_padding_content_changes_nothing(pair, padded):
    _, ours = pair
    ids, mask = padded
    other = torch.where(mask.bool(), ids, (ids + 7) % VOCAB)
    a, b = ours(ids, attention_mask=mask), ours(other, attention_mask=mask)
    assert torch.equal(a[mask.bool()], b[mask.bool()])


ROWS = [[], [0], [5, 0, 0, 37, 14, 13, 2, 2], list(range(38))[::-1]]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("path", ["runs", "blocks"])
def test_row_subset_has_the_same_states_and_gradients(padded, rows, path, monkeypatch):
    torch.manual_seed(19)
    model = PackedBert(config()).double().eval()
    tokens, cu_seqlens = packed(*padded)
    rows = torch.tensor(rows, dtype=torch.int64)
    probe = torch.randn(rows.numel(), 32, dtype=torch.float64)
    expected = model(tokens, cu_seqlens)[rows]
    (expected * probe).sum().backward()
    reference = gradients(model)
    model.zero_grad()
    monkeypatch.setattr("spanbert_ext.model.layer.attention_path", lambda q, dropout: path)
    found = model(tokens, cu_seqlens, rows=rows)
    (found * probe).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, reference[name], rtol=0, atol=1e-11)


def test_a_broken_promise_about_rows_is_named(pair, padded):
    tokens, cu_seqlens = packed(*padded)
    rows = torch.tensor([5, 0, 0, 37, 14])
    kept = pair[1](tokens, cu_seqlens, rows=rows, max_queries=3)
    assert torch.equal(kept, pair[1](tokens, cu_seqlens, rows=rows))
    with pytest.raises(ValueError, match="more than max_queries = 2 queries; got 3"):
        pair[1](tokens, cu_seqlens, rows=rows, max_queries=2)


def test_row_subset_of_a_padded_batch(pair, padded):
    _, ours = pair
    ids, mask = padded
    rows = torch.tensor([40, 3, 13])
    expected = ours(ids, attention_mask=mask).flatten(0, 1)[rows]
    torch.testing.assert_close(
        ours(ids, attention_mask=mask, rows=rows), expected, rtol=0, atol=1e-6
    )


def test_compiles_as_one_graph(pair, padded):
    _, ours = pair
    ids, mask = padded
    tokens, cu_seqlens = packed(ids, mask)
    rows = torch.tensor([3, 3, 20, 0])
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(compiled(tokens, cu_seqlens), ours(tokens, cu_seqlens), **close)
    expected = ours(tokens, cu_seqlens, rows=rows)
    torch.testing.assert_close(compiled(tokens, cu_seqlens, rows=rows), expected, **close)
    found = compiled(tokens, cu_seqlens, rows=rows, max_queries=3)
    torch.testing.assert_close(found, expected, **close)
    kept = mask.bool()
    a, b = compiled(ids, attention_mask=mask)[kept], ours(ids, attention_mask=mask)[kept]
    torch.testing.assert_close(a, b, **close)


def test_compiles_with_gradient_checkpointing(padded):
    torch.manual_seed(23)
    model = PackedBert(config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    tokens, cu_seqlens = packed(*padded)
    model(tokens, cu_seqlens).square().sum().backward()
    expected = gradients(model)
    model.zero_grad()
    model.encoder.gradient_checkpointing = True
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(tokens, cu_seqlens).square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_autocast_bf16_keeps_the_stream_in_fp32(pair, padded):
    _, ours = pair
    tokens, cu_seqlens = packed(*padded)
    expected = ours(tokens, cu_seqlens)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(tokens, cu_seqlens)
        found.sum().backward()
    assert (found - expected).abs().max() < 0.3
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("path", ["runs", "blocks"])
def test_gradient_checkpointing_gives_the_same_gradients(padded, path, dropout, monkeypatch):
    torch.manual_seed(23)
    monkeypatch.setattr("spanbert_ext.model.layer.attention_path", lambda q, dropout: path)
    model = PackedBert(config(attention_probs_dropout_prob=dropout)).train()
    tokens, cu_seqlens = packed(*padded)
    found = []
    for flag in (False, True):
        model.encoder.gradient_checkpointing = flag
        model.zero_grad()
        torch.manual_seed(0)
        model(tokens, cu_seqlens).square().sum().backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.parametrize("borders", [[0], [0, 0, 0]])
def test_an_empty_stream(pair, borders):
    out = pair[1](torch.zeros(0, dtype=torch.int64), torch.tensor(borders))
    assert out.shape == (0, 32)


STREAM = torch.arange(6)
BORDERS = torch.tensor([0, 2, 6])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "input_ids must be int32 or int64", {"input_ids": STREAM.float()}),
        (ValueError, r"input_ids must be \[T\] or \[B, L\]", {"input_ids": STREAM.view(1, 2, 3)}),
        (ValueError, "cu_seqlens .N . 1. must say", {"cu_seqlens": None}),
        (ValueError, "never fall", {"cu_seqlens": torch.tensor([0, 4, 2, 6])}),
        (ValueError, "number of tokens, 6", {"cu_seqlens": torch.tensor([0, 5])}),
        (ValueError, "start at 0", {"cu_seqlens": torch.tensor([1, 6])}),
        (ValueError, r"cu_seqlens must be \[N \+ 1\]", {"cu_seqlens": torch.zeros(1, 2).long()}),
        (TypeError, "cu_seqlens must be int32 or int64", {"cu_seqlens": BORDERS.float()}),
        (ValueError, "4 tokens; at most 3", {"max_seqlen": 3}),
        (ValueError, "row_length 3", {"row_length": 3}),
        (ValueError, "stream has cu_seqlens", {"lengths": torch.tensor([6])}),
        (IndexError, r"input_ids must lie in \[0, 61\); got 61 at flat index 1",
         {"input_ids": torch.tensor([0, 61, 0, 0, 0, -1])}),
        (IndexError, r"rows must lie in \[0, 6\); got -1", {"rows": torch.tensor([0, -1])}),
        (ValueError, "token_type_ids must be", {"token_type_ids": STREAM[:3]}),
        (IndexError, "token_type_ids must lie", {"token_type_ids": STREAM}),
        (ValueError, "cu_seqlens belongs to a stream", {"input_ids": STREAM.view(2, 3)}),
    ],
)  # fmt: skip
def test_bad_streams_are_named(pair, error, message, arguments):
    with pytest.raises(error, match=message):
        pair[1](**{"input_ids": STREAM, "cu_seqlens": BORDERS, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "row 1 has a token behind padding",
         {"attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]])}),
        (ValueError, "attention_mask must be", {"attention_mask": torch.ones(2, 2)}),
        (ValueError, r"lengths must be \[2\]", {"lengths": torch.tensor([3])}),
        (IndexError, r"lengths must lie in \[0, 4\); got 4", {"lengths": torch.tensor([4, 1])}),
        (ValueError, "not both", {"lengths": torch.ones(2), "attention_mask": torch.ones(2, 3)}),
        (ValueError, "rows of 17 tokens", {"input_ids": torch.zeros(1, 17).long()}),
    ],
)  # fmt: skip
def test_bad_batches_are_named(pair, error, message, arguments):
    with pytest.raises(error, match=message):
        pair[1](**{"input_ids": STREAM.view(2, 3), **arguments})


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("hidden_act", {"hidden_act": "relu"}),
        ("num_hidden_layers", {"num_hidden_layers": 0}),
        ("multiple of num_attention_heads", {"num_attention_heads": 3}),
    ],
)
def test_impossible_configurations(message, fields):
    with pytest.raises(ValueError, match=message):
        PackedBert(config(**fields))


def test_presets_are_bert_sizes():
    assert list(PRESETS) == ["tiny", "mini", "small", "base", "large"]
    for fields in PRESETS.values():
        built = BertConfig(**fields)
        assert built.hidden_size == 64 * built.num_attention_heads
    large = PRESETS["large"]
    assert (large["num_hidden_layers"], large["hidden_size"]) == (24, 1024)
    assert (large["num_attention_heads"], large["intermediate_size"]) == (16, 4096)


@pytest.mark.cuda
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_cuda_paths_equal_the_cpu_without_sync(padded, dropout):
    torch.manual_seed(29)
    model = PackedBert(config(hidden_size=64, attention_probs_dropout_prob=dropout))
    model.eval()
    tokens, cu_seqlens = packed(*padded)
    rows = torch.tensor([5, 0, 0, 37, 14])
    expected = model(tokens, cu_seqlens, rows=rows)
    model.cuda()
    inputs = [x.cuda() for x in (tokens, cu_seqlens, rows)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            found = model(*inputs[:2], rows=inputs[2])
            found.sum().backward()
        exact = model(*inputs[:2], rows=inputs[2])
        if dropout:
            model.train()
            model(*inputs[:2], rows=inputs[2]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(exact.cpu(), expected, rtol=0, atol=1e-4)
    assert (found.cpu() - expected).abs().max() < 0.3
