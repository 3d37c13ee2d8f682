"""Sentences with a pair as tokenizers that read blanks make them of the text."""

import dataclasses

import pytest
from relation_cases import record, task
from tokenizer_kinds import KINDS, tokenizer_of

from spanbert_ext.text import marks_blanks

IN_CONTEXT = [kind for kind in KINDS if not kind.startswith("wordpiece")]
TEXT = "Anna  (born in Paris), lives in Rome with Boris."


def of_text(text, *names):
    spans = [[text.index(name), text.index(name) + len(name)] for name in names]
    return {"text": text, "subject": spans[0], "object": spans[1], "relation": "born_in"}


def learned(kind, *records, **options):
    """A task that has seen records, its examples, and the tokenizer that grew by the symbols."""
    tokenizer = tokenizer_of.__wrapped__(kind)
    made = task(input="marker", null_label=None, **options)
    made.facts["labels"] = ["born_in"]
    examples = [made.parse(own, f"record {n}") for n, own in enumerate(records)]
    other = dataclasses.replace(examples[0], relation="lives_in")
    made.learn([*examples, other], tokenizer)
    return made, examples, tokenizer


def without_symbols(made, tokenizer, feature):
    marks = {tokenizer.convert_tokens_to_ids(token) for token in made.facts["symbols"].values()}
    return [id for id in feature.input_ids.tolist() if id not in marks]


@pytest.mark.parametrize("kind", IN_CONTEXT)
def test_the_encoder_reads_the_text(kind):
    made, examples, tokenizer = learned(kind, of_text(TEXT, "Anna", "Rome"), record())
    assert made.facts["blanks"] is True
    first, second = made.features(examples, tokenizer)
    assert without_symbols(made, tokenizer, first) == tokenizer(TEXT)["input_ids"]
    words = " ".join(examples[1].tokens)
    assert without_symbols(made, tokenizer, second) == tokenizer(words)["input_ids"]


@pytest.mark.parametrize("kind", IN_CONTEXT)
def test_no_token_reaches_over_the_edge_of_an_entity(kind):
    """Li Ming went to Beijing: the entity's first character shares a token with what is before."""
    text = "\u674e\u660e\u53bb\u4e86\u5317\u4eac Anna"
    entity = {"text": text, "subject": [1, 2], "object": [4, 6], "relation": "born_in"}
    made, [example], tokenizer = learned(kind, entity)
    [feature] = made.features([example], tokenizer)
    names = {token: name for name, token in made.facts["symbols"].items()}
    tokens = tokenizer.convert_ids_to_tokens(feature.input_ids.tolist())
    shown = [names.get(token, token) for token in tokens]
    for role, name in (("SUBJ", "\u660e"), ("OBJ", "\u5317\u4eac")):
        inside = shown[shown.index(f"{role}-START") + 1 : shown.index(f"{role}-END")]
        ids = tokenizer.convert_tokens_to_ids(inside)
        unknown = tokenizer.unk_token_id in ids
        assert unknown or tokenizer.decode(ids).strip() == name


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_the_first_release_read_single_words(kind):
    made, examples, tokenizer = learned(kind, of_text(TEXT, "Anna", "Paris"), record())
    assert made.facts.get("blanks", False) == marks_blanks(tokenizer)
    made.facts.pop("blanks", None)
    for example, feature in zip(examples, made.features(examples, tokenizer), strict=True):
        words = []
        for n, token in enumerate(example.tokens):
            apart = n > 0 and (
                not example.offsets or example.offsets[n - 1][1] < example.offsets[n][0]
            )
            words.append(" " + token if apart else token)
        alone = tokenizer(words, add_special_tokens=False)["input_ids"]
        expected = [id for own in alone for id in own]
        assert without_symbols(made, tokenizer, feature)[1:-1] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["text", "token", "subject_type"])
def test_half_a_surrogate_pair(kind, field):
    broken, whole = (
        {
            "text": of_text(f"Anna {sign} Rome", "Anna", "Rome"),
            "token": record(token=["Ada", sign, "was", "born", "in", "London", "."]),
            "subject_type": of_text("Anna in Rome", "Anna", "Rome") | {"subject_type": sign},
        }[field]
        for sign in ("\ud83d", "\ufffd")
    )
    made, examples, tokenizer = learned(kind, broken, whole)
    one, two = made.features(examples, tokenizer)
    assert one.input_ids.tolist() == two.input_ids.tolist()
