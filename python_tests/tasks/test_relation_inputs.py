import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relation_cases import LETTERS, task, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.relation import symbols
from spanbert_ext.tasks.relation.data import RelationExample

INPUTS = (
    "entity-mask",
    "entity-mask-repeated",
    "entity-mask-and-text",
    "marker",
    "typed-marker",
    "marker-and-types",
)
PERSON, CITY = "SUBJ=PERSON", "OBJ=CITY"


def example(tokens, subject, object, types=("PERSON", "CITY"), id="x", relation="born_in"):
    return RelationExample(id, tuple(tokens.split()), subject, object, *types, relation)


def learned(reader, examples, **options):
    made = task(**options)
    made.learn([*examples, dataclasses.replace(examples[0], relation="no_relation")], reader)
    return made


def shown(made, reader, *examples):
    """The pieces of each sequence, symbols by their names."""
    names = {token: symbol for symbol, token in made.facts["symbols"].items()}
    rows = [f.input_ids.tolist() for f in made.features(examples, reader)]
    pieces = [[names.get(p, p) for p in reader.convert_ids_to_tokens(row)] for row in rows]
    return [" ".join(row) for row in pieces]


ADA = example("Ada Byron was born in London .", (0, 2), (5, 6))
LITERAL = {
    "entity-mask": "[CLS] SUBJ=PERSON was born in OBJ=CITY . [SEP]",
    "entity-mask-repeated": "[CLS] SUBJ=PERSON SUBJ=PERSON was born in OBJ=CITY . [SEP]",
    "entity-mask-and-text": "[CLS] SUBJ=PERSON was born in OBJ=CITY . [SEP] Ada Byron [SEP] "
    "London [SEP]",
    "marker": "[CLS] SUBJ-START Ada Byron SUBJ-END was born in OBJ-START London OBJ-END . [SEP]",
    "typed-marker": "[CLS] SUBJ=PERSON Ada Byron SUBJ-END was born in OBJ=CITY London OBJ-END . "
    "[SEP]",
    "marker-and-types": "[CLS] SUBJ-START Ada Byron SUBJ-END was born in OBJ-START London OBJ-END "
    ". [SEP] SUBJ=PERSON [SEP] OBJ=CITY [SEP]",
}


@pytest.mark.parametrize("input", INPUTS)
def test_every_kind_of_input(input):
    reader = tokenizer()
    made = learned(reader, [ADA], input=input)
    assert shown(made, reader, ADA) == [LITERAL[input]]
    [feature] = made.features([ADA], reader)
    assert feature.input_ids.dtype == np.int64
    assert feature.token_type_ids is None
    assert (feature.labels.dtype, feature.labels.shape, int(feature.labels)) == (np.int64, (), 1)


OVERLAPS = {
    "object inside": ((0, 4), (3, 4), "S Ada of the O London o s was"),
    "subject inside": ((1, 2), (0, 4), "O Ada S of s the London o was"),
    "same words": ((0, 4), (0, 4), "S O Ada of the London o s was"),
    "crossing": ((0, 3), (2, 5), "S Ada of O the s London was o"),
    "same start": ((0, 1), (0, 2), "O S Ada s of o the London was"),
    "same end": ((1, 4), (3, 4), "Ada S of the O London o s was"),
    "touching": ((0, 2), (2, 4), "S Ada of s O the London o was"),
}


@pytest.mark.parametrize(("subject", "object", "wanted"), OVERLAPS.values(), ids=OVERLAPS.keys())
def test_entities_that_overlap(subject, object, wanted):
    case = example("Ada of the London was", subject, object)
    reader = tokenizer()
    [text] = shown(learned(reader, [case], input="marker"), reader, case)
    short = {"SUBJ-START": "S", "SUBJ-END": "s", "OBJ-START": "O", "OBJ-END": "o"}
    assert [short.get(piece, piece) for piece in text.split()[1:-1]] == wanted.split()


def test_masks_of_entities_that_overlap():
    inside = example("University of London was", (0, 3), (2, 3))
    reader = tokenizer()
    assert shown(learned(reader, [inside]), reader, inside) == [
        "[CLS] SUBJ=PERSON OBJ=CITY was [SEP]"
    ]
    repeated = learned(reader, [inside], input="entity-mask-repeated")
    assert shown(repeated, reader, inside) == [
        "[CLS] SUBJ=PERSON SUBJ=PERSON OBJ=CITY SUBJ=PERSON was [SEP]"
    ]


def test_words_are_taken_to_pieces():
    case = example("Ada wasx London", (0, 1), (2, 3))
    reader = tokenizer()
    assert shown(learned(reader, [case]), reader, case) == [
        "[CLS] SUBJ=PERSON was ##x OBJ=CITY [SEP]"
    ]


def test_tokens_that_have_no_piece():
    case = RelationExample("x", ("\x00", "", "London"), (0, 1), (1, 3), *"AB", "r")
    reader = tokenizer()
    made = learned(reader, [case], input="marker")
    assert shown(made, reader, case) == ["[CLS] SUBJ-START SUBJ-END OBJ-START London OBJ-END [SEP]"]


def test_a_text_cannot_pose_as_a_symbol():
    reader = tokenizer(unused=2)
    case = example("Ada [OBJ=CITY] [SEP] [unused1] London", (0, 1), (4, 5))
    made = learned(reader, [case])
    assert made.facts["symbols"][CITY] == "[OBJ=CITY]"
    [text] = shown(made, reader, case)
    assert text.startswith("[CLS] SUBJ=PERSON [UNK] [UNK] [ u ##n")
    assert text.endswith("] OBJ=CITY [SEP]")
    assert text.split().count(CITY) == 1


def test_half_a_surrogate_pair_is_no_word():
    case = RelationExample("x", ("Ada", "\ud800", "London"), (0, 1), (2, 3), "PERSON", "CITY", "r")
    reader = tokenizer()
    assert shown(learned(reader, [case]), reader, case) == ["[CLS] SUBJ=PERSON OBJ=CITY [SEP]"]


# Truncation


def test_the_room_is_shared_around_both_entities():
    words = " ".join("abcdefghijklmnopqrstuvwxyz")
    case = example(words, (2, 3), (20, 21))
    reader = tokenizer()
    made = learned(reader, [case], length=16)
    # Twelve beside the symbols: three on every side where there are as many, then the first.
    assert shown(made, reader, case) == ["[CLS] a b SUBJ=PERSON d e f g r s t OBJ=CITY v w x [SEP]"]


def test_near_the_edge_the_other_side_gets_the_room():
    case = example(" ".join("abcdefghijklmnopqrstuvwxyz"), (0, 1), (1, 2))
    reader = tokenizer()
    made = learned(reader, [case], length=16)
    assert shown(made, reader, case) == ["[CLS] SUBJ=PERSON OBJ=CITY c d e f g h i j k l m n [SEP]"]


def test_of_a_long_entity_the_ends_are_kept():
    case = example(" ".join("abcdefghijklmnopqrstuvwxyz"), (1, 24), (25, 26))
    reader = tokenizer()
    made = learned(reader, [case], length=16, input="marker")
    assert shown(made, reader, case) == [
        "[CLS] SUBJ-START b c d e f u v w x SUBJ-END OBJ-START z OBJ-END [SEP]"
    ]


def test_behind_the_sentence_too():
    case = example(" ".join("abcdefghijklmnopqrstuvwxyz"), (1, 24), (25, 26))
    reader = tokenizer()
    made = learned(reader, [case], length=24, input="entity-mask-and-text")
    assert shown(made, reader, case) == ["[CLS] a SUBJ=PERSON y OBJ=CITY [SEP] b c x [SEP] z [SEP]"]


cases = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(sorted),
        st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(sorted),
    )
)


@given(cases, st.sampled_from(INPUTS), st.integers(16, 80))
def test_no_symbol_is_ever_cut(case, input, length):
    count, subject, object = case
    words = " ".join(f"{LETTERS[n % 26]}x" for n in range(count))
    one = example(words, tuple(subject), tuple(object))
    made = learned(READER, [one], length=length, input=input)
    pieces = shown(made, READER, one)[0].split()
    every = shown(learned(READER, [one], length=10_000, input=input), READER, one)[0].split()
    assert len(pieces) == min(length, len(every)) or input == "entity-mask-and-text"
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    rest = iter(every)
    assert all(piece in rest for piece in pieces)  # in order
    symbols_kept = {*made.facts["symbols"], "[SEP]"}
    if input == "entity-mask-repeated":
        assert symbols_kept & {*pieces} == symbols_kept & {*every}
    else:
        assert [p for p in pieces if p in symbols_kept] == [p for p in every if p in symbols_kept]
    if "mask" not in input and entity_pieces(pieces) != entity_pieces(every):
        sentence = pieces[1 : pieces.index("[SEP]")]
        assert len([p for p in sentence if p not in symbols_kept]) == len(entity_pieces(pieces))


def entity_pieces(pieces):
    """Those between an opening and a closing symbol of the sentence."""
    found, depth = [], 0
    for piece in pieces[: pieces.index("[SEP]")]:
        if "=" in piece or piece.endswith("-START"):
            depth += 1
        elif piece.endswith("-END"):
            depth -= 1
        elif depth:
            found.append(piece)
    return found


READER = tokenizer()


def test_a_model_that_reads_too_few_pieces():
    reader = tokenizer()
    made = learned(reader, [ADA])
    reader.model_max_length = 20
    long = example(" ".join("abcdefghijklmnopqrstuvwxyz"), (0, 1), (1, 2))
    assert len(made.features([long], reader)[0].input_ids) == 20
    reader.model_max_length = 15
    with pytest.raises(DataError, match="the model reads 15 pieces"):
        made.features([ADA], reader)


# The same pieces as the text would have


@given(st.text(st.sampled_from("ab .,é\u0301中-' \n\u00a0"), min_size=1, max_size=30))
def test_word_by_word_gives_the_pieces_of_the_text(text):
    made = learned(READER, [ADA], length=10_000, input="marker")
    parsed = made.parse({"text": f"Ada {text} London", "subject": [0, 3],
                         "object": [len(text) + 5, len(text) + 11]}, "x")  # fmt: skip
    [feature] = made.features([parsed], READER)
    marks = {READER.convert_tokens_to_ids(token) for token in made.facts["symbols"].values()}
    ids = [i for i in feature.input_ids.tolist() if i not in marks]
    assert ids[1:-1] == READER(f"Ada {text} London", add_special_tokens=False)["input_ids"]


def test_byte_level_pieces_keep_their_blanks():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["Ada was born in London, London-born Ada was born"], trainer)
    reader = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", pad_token="<pad>"
    )
    text = "Ada was London-born, </s>born in London"
    made = task(input="marker", null_label=None)
    made.learn([ADA, example("Ada", (0, 1), (0, 1), relation="r")], reader)
    parsed = made.parse({"text": text, "subject": [8, 14], "object": [33, 39]}, "x")
    [feature] = made.features([parsed], reader)
    assert reader.decode(feature.input_ids) == (
        "<s>Ada was[SUBJ-START] London[SUBJ-END]-born, born in[OBJ-START] London[OBJ-END]</s>"
    )


# Symbols


def test_symbols_do_not_depend_on_the_order_of_records():
    types = [("A", "X"), ("B", "Y"), ("C", "X"), ("B", "A")]
    examples = [example("a b", (0, 1), (1, 2), pair, relation=r) for pair in types for r in "rs"]
    maps = []
    for seed in range(5):
        random.Random(seed).shuffle(examples)
        made = learned(tokenizer(), examples, input=INPUTS[seed])
        maps.append(made.facts["symbols"])
    wanted = ["SUBJ-START", "SUBJ-END", "OBJ-START", "OBJ-END", "SUBJ=?", "OBJ=?"]
    wanted += ["SUBJ=A", "SUBJ=B", "SUBJ=C", "OBJ=A", "OBJ=X", "OBJ=Y"]
    assert list(maps[0].items()) == [(s, f"[unused{n}]") for n, s in enumerate(wanted, 1)]
    assert all(m == maps[0] for m in maps if "SUBJ=A" in m)
    assert list(maps[3]) == wanted[:6]  # marker shows no types


def test_the_vocabulary_grows_where_it_has_no_room():
    reader = tokenizer(unused=7)
    before = len(reader)
    made = learned(reader, [ADA])
    assert made.facts["symbols"][PERSON] == "[unused7]"
    assert made.facts["symbols"][CITY] == "[OBJ=CITY]"
    assert len(reader) == before + 1
    again = learned(reader, [ADA])
    assert (again.facts, len(reader)) == (made.facts, before + 1)
    assert shown(made, reader, ADA) == [LITERAL["entity-mask"]]


def test_unused_tokens_that_the_tokenizer_uses_are_left_alone():
    reader = tokenizer()
    reader.pad_token = "[unused2]"
    chosen = symbols.choose(reader, [], [])
    assert list(chosen.values()) == [f"[unused{n}]" for n in (1, 3, 4, 5, 6, 7)]


def test_unseen_types_share_a_symbol(caplog):
    reader = tokenizer()
    made = learned(reader, [ADA])
    other = example("Ada London", (0, 1), (1, 2), ("ROBOT", "PERSON"))
    with caplog.at_level("WARNING", logger="spanbert_ext"):
        assert shown(made, reader, other, ADA) == [
            "[CLS] SUBJ=? OBJ=? [SEP]",
            LITERAL["entity-mask"],
        ]
        made.features([other], reader)
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == ["PERSON, ROBOT"]


def test_the_tokenizer_of_another_model():
    reader = tokenizer(unused=7)
    made = learned(reader, [ADA])
    with pytest.raises(DataError, match=r"no token \[OBJ=CITY\] \(1 are missing\)"):
        made.features([ADA], tokenizer(unused=7))


def test_a_tokenizer_without_ends():
    backend = tokenizer().backend_tokenizer
    reader = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(DataError, match="give it cls_token and sep_token"):
        learned(reader, [ADA]).features([ADA], reader)


def test_nothing_to_build():
    reader = tokenizer()
    assert learned(reader, [ADA]).features([], reader) == []
