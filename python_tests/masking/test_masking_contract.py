"""SpanMasker's contract: every bad argument raises with its name, what was expected and what
came."""

import pickle
import re

import pytest
import torch
from back_ends import refuses
from strategies import (
    CLS,
    MASK,
    PAD,
    SEP,
    VOCAB,
    assert_same_batch,
    case_id,
    fields,
    make_masker,
    naming,
    rewound,
    run_python,
)

from spanbert_ext import SpanMasker
from spanbert_ext.errors import DataError

IDS = torch.tensor([[CLS, 10, 11, 12, SEP], [CLS, 20, 21, SEP, PAD]])
FLAT = torch.arange(10, 20)
META = torch.device("meta")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"input_ids": IDS.float()}, TypeError, "input_ids.*int32 or int64.*float32"),
        ({"input_ids": IDS.short()}, TypeError, "input_ids.*int32 or int64.*int16"),
        ({"input_ids": IDS.tolist()}, TypeError, "input_ids.*tensor.*list"),
        ({"input_ids": IDS[0]}, ValueError, "input_ids.*2 dim.*5"),
        ({"input_ids": IDS.t()}, ValueError, "input_ids.*contiguous"),
        ({"input_ids": IDS[:, ::2]}, ValueError, "input_ids.*contiguous"),
        ({"input_ids": IDS[:1].expand(3, -1)}, ValueError, "input_ids.*contiguous"),
        ({"input_ids": torch.full_like(IDS, VOCAB)}, IndexError, naming(0, VOCAB)),
        ({"input_ids": IDS - 5}, IndexError, naming(0, -4, VOCAB)),
        ({"lengths": torch.tensor([5])}, ValueError, r"lengths.*\(2,\).*\(1,\)"),
        ({"lengths": torch.ones_like(IDS)}, ValueError, r"lengths.*\(2, 5\).*attention_mask="),
        ({"lengths": torch.tensor([5.0, 5.0])}, TypeError, "lengths.*int.*float32"),
        ({"lengths": [5, 5]}, TypeError, "lengths.*tensor.*list"),
        ({"lengths": torch.tensor([5, 5], device=META)}, ValueError, "lengths.*cpu.*meta"),
        ({"sample_ids": torch.tensor([1, 2, 3])}, ValueError, r"sample_ids.*\(2,\).*\(3,\)"),
        ({"sample_ids": torch.tensor([1.0, 2.0])}, TypeError, "sample_ids.*float32"),
        ({"sample_ids": torch.tensor([1, 2], device=META)}, ValueError, "sample_ids.*cpu.*meta"),
        ({"epoch": torch.tensor([1, 2])}, ValueError, "epoch"),
        ({"epoch": torch.tensor([1.0])}, TypeError, "epoch.*float32"),
        ({"epoch": torch.tensor([1], device=META)}, ValueError, "epoch.*cpu.*meta"),
        ({"attention_mask": torch.ones(2, 4)}, ValueError, r"attention_mask.*\(2, 5\).*\(2, 4\)"),
        (
            {"attention_mask": torch.ones(2, 5, device=META)},
            ValueError,
            "attention_mask.*cpu.*meta",
        ),
    ],
    ids=case_id,
)
def test_bad_padded_input(backend, options, error, message):
    with refuses(error, match=message):
        make_masker()(**{"input_ids": IDS, **options})


@pytest.mark.parametrize("lengths, where", [("[5, 6]", "1"), ("[-1, 5]", "0"), ("[5, 10**9]", "1")])
@pytest.mark.parametrize("mode", ["native", "reference"])
def test_lengths_out_of_range(mode, lengths, where):
    """In a child: a row that reaches into its neighbours may end the process."""
    code = f"""
import torch
from strategies import make_masker
try:
    make_masker(mask_ratio=1.0)(torch.arange(10, 20).view(2, 5), lengths=torch.tensor({lengths}))
except (ValueError, IndexError) as error:
    print(error)
"""
    child = run_python(code, SPANBERT_EXT_BACKEND=mode)
    assert child.returncode == 0, child.stderr
    assert re.match(naming("lengths", where, 5), child.stdout) or re.match(
        naming("lengths", where, 6), child.stdout
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"tokens": FLAT.view(2, 5)}, ValueError, "tokens.*1 dim"),
        ({"tokens": FLAT.double()}, TypeError, "tokens.*float64"),
        ({"tokens": torch.arange(20)[::2]}, ValueError, "tokens.*contiguous"),
        ({"tokens": FLAT + VOCAB}, IndexError, naming(0, 210, VOCAB)),
        ({"cu_seqlens": torch.tensor([0, 4, 9])}, ValueError, "cu_seqlens.*end at 10.*9"),
        ({"cu_seqlens": torch.tensor([0, 4, 11])}, ValueError, "cu_seqlens.*end at 10.*11"),
        ({"cu_seqlens": torch.tensor([1, 4, 10])}, ValueError, "cu_seqlens.*start at 0.*1"),
        ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, ValueError, "cu_seqlens.*6 to 4.*entry 2"),
        ({"cu_seqlens": torch.tensor([0, -1, 10])}, ValueError, "cu_seqlens.*0 to -1"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int64)}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([[0, 10]])}, ValueError, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, TypeError, "cu_seqlens.*float32"),
        ({"cu_seqlens": [0, 10]}, TypeError, "cu_seqlens.*tensor"),
        ({"cu_seqlens": torch.tensor([0, 10], device=META)}, ValueError, "cu_seqlens.*cpu.*meta"),
        ({"sample_ids": torch.tensor([1, 2, 3])}, ValueError, "sample_ids"),
    ],
    ids=case_id,
)
def test_bad_packed_input(backend, options, error, message):
    arguments = {"tokens": FLAT, "cu_seqlens": torch.tensor([0, 4, 10]), **options}
    with refuses(error, match=message):
        make_masker().packed(**arguments)


@pytest.mark.parametrize("layout", ["cu_seqlens", "lengths", "sample_ids", "attention_mask"])
def test_strided_index_arguments_work_or_are_named(backend, layout):
    """A slice of a wider table is an ordinary thing to pass: the answer is that of its contiguous
    copy."""
    wide = {
        "cu_seqlens": torch.tensor([[0, 9], [4, 9], [10, 9]]),
        "lengths": torch.tensor([[5, 9], [4, 9]]),
        "sample_ids": torch.tensor([[7, 9], [8, 9]]),
    }
    masker = make_masker(mask_ratio=0.5)
    if layout == "attention_mask":
        mask = torch.ones(5, 2).t()
        assert_same_batch(
            masker(IDS, attention_mask=mask),
            rewound(masker)(IDS, attention_mask=mask.contiguous()),
        )
        return
    column = wide[layout][:, 0]

    def call(values):
        if layout == "cu_seqlens":
            return rewound(masker).packed(FLAT, values)
        return rewound(masker)(IDS, **{layout: values})

    try:
        strided = call(column)
    except ValueError as error:
        assert layout in str(error)
        return
    assert_same_batch(strided, call(column.contiguous()))


def test_unused_positions_may_hold_anything(backend):
    """Ids behind a row's length are not read: -100 padding is common and no fault, on either
    path."""
    ids = torch.tensor([[10, 11, 12, -100, 9999]])
    batch = make_masker(mask_ratio=1.0)(ids, lengths=torch.tensor([3]))
    assert batch.input_ids[0, 3:].tolist() == [-100, 9999]
    assert batch.labels[0].tolist() == [10, 11, 12, -100, -100]


def test_the_first_bad_id_is_named_by_its_flat_position(backend):
    tokens = torch.arange(10, 110).repeat(60)
    tokens[5001], tokens[777] = -1, VOCAB
    with refuses(IndexError, match=naming(777, VOCAB)):
        make_masker().packed(tokens, torch.arange(0, 6001, 100))


def test_epoch_tensor_may_be_int32_like_every_index(backend):
    masker = make_masker()
    assert_same_batch(
        masker(IDS, epoch=torch.tensor([3], dtype=torch.int32)), rewound(masker)(IDS, epoch=3)
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"mask_ratio": 0.0}, ValueError, r"mask_ratio.*\(0, 1\].*0"),
        ({"mask_ratio": -0.1}, ValueError, "mask_ratio"),
        ({"mask_ratio": 1.01}, ValueError, "mask_ratio.*1.01"),
        ({"mask_ratio": float("nan")}, ValueError, "mask_ratio.*nan"),
        ({"mask_ratio": float("inf")}, ValueError, "mask_ratio.*inf"),
        ({"mask_ratio": 1e-9}, ValueError, "mask_ratio"),
        ({"geometric_p": 0.0}, ValueError, "geometric_p"),
        ({"geometric_p": 1.5}, ValueError, "geometric_p"),
        ({"min_words": 0}, ValueError, "min_words"),
        ({"min_words": 4, "max_words": 3}, ValueError, "min_words.*max_words.*4.*3"),
        ({"max_words": 300}, ValueError, "max_words.*256"),
        ({"replacement": "word"}, ValueError, "replacement.*span, piece.*word"),
        ({"scheme": "entities"}, ValueError, "scheme.*entities"),
        ({"mask_prob": 1.2}, ValueError, "mask_prob"),
        ({"random_prob": -0.1}, ValueError, "random_prob"),
        ({"mask_prob": 0.7, "random_prob": 0.5}, ValueError, "mask_prob . random_prob"),
        ({"max_span_targets": 0}, ValueError, "max_span_targets"),
        ({"random_tokens": []}, ValueError, "random_tokens"),
        ({"random_tokens": [VOCAB]}, IndexError, "random_tokens.*200"),
        ({"random_tokens": [-1]}, IndexError, "random_tokens.*-1"),
        ({"random_tokens": [1.5]}, TypeError, "random_tokens"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": -(2**63) - 1}, ValueError, "seed"),
    ],
    ids=case_id,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_masker(**options)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.ones(5), [0], 1), TypeError, "word_starts.*bool.*float32"),
        ((torch.ones(2, 5, dtype=torch.bool), [0], 1), (TypeError, ValueError), "word_starts"),
        (([True] * 5, [9], 1), IndexError, "special.*9.*5"),
        (([True] * 5, [0], 7), IndexError, "7.*5"),
        (([True] * 5, [0], -1), IndexError, "-1.*5"),
        (([True] * 5, range(5), 1), ValueError, "random_tokens|ordinary"),
        (([True] * 5, [0], None), (TypeError, ValueError), "mask_id"),
    ],
    ids=case_id,
)
def test_bad_vocabulary(arguments, error, message):
    with pytest.raises(error, match=message):
        SpanMasker(*arguments)


def test_too_many_lengths_is_an_error_on_either_path(backend):
    with pytest.raises(ValueError, match="max_words"):
        make_masker(max_words=300)(IDS)


def test_default_pool_is_every_ordinary_id(backend):
    masker = make_masker(random_tokens=None, mask_ratio=1.0, mask_prob=0.0, random_prob=1.0)
    drawn = masker(torch.full((20, 500), 10)).input_ids
    assert sorted(set(drawn.view(-1).tolist())) == list(range(4, VOCAB))


def test_a_pickled_masker_makes_the_same_masks(backend):
    masker = make_masker(seed=12, mask_ratio=0.3)
    copied = pickle.loads(pickle.dumps(masker))
    assert_same_batch(copied(IDS), masker(IDS))
    assert (
        b"_on_device" not in pickle.dumps(masker)
        or not pickle.loads(pickle.dumps(masker))._on_device
    )


def test_batch_moves_and_is_frozen():
    batch = make_masker()(IDS)
    assert {t.device.type for t in fields(batch.to("meta")).values()} == {"meta"}
    with pytest.raises(AttributeError):
        batch.input_ids = IDS
    assert make_masker().settings.mask_id == MASK


def test_what_a_tokenizer_of_transformers_returns_can_be_passed_on(backend):
    encoding = {
        "input_ids": IDS,
        "token_type_ids": torch.zeros_like(IDS),
        "attention_mask": (IDS != PAD).long(),
    }
    masker, other = make_masker(mask_ratio=0.5), make_masker(mask_ratio=0.5)
    assert_same_batch(masker(**encoding), other(IDS, attention_mask=encoding["attention_mask"]))


BOUNDS = [
    ([0, 60], [100, 200]),
    ([0, 64, 128], [200, 128, 200]),  # one row in another
    ([0, 0], [64, 64]),
    ([100, 0], [200, 100]),
    ([50], [20]),
    ([-64, 0], [0, 64]),
    ([0], [-1]),
    ([0, 100], [100, 201]),
    ([0], [2**62]),
    ([2**62], [2**62]),
    ([-(2**63)], [2**63 - 1]),
]


@pytest.mark.parametrize("mode", ["native", "reference"])
def test_rows_that_overlap_or_leave_the_stream(mode):
    """In a child: two rows that share bitmaps may end the process, or never end."""
    code = f"""
import torch
from strategies import POOL, make_masker, word_starts
from spanbert_ext.ops import span_mask as mask_op
tables = word_starts().to(torch.uint8), torch.tensor(list(POOL))
masker = make_masker(mask_ratio=1.0)
for starts, ends in {BOUNDS}:
    ids = torch.arange(len(starts))
    rows = torch.tensor(starts), torch.tensor(ends), ids, ids[:1]
    try:
        mask_op.span_mask(torch.full((200,), 10), *rows, *tables, masker.settings, 500, 500)
    except ValueError as error:
        print(error)
"""
    child = run_python(code, SPANBERT_EXT_BACKEND=mode)
    assert child.returncode == 0, child.stderr
    said = "starts and ends must ascend inside [0, 200] without overlap"
    assert child.stdout.splitlines() == [said] * len(BOUNDS)


CALL = """
import torch
from strategies import make_masker
from spanbert_ext.ops import span_mask as mask_op
s = make_masker(mask_ratio=1.0, mask_prob=0.0, random_prob=1.0).settings
def call(tokens=torch.arange(10, 19), start=0, end=9, targets=9, pool=torch.tensor([150])):
    rows = torch.tensor([start]), torch.tensor([end]), torch.tensor([0])
    return torch.ops.spanbert_ext.span_mask(
        tokens, *rows, torch.tensor([0]), torch.ones(200, dtype=torch.uint8), pool,
        None, 0, 3, s.ratio, 1, s.length_thresholds, s.mask_threshold, s.random_threshold,
        False, 15, 0, False, targets, 9)
call()
try:
    call(CHANGE)
except (TypeError, ValueError, IndexError) as error:
    print(error)
"""


@pytest.mark.parametrize(
    "change, name",
    [
        ("tokens=torch.zeros(9, dtype=torch.int16)", "tokens"),
        ("tokens=torch.zeros(9)", "tokens"),
        ("tokens=torch.zeros(18, dtype=torch.int64)[::2]", "tokens"),
        ("end=99", "ends"),
        ("start=-4", "starts"),
        ("targets=0", "target_capacity"),
        ("pool=torch.zeros(0, dtype=torch.int64)", "random_tokens"),
    ],
)
def test_the_operation_itself_rejects_bad_arguments(change, name):
    """In a child: what is not checked here reads or writes outside its tensors."""
    child = run_python(CALL.replace("CHANGE", change), SPANBERT_EXT_BACKEND="native")
    assert child.returncode == 0, child.stderr
    assert name in child.stdout


def test_from_tokenizer_takes_a_name_and_says_what_to_give_instead(monkeypatch):
    import transformers

    asked = []

    def from_pretrained(name):
        asked.append(name)
        if name != "acme/bert":
            raise OSError(f"{name} is not a local folder and is not a valid model identifier\nmore")
        from tokenizers import Tokenizer, models

        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it"]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        return Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    assert SpanMasker.from_tokenizer("acme/bert").settings.mask_id == 4
    said = "acme/none is no directory here.*not a valid model identifier.*directory of a saved"
    with pytest.raises(DataError, match=said):
        SpanMasker.from_tokenizer("acme/none")
    assert asked == ["acme/bert", "acme/none"]


def test_from_tokenizer_masks_whole_words_of_its_text(backend, tmp_path):
    """A WordPiece vocabulary typed by hand: un ##believ ##able is one word, specials are found."""
    from tokenizers import Tokenizer, models

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##believ", "##able", "it", "is"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    masker = SpanMasker.from_tokenizer(tokenizer, seed=4, mask_ratio=0.5, geometric_p=1.0)
    assert masker.vocab_size == 10
    assert masker.settings.mask_id == 4
    ids = torch.tensor([2, 8, 9, 1, 5, 6, 7, 3, 0]).expand(500, -1).contiguous()
    selected = masker(ids).labels != -100
    assert (
        selected.sum(1).tolist() == [3] * 500
    )  # half of the six ordinary pieces, [UNK] among them
    assert not selected[:, [0, 7, 8]].any()
    assert bool(selected[:, 3].any())
    # Whole words but for the cut at the budget: a later piece never goes without the earlier ones.
    assert bool(
        (selected[:, 4] | ~selected[:, 5]).all() and (selected[:, 5] | ~selected[:, 6]).all()
    )
