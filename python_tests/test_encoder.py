"""`PackedBert` against transformers' BERT; packing, padding and row subsets against each other."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from spanbert_ext import encoder
from spanbert_ext.attention import packed_attention, packing_of
from spanbert_ext.encoder import PackedBert
from spanbert_ext.presets import PRESETS

VOCAB, WIDTH = 61, 13
LENGTHS = (13, 1, 7, 7, 10)


def config(**changes) -> BertConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    }
    return BertConfig(**{**fields, **changes})


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
    """(ids [B, L], attention mask [B, L])"""
    torch.manual_seed(5)
    ids = torch.randint(0, VOCAB, (len(LENGTHS), WIDTH))
    return ids, (torch.arange(WIDTH) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def packed(ids, mask):
    """(tokens [T], cu_seqlens [N + 1]), with two empty sequences among them."""
    lengths = torch.cat([mask.sum(1)[:2], torch.tensor([0]), mask.sum(1)[2:], torch.tensor([0])])
    return ids[mask.bool()], F.pad(lengths.cumsum(0), (1, 0))


def gradients(model):
    named = model.named_parameters()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


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
    monkeypatch.setattr("spanbert_ext.encoder.attention_path", lambda q, dropout: path)
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
    monkeypatch.setattr("spanbert_ext.encoder.attention_path", lambda q, dropout: path)
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


# Dropout -----------------------------------------------------------------------------------------


def dropping(**changes) -> PackedBert:
    torch.manual_seed(31)
    fields = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.0, **changes}
    return PackedBert(config(**fields)).train()


ATTENTION_ONLY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.4}
PLACES = [{}, {"attention_probs_dropout_prob": 0.2}, ATTENTION_ONLY]
PLACE_IDS = ["hidden", "both", "attention"]


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_dropout_follows_torchs_generator(padded, fields):
    """One draw a forward pass: a restored state repeats it, evaluation leaves the state alone."""
    model, stream = dropping(**fields), packed(*padded)
    state = torch.get_rng_state()
    first = model(*stream)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randint(-(1 << 63), (1 << 63) - 1, (1,))
    assert torch.equal(torch.get_rng_state(), after)
    second = model(*stream)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model(*stream), first) and torch.equal(model(*stream), second)
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(model(*stream), model(*stream))
    assert torch.equal(torch.get_rng_state(), state)
    model = dropping(hidden_dropout_prob=0.0)
    state = torch.get_rng_state()
    assert torch.equal(model(*stream), model(*stream))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_place_draws_its_own_mask(padded, monkeypatch):
    sites = []

    def recording(join):
        def call(x, residual, weight, bias, eps, p, seed, site):
            sites.append((site, p, int(seed)))
            return join(x, residual, weight, bias, eps, p, seed, site)

        return call

    def attention(q, k, v, cu_q, packing, dropout, path, most, seed, site):
        sites.append((site, dropout, int(seed)))
        return packed_attention(q, k, v, cu_q, packing, dropout, path, most, seed, site)

    for name in ("dropout_add_layer_norm", "add_layer_norm_dropout"):
        monkeypatch.setattr(encoder, name, recording(getattr(encoder, name)))
    monkeypatch.setattr(encoder, "packed_attention", attention)
    dropping(num_hidden_layers=3, attention_probs_dropout_prob=0.4)(*packed(*padded))
    high = 1 << 31
    assert [s for s, _, _ in sites] == [0, high + 1, 1, 2, high + 3, 3, 4, high + 5, 5, 6]
    assert len({seed for _, _, seed in sites}) == 1 and {p for _, p, _ in sites} == {0.4}


def test_dropout_keeps_the_expectation(padded):
    """The stream behind the embeddings: zeros in 40 % of the columns, the rest divided by 0.6."""
    model, (tokens, cu_seqlens) = dropping(), packed(*padded)
    packing = packing_of(tokens, cu_seqlens, None, None, 16, None)
    plain, _ = model.eval().embeddings(tokens, packing, None)
    seed = torch.tensor([5])
    found, _ = model.train().embeddings(tokens, packing, None, seed)
    dropped = found == 0
    torch.testing.assert_close(found, torch.where(dropped, 0, plain / 0.6), rtol=1e-4, atol=1e-6)
    assert 350 < int(dropped.sum()) < 640  # of 38 * 32; 6 standard deviations are 103


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_native_and_reference_train_alike(padded, force_backend, fields):
    stream, outcomes = packed(*padded), []
    for mode in ("native", "reference"):
        force_backend(mode)
        model = dropping(**fields)
        out = model(*stream)
        out.square().sum().backward()
        outcomes.append((out.detach(), gradients(model)))
    (a, ours), (b, theirs) = outcomes
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", PLACES, ids=PLACE_IDS)
def test_a_bf16_model_keeps_its_dtype(padded, fields):
    model = dropping(**fields).bfloat16()
    out = model(*packed(*padded))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
