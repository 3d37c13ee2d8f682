"""SpanFiller: exact best fillings, scores of both heads, offsets, lengths, windows, models."""

import itertools
import math

import pytest
import torch
from data.corpora import byte_level_bpe, unigram, wordpiece
from filling_cases import PIECES, SPECIALS, model_for, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import random_weights
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

import spanbert_ext
from spanbert_ext import SpanFiller
from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.filling.filler import table
from spanbert_ext.filling.search import MaskedSpan, batch_of_spans, k_best
from spanbert_ext.training import checkpoint


@pytest.fixture(scope="module")
def filler():
    tokenizer = tiny_tokenizer()
    return SpanFiller(model_for(tokenizer), tokenizer)


def log_probs(filler, text, size):
    """[n, V] and [n, V] of both heads for a text of known words, by plain calls of the model."""
    before, after = (part.split() for part in text.split("___"))
    ids = [PIECES.index(p) for p in before], [PIECES.index(p) for p in after]
    tokens = torch.tensor([2, *ids[0], *[4] * size, *ids[1], 3])
    first, model = 1 + len(ids[0]), filler._model
    span = MaskedSpan(tokens.tolist(), first, first + size, min(size, 4))
    batch, cu_seqlens = batch_of_spans([span])
    with torch.no_grad():
        hidden = model(tokens, cu_seqlens=cu_seqlens).last_hidden_state
        mlm = model.mlm_logits(hidden[first : first + size])
        sbo = model.sbo_logits(hidden, batch)
    return mlm.log_softmax(-1), sbo.log_softmax(-1)


def brute_force(filler, text, size, by, weights=(1.0, 1.0)):
    """Every filling of `size` pieces with its mean score, best first, texts once."""
    mlm, sbo = log_probs(filler, text, size)
    mixed = (weights[0] * mlm + weights[1] * sbo).log_softmax(-1)
    rows = {"mlm": mlm, "sbo": sbo, "combined": mixed}[by]
    gap = filler._reader.read(text, None, size)
    found = {}
    for ids in itertools.product(range(5, len(PIECES)), repeat=size):
        fits = gap.first[ids[0]] and filler._reader.ordinary[list(ids)].all()
        written = filler._reader.write(gap, list(ids)) if fits else None
        if written is not None:
            score = sum(float(row[i]) for row, i in zip(rows, ids, strict=True)) / size
            found[written] = max(found.get(written, -math.inf), score)
    return sorted(found.items(), key=lambda item: -item[1])


def test_batch_of_spans_literal():
    spans = [
        MaskedSpan([2, 5, 6, 4, 4, 4, 9, 3], 3, 6, 2),
        MaskedSpan([2, 4, 3], 1, 2, 0),
        MaskedSpan([2, 5, 4, 6, 3], 2, 3, 1),
    ]
    batch, cu_seqlens = batch_of_spans(spans)
    assert cu_seqlens.tolist() == [0, 8, 11, 16]
    assert batch.input_ids.tolist() == [2, 5, 6, 4, 4, 4, 9, 3, 2, 4, 3, 2, 5, 4, 6, 3]
    assert batch.target_positions.tolist() == [3, 4, 5, 9, 13]
    assert batch.target_spans.tolist() == [0, 0, 0, 1, 2]
    assert batch.target_offsets.tolist() == [0, 1, 2, 0, 0]
    assert [i >= 0 for i in batch.sbo_ids.tolist()] == [True, True, False, False, True]
    assert batch.span_left.tolist() == [2, 0, 12]
    assert batch.span_right.tolist() == [6, 0, 14]
    output = model_for(tiny_tokenizer())(cu_seqlens=cu_seqlens, batch=batch)
    assert all(torch.isfinite(loss) for loss in (output.loss, output.mlm_loss, output.sbo_loss))


COLUMNS = st.lists(st.lists(st.floats(-9, 0), min_size=1, max_size=4), min_size=1, max_size=4)


@given(COLUMNS)
def test_k_best_is_all_choices_in_order(columns):
    columns = [sorted(column, reverse=True) for column in columns]
    found = list(k_best(columns))
    everything = list(itertools.product(*map(range, map(len, columns))))
    assert sorted(choice for _, choice in found) == everything
    totals = [sum(column[i] for column, i in zip(columns, c, strict=True)) for _, c in found]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(totals))
    assert [total for total, _ in found] == pytest.approx(totals, abs=1e-12)


def test_k_best_of_nothing():
    assert list(k_best([[0.0], []])) == []


@pytest.mark.parametrize("by", ["mlm", "sbo", "combined"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_best_fillings_are_those_of_brute_force(filler, by, size):
    text = "a b ___ c d"
    expected = brute_force(filler, text, size, by)[:7]
    found = filler(text, pieces=size, top_k=7, by=by)
    assert [f.text for f in found] == [written for written, _ in expected]
    assert [f.score for f in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_weights_change_the_mixture(filler):
    for weights in ((3.0, 0.5), (0.0, 1.0)):
        expected = brute_force(filler, "a b ___ c d", 2, "combined", weights)[:5]
        found = filler("a b ___ c d", pieces=2, weights=weights)
        assert [f.text for f in found] == [written for written, _ in expected]
    by_sbo = filler("a b ___ c d", pieces=2, by="sbo")
    assert [f.text for f in found] == [f.text for f in by_sbo]


def test_scores_are_the_heads_own(filler):
    mlm, sbo = log_probs(filler, "a b ___ c", 3)
    for filling in filler("a b ___ c", pieces=3, top_k=20):
        ids = [PIECES.index(piece) for piece in filling.pieces]
        assert filling.mlm == pytest.approx(float(mlm[range(3), ids].sum()), abs=1e-4)
        assert filling.sbo == pytest.approx(float(sbo[range(3), ids].sum()), abs=1e-4)
        assert filling.sbo_pieces == 3


def test_unknown_lengths_are_ranked_by_the_mean(filler):
    text = "a b ___ c d"
    parts = [brute_force(filler, text, size, "combined")[:9] for size in (1, 2, 3)]
    expected = sorted(itertools.chain(*parts), key=lambda item: -item[1])[:9]
    found = filler(text, max_pieces=3, top_k=9)
    assert [f.score for f in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert len({len(f.pieces) for f in found}) > 1
    assert len(filler("a [MASK] [MASK] b")[0].pieces) == 2
    assert len(filler("a [MASK] b")[0].pieces) == 1


TEXTS = ["a b ___ c d", "___ d", "a ___", "a b c d a b ___ ( . c"]


def test_a_batch_is_its_texts_one_by_one(filler):
    together = filler(TEXTS, max_pieces=3)
    assert len(together) == len(TEXTS)
    for text, several in zip(TEXTS, together, strict=True):
        alone = filler(text, max_pieces=3)
        assert [f.text for f in several] == [f.text for f in alone]
        for one, other in zip(several, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert (one.filled, one.sbo_pieces) == (other.filled, other.sbo_pieces)
    assert filler([]) == filler([], refine=2) == []


def test_batches_are_cut(filler, monkeypatch):
    together = filler(TEXTS, max_pieces=3)
    monkeypatch.setattr("spanbert_ext.filling.filler._MOST_TARGETS", 2)
    again = filler(TEXTS, max_pieces=3)
    assert [[f.text for f in fs] for fs in again] == [[f.text for f in fs] for fs in together]


def test_the_sbo_needs_both_neighbours(filler):
    """And none of them special, as in training; by the SBO then means by the MLM."""
    for text in ("___ b", "a ___", "a [SEP] ___ b", "___"):
        by_sbo, by_mlm = (filler(text, pieces=2, by=by) for by in ("sbo", "mlm"))
        assert all(f.sbo is None and f.sbo_pieces == 0 for f in by_sbo)
        assert [f.text for f in by_sbo] == [f.text for f in by_mlm]
        assert by_sbo[0].score == pytest.approx(by_mlm[0].mlm / 2, abs=1e-5)


def test_the_sbo_predicts_as_many_positions_as_it_was_trained_for(filler):
    mlm, sbo = log_probs(filler, "a b ___ c d", 6)  # the model's max_span_targets is 4
    for filling in filler("a b ___ c d", pieces=6, by="sbo", top_k=3):
        ids = [PIECES.index(piece) for piece in filling.pieces]
        by_sbo, by_mlm = float(sbo[range(4), ids[:4]].sum()), float(mlm[[4, 5], ids[4:]].sum())
        assert filling.sbo_pieces == 4
        assert filling.sbo == pytest.approx(by_sbo, abs=1e-4)
        assert filling.score == pytest.approx((by_sbo + by_mlm) / 6, abs=1e-4)


def test_refining_asks_again_after_each_piece(filler):
    """A search wide enough for everything is the chain of conditional probabilities."""
    mlm, sbo = log_probs(filler, "a b ___ c", 2)
    chances = {}
    for i in range(5, 14):
        if PIECES[i].startswith("##"):
            continue
        second, _ = log_probs(filler, f"a b {PIECES[i]} ___ c", 1)
        for j in range(5, 14):
            chances[i, j] = float(mlm[0, i] + second[0, j])
    best = sorted(chances, key=lambda pair: -chances[pair])
    found = filler("a b ___ c", pieces=2, by="mlm", refine=99, top_k=99)
    expected = [pair for pair in best if not (pair[0] in (11, 12) and pair[1] in (9, 10))]
    assert {f.pieces for f in found} <= {tuple(PIECES[i] for i in pair) for pair in expected}
    for filling in found:
        pair = tuple(PIECES.index(piece) for piece in filling.pieces)
        assert filling.mlm == pytest.approx(chances[pair], abs=1e-4)
        by_sbo = float(sbo[0, pair[0]] + sbo[1, pair[1]])
        assert filling.sbo == pytest.approx(by_sbo, abs=1e-4)
    assert found[0].pieces == tuple(PIECES[i] for i in expected[0])
    one, other = (filler("a b ___ c", pieces=1, refine=r) for r in (0, 9))
    assert [f.text for f in one] == [f.text for f in other]


def test_what_is_far_away_is_not_read(filler):
    near = SpanFiller(filler._model, tiny_tokenizer(), max_length=11)
    far, cut = "a b " * 300 + "c d a b ___ a c d b" + " b a" * 300, "c d a b ___ a c d b"
    for one, other in zip(near(far, pieces=1), near(cut, pieces=1), strict=True):
        assert (one.text, one.pieces) == (other.text, other.pieces)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.filled[one.start : one.end] == one.text
        assert one.start == 1200 + other.start
    # Room that one side leaves is the other's.
    one, other = (near(f"{first} b c d a b c d ___", pieces=1)[0] for first in "ab")
    assert one.mlm != other.mlm
    assert len(filler(far, pieces=46)) > 0
    with pytest.raises(ConfigError, match="a gap of 47 does not fit into the 48 tokens"):
        filler(far, pieces=47)


CONTEXT = "ab éÉß\N{GRINNING FACE}\u0301\u4e2d,.(\t\n"
KINDS = ["cased", "uncased", "bpe", "unigram"]


@pytest.fixture(scope="module")
def fillers():
    kinds = {
        "cased": wordpiece(300, lowercase=False),
        "uncased": wordpiece(300, lowercase=True),
        "bpe": byte_level_bpe(),
        "unigram": unigram(),
    }
    return {kind: SpanFiller(model_for(t), t) for kind, t in kinds.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(before=st.text(CONTEXT, max_size=12), after=st.text(CONTEXT, max_size=12), size=st.data())
def test_offsets_are_those_of_the_text_that_is_returned(fillers, kind, before, after, size):
    """Whatever is around the gap stays as it is, whether the tokenizer keeps it or not."""
    filler, pieces = fillers[kind], size.draw(st.integers(1, 3))
    for filling in filler(before + "[SPAN]" + after, pieces=pieces, top_k=3):
        assert filling.filled[filling.start : filling.end] == filling.text
        assert filling.filled == before + filling.text + after
        assert filling.text.strip() == filling.text != ""
        assert len(filling.pieces) == pieces
        assert not set(filling.pieces) & {*SPECIALS, "<s>", "</s>", "<pad>", "<unk>", "<mask>"}
    hidden = before + "a" + after
    for filling in filler(hidden, (len(before), len(before) + 1), pieces=1, top_k=1):
        assert filling.filled == before + filling.text + after


def test_fillings_continue_words_only_without_a_space(fillers):
    for kind, filler in fillers.items():
        starts = filler._reader.info
        for text, continues in (("the [MASK] of", False), ("the[MASK] of", True)):
            for filling in filler(text, top_k=10):
                first = starts.pieces.index(filling.pieces[0])
                mark = not filling.text[0].isalnum()
                assert bool(starts.word_starts[first]) != continues or mark, (kind, filling)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "both"}, "by: must be one of combined, mlm, sbo"),
        ({"weights": (0.0, 0.0)}, "weights"),
        ({"weights": (-1.0, 2.0)}, "weights"),
        ({"pieces": 0}, "pieces: must be at least 1; got 0"),
        ({"top_k": 0}, "top_k"),
        ({"refine": -1}, "refine: must be at least 0"),
        ({"span": (0, 9)}, "text 0: span"),
    ],
)
def test_impossible_arguments(filler, options, message):
    with pytest.raises(ConfigError, match=message):
        filler("a ___ b", **options)


def test_faults_name_the_text(filler):
    with pytest.raises(spanbert_ext.errors.DataError, match="text 1: .* it has 0"):
        filler(["a ___ b", "a b"])
    with pytest.raises(ConfigError, match="1 ranges for 2 texts"):
        filler(["a b", "b c"], span=[(0, 1)])
    found = filler(["a b c", "b c d"], span=[(2, 3), (0, 1)], pieces=1)
    assert [f[0].filled[-1] for f in found] == ["c", "d"]


def save_tokenizer(folder):
    names = {f"{t.strip('[]').lower()}_token": t for t in SPECIALS}
    fast = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), **names)
    fast.save_pretrained(folder)


def write_checkpoint(model):
    def write(folder):
        model.save_pretrained(folder)
        save_tokenizer(folder)

    return write


def test_runs_and_checkpoints_load(filler, tmp_path, capsys):
    newer = model_for(tiny_tokenizer())
    with torch.no_grad():
        newer.cls.predictions.bias.neg_()
    for step, model in ((3, filler._model), (6, newer)):
        checkpoint.save(tmp_path, step, write_checkpoint(model), keep=2)
    expected = filler("a b ___ c", pieces=2)
    assert SpanFiller(tmp_path / "step-0000003")("a b ___ c", pieces=2) == expected
    newest = SpanFiller(tmp_path)("a b ___ c", pieces=2)
    assert newest == SpanFiller(newer, tiny_tokenizer())("a b ___ c", pieces=2) != expected
    words = ["fill", str(tmp_path), "a b ___ c", "a [MASK] b", "--top_k", "3", "--max_pieces=2"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[5]] == ["a b ___ c", "a [MASK] b"] and len(lines) == 10
    assert main(["fill", str(tmp_path), "a b"]) == 65
    assert "text 0: the text must have one gap" in capsys.readouterr().err
    assert main(["fill", str(tmp_path)]) == 2
    with pytest.raises(ConfigError, match="there is no such directory; name a run"):
        SpanFiller(tmp_path / "step-0000009")
    (tmp_path / "step-0000003" / "model.safetensors").unlink()
    (tmp_path / "step-0000006" / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="no whole checkpoint"):
        SpanFiller(tmp_path)


def test_heads_that_were_never_trained_are_not_used(tmp_path):
    sizes = {"vocab_size": len(PIECES), "hidden_size": 32, "num_hidden_layers": 1}
    bert = BertConfig(**sizes, num_attention_heads=2, intermediate_size=32)
    masked = random_weights(BertForMaskedLM(bert))
    masked.save_pretrained(tmp_path / "masked")
    save_tokenizer(tmp_path / "masked")
    filler = SpanFiller(tmp_path / "masked")
    for by in ("combined", "sbo"):
        with pytest.raises(ConfigError, match="never trained"):
            filler("a ___ b", by=by)
    assert all(f.sbo is None and f.sbo_pieces == 0 for f in filler("a ___ b", by="mlm"))
    asked = SpanFiller(tmp_path / "masked", untrained_heads=True)("a ___ b")
    assert asked[0].sbo is not None
    random_weights(BertModel(bert)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="MLM head has never been trained"):
        SpanFiller(tmp_path / "bare", tokenizer=tmp_path / "masked")


def test_a_tokenizer_must_fit(filler):
    with pytest.raises(ConfigError, match="give one"):
        SpanFiller(filler._model)
    with pytest.raises(ConfigError, match="it has 500 pieces, the model 18"):
        SpanFiller(filler._model, byte_level_bpe())
    for length in (2, 49):
        with pytest.raises(ConfigError, match=r"max_length: must lie in \[3, 48\]"):
            SpanFiller(filler._model, tiny_tokenizer(), max_length=length)


def test_table(filler):
    found = filler("a b ___ c", pieces=1, top_k=2) + filler("___ c", pieces=1, top_k=1)
    lines = table(found)
    assert lines[0].split() == ["filling", "score", "MLM", "SBO", "pieces"]
    for line, filling in zip(lines[1:], found, strict=True):
        sbo = "-" if filling.sbo is None else f"{filling.sbo:.2f}"
        numbers = [f"{filling.score:.2f}", f"{filling.mlm:.2f}", sbo]
        assert line.split() == [filling.text, *numbers, *filling.pieces]
