"""Windows: what is in them, which piece counts where, and where answers lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_helpers import byte_level, example, texts, wordpiece

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.layout import PairLayout
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.features import features_of, stride_of, windows
from spanbert_ext.text import tokenise

TOKENIZERS = {
    "wordpiece": wordpiece(),
    "no types": wordpiece(types=False),
    "no template": wordpiece(template=False),
    "bytes": byte_level(),
    "bytes with spaces": byte_level(trim=False),
}


def names(tokenizer, feature):
    return tokenizer.convert_ids_to_tokens(feature.input_ids.tolist())


def test_a_short_context():
    tokenizer = TOKENIZERS["wordpiece"]
    case = example("The tower was built in Paris.", "built in", question="When was")
    (feature,) = features_of([case], tokenizer, QAOptions())
    assert names(tokenizer, feature) == [
        *["[CLS]", "when", "was", "[SEP]"],
        *["the", "tower", "was", "built", "in", "paris", ".", "[SEP]"],
    ]
    assert feature.token_type_ids.tolist() == [0] * 4 + [1] * 8
    assert feature.labels.tolist() == [7, 8]
    assert (
        feature.input_ids.dtype == feature.token_type_ids.dtype == feature.labels.dtype == "int64"
    )
    assert (feature.place.at, feature.place.first, feature.place.stop) == (4, 0, 7)
    assert feature.place.offsets[[0, 5, 6]].tolist() == [[0, 3], [23, 28], [28, 29]]


def test_a_long_context():
    tokenizer = TOKENIZERS["wordpiece"]
    context = " ".join(f"w{n}" for n in range(10)).replace("w", "")  # the pieces 0 .. 9
    options = QAOptions(length=16, stride=3, max_question=7)
    found = features_of([example(context, "7", question="who " * 9)], tokenizer, options)
    assert [names(tokenizer, f)[9:-1] for f in found] == [
        list("012345"),
        list("345678"),
        list("6789"),
    ]
    assert all(names(tokenizer, f)[:9] == ["[CLS]", *["who"] * 7, "[SEP]"] for f in found)
    assert [f.labels.tolist() for f in found] == [[0, 0], [13, 13], [10, 10]]
    assert [f.example for f in found] == [0, 0, 0]
    # Piece 4 has one piece on its side in either of the first two; the first of equals counts.
    assert [(f.place.first, f.place.stop) for f in found] == [(0, 5), (2, 5), (2, 4)]


def test_answers_reach_over_the_pieces_they_share_characters_with():
    tokenizer = TOKENIZERS["wordpiece"]
    # "owe" lies inside "tower", "bu" of "bus" is one of its pieces.
    cases = [example("the tower bus", "owe"), example("the tower bus", "bu")]
    one, other = features_of(cases, tokenizer, QAOptions())
    assert one.labels.tolist() == [4, 4]
    assert other.labels.tolist() == [5, 6]


def test_labels_are_there_where_the_answer_is_known():
    tokenizer = TOKENIZERS["wordpiece"]
    cases = [
        example("in paris"),
        example("in paris", is_impossible=True),
        example("in \u200d paris", "\u200d"),  # no piece holds the answer
        example("in paris", golds=("rome",)),  # nobody says where
    ]
    unknown, *others = features_of(cases, tokenizer, QAOptions())
    assert unknown.labels is None
    assert [feature.labels.tolist() for feature in others] == [[0, 0]] * 3


def test_special_tokens_are_those_of_the_tokenizer():
    cases = [example("in paris", question="who")]
    (feature,) = features_of(cases, TOKENIZERS["bytes"], QAOptions())
    tokens = names(TOKENIZERS["bytes"], feature)
    assert tokens == ["<s>", *"who", "</s>", "</s>", *"inĠparis", "</s>"]
    assert feature.token_type_ids is None and feature.place.at == 6
    (plain,) = features_of(cases, TOKENIZERS["no template"], QAOptions())
    (with_template,) = features_of(cases, TOKENIZERS["wordpiece"], QAOptions())
    assert plain.input_ids.tolist() == with_template.input_ids.tolist()
    assert plain.token_type_ids.tolist() == with_template.token_type_ids.tolist()
    assert features_of(cases, TOKENIZERS["no types"], QAOptions())[0].token_type_ids is None


def test_a_tokenizer_without_special_tokens():
    tokenizer = wordpiece(template=False)
    tokenizer.sep_token = None
    with pytest.raises(DataError, match="cls_token and sep_token"):
        PairLayout.of(tokenizer)


@pytest.mark.parametrize("length", [16, 17, 40])
def test_a_question_longer_than_the_sequence(length):
    case = example("the tower " * 40, question="who " * 500)
    options = QAOptions(length=length, max_question=400, stride=1000)
    found = features_of([case], TOKENIZERS["wordpiece"], options)
    assert all(len(f.input_ids) <= length for f in found)
    assert len(found[0].place.offsets) == length // 4
    assert sum(len(f.place.offsets) for f in found) == 80  # side by side, none is left out


def test_stride_and_overlap():
    assert stride_of(QAOptions(stride=128), 300) == 128
    assert stride_of(QAOptions(stride=128), 100) == 100
    assert stride_of(QAOptions(stride=128, overlap=30), 300) == 270
    assert stride_of(QAOptions(overlap=0), 300) == 300
    # The largest that the options let through leaves a way ahead with the longest question.
    options = QAOptions(length=96, max_question=64, overlap=27)
    assert options.faults() == [] and stride_of(options, 96 - 64 - 4) == 1


@settings(max_examples=300)
@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_every_piece_is_read_and_counts_once(count, room, data):
    stride = data.draw(st.integers(1, room))
    found = windows(count, room, stride)
    assert [w[0] for w in found] == [n * stride for n in range(len(found))]
    assert all(stop - first == min(room, count - first) for first, stop, _, _ in found)
    assert all(first <= own <= own_stop <= stop for first, stop, own, own_stop in found)
    assert all(w[1] < count for w in found[:-1]) and found[-1][1] == count
    winners = [n for n, w in enumerate(found) for _ in range(w[2], w[3])]
    assert len(winners) == count
    for piece, winner in enumerate(winners):
        context = [
            min(piece - first, stop - 1 - piece) + 0.01 * (stop - first)
            if first <= piece < stop
            else -1
            for first, stop, _, _ in found
        ]
        assert context.index(max(context)) == winner


@settings(max_examples=150)
@given(
    texts(), texts(12), st.sampled_from(sorted(TOKENIZERS)), st.integers(16, 40), st.integers(1, 30)
)
def test_any_text_is_covered(context, question, name, length, stride):
    tokenizer = TOKENIZERS[name]
    options = QAOptions(length=length, stride=stride, max_question=20)
    answer = context.strip()[:7].strip()
    cases = [example(context, answer, question), example(context, question=question)]
    features = features_of(cases, tokenizer, options)
    pieces = tokenise([context], tokenizer)[context]
    for number in range(2):
        read, own = np.zeros(len(pieces.ids), int), np.zeros(len(pieces.ids), int)
        first = 0
        found = [f for f in features if f.example == number]
        for feature in found:
            place, count = feature.place, len(feature.place.offsets)
            assert len(feature.input_ids) <= length
            part = slice(first, first + count)
            assert (feature.input_ids[place.at : place.at + count] == pieces.ids[part]).all()
            assert (place.offsets == pieces.offsets[part]).all()
            read[part] += 1
            own[first + place.first : first + place.stop] += 1
            first += stride_of(options, length - len(feature.input_ids) + count)
        assert (read >= 1).all() and (own == 1).all()
    labelled = [f for f in features if f.example == 0 and f.labels[1] > 0]
    for feature in labelled:
        spans = feature.place.offsets[feature.labels - feature.place.at]
        start = context.index(answer)
        assert spans[0, 0] < start + len(answer) and spans[1, 1] > start
        assert spans[0, 0] <= start or not context[start : spans[0, 0]].isalnum()
