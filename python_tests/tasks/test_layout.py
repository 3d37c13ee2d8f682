"""The special tokens around texts: those of the tokenizer itself."""

import pytest
from other_encoders import KINDS, tokenizer_of
from qa_helpers import byte_level, wordpiece
from tokenizers import processors
from toy_tasks import toy_tokenizer

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.classification.config import GlueOptions
from spanbert_ext.tasks.classification.data import GlueExample
from spanbert_ext.tasks.classification.task import GlueTask
from spanbert_ext.tasks.layout import PairLayout, around_text, check_first_token

A, B = "the film was good", "a very dull story and an ending"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_what_the_tokenizer_makes_of_it(kind):
    tokenizer = tokenizer_of(kind)
    (pair,) = GlueTask("mrpc", GlueOptions()).features([GlueExample("x", (A, B))], tokenizer)
    whole = tokenizer(A, B)
    assert pair.input_ids.tolist() == whole["input_ids"]
    if "token_type_ids" in tokenizer.model_input_names:
        assert pair.token_type_ids.tolist() == whole["token_type_ids"]
    (one,) = GlueTask("cola", GlueOptions()).features([GlueExample("x", (A,))], tokenizer)
    assert one.input_ids.tolist() == tokenizer(A)["input_ids"]


def test_roberta_has_two_separators_between_texts():
    """<s> a </s></s> b </s>, ids 0 and 2; BERT has one, and types."""
    layout = PairLayout.of(byte_level())
    parts = (layout.before, layout.between, layout.behind)
    assert [part.tolist() for part in parts] == [[0], [2, 2], [2]]
    assert layout.types is None and layout.specials == 4
    assert PairLayout.of(byte_level(), as_bert=True).types is None
    layout = PairLayout.of(wordpiece())
    parts = (layout.before, layout.between, layout.behind)
    assert [part.tolist() for part in parts] == [[2], [3], [3]]
    assert layout.token_types(2, 1).tolist() == [0, 0, 0, 0, 1, 1]


def test_types_of_texts_that_are_joined_as_berts():
    """Whatever the tokenizer says of types: so models were trained."""
    for tokenizer in (wordpiece(types=False), wordpiece(template=False, types=False)):
        assert PairLayout.of(tokenizer).types is None
        assert PairLayout.of(tokenizer, as_bert=True).token_types(1, 2).tolist() == [
            0,
            0,
            0,
            1,
            1,
            1,
        ]


@pytest.mark.parametrize("length", range(8, 20))
def test_a_pair_keeps_to_its_length(length):
    (pair,) = GlueTask("mrpc", GlueOptions(length)).features(
        [GlueExample("x", (A * 9, B * 9))], byte_level()
    )
    assert len(pair.input_ids) == length
    assert pair.input_ids[0] == 0 and pair.input_ids[-1] == 2
    assert sum(pair.input_ids == 2) == 3


def test_a_sequence_without_a_template():
    before, behind = around_text(wordpiece(template=False))
    assert (before.tolist(), behind.tolist()) == ([2], [3])
    tokenizer = wordpiece(template=False)
    tokenizer.cls_token = None
    with pytest.raises(DataError, match="give it cls_token and sep_token"):
        around_text(tokenizer)


def test_special_tokens_at_the_end_are_refused():
    """As XLNet's; with none at all, or at both ends, a text begins with one."""
    for tokenizer in (wordpiece(), wordpiece(template=False), byte_level()):
        check_first_token(tokenizer, "folder")
    tokenizer = toy_tokenizer()
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", pair="$A [SEP] $B [SEP] [CLS]", special_tokens=ids
    )
    with pytest.raises(DataError, match=r"folder: its tokenizer .* as XLNet does"):
        check_first_token(tokenizer, "folder")
