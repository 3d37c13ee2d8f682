import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relation_cases import record, task, write_json

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.relation.config import RelationOptions
from spanbert_ext.tasks.relation.data import example_of


def read(folder, *records, policy="error", facts=None, **options):
    path = write_json(folder / "data.json", list(records))
    rejects = Rejects(policy, limit=1.0)
    return task(facts, **options).read(path, rejects), rejects.found


def test_a_record_of_tacred(tmp_path):
    [example], _ = read(tmp_path, record(stanford_pos=["X"] * 7, docid="d"))
    assert example.tokens == ("Ada", "Byron", "was", "born", "in", "London", ".")
    assert (example.subject, example.object) == ((0, 2), (5, 6))
    assert (example.subject_type, example.object_type) == ("PERSON", "CITY")
    assert (example.id, example.relation) == ("a", "born_in")
    assert example.text == "Ada Byron was born in London ."
    assert example.text[slice(*example.characters(example.subject))] == "Ada Byron"
    assert example.text[slice(*example.characters(example.object))] == "London"


def test_brackets_of_the_treebank_become_characters(tmp_path):
    tokens = ["-LRB-", "-rrb-", "-LSB-", "-RSB-", "-LCB-", "-RCB-", "LRB"]
    [example], _ = read(tmp_path, record(token=tokens))
    assert example.tokens == ("(", ")", "[", "]", "{", "}", "LRB")


def test_a_record_with_text_and_offsets_may_train_too(tmp_path):
    raw = {
        "text": "London-born Ada",
        "subject": [12, 15],
        "object": [0, 6],
        "subject_type": "PERSON",
        "object_type": "CITY",
        "relation": "born_in",
    }
    [example], _ = read(tmp_path, raw)
    assert example.tokens == ("London", "-born", "Ada")
    assert (example.subject, example.object) == ((2, 3), (0, 1))
    assert (example.id, example.text) == ("0", "London-born Ada")


FAULTS = {
    "span past the end": (record(obj_end=7), "obj_end: 7 lies outside the 7 tokens"),
    "negative start": (record(subj_start=-1), "subj_start: -1 lies outside"),
    "reversed": (record(subj_start=2), "subj_end: 1 comes before subj_start 2"),
    "span of another type": (record(subj_start="0"), "subj_start: expected a token's number"),
    "span a truth value": (record(subj_start=True), "subj_start: expected a token's number"),
    "no subj_start": (record(subj_start=None), "the field subj_start is missing"),
    "no obj_end": (record(obj_end=None), "the field obj_end is missing"),
    "no relation": (record(relation=None), "no field 'relation'; fields there: "),
    "no subj_type": (record(subj_type=None), "the field subj_type is missing"),
    "no obj_type": (record(obj_type=None), "the field obj_type is missing"),
    "no token": (record(token=None), "expected the field token"),
    "no tokens": (record(token=[]), "token: the list is empty"),
    "tokens a string": (record(token="Ada"), "token: expected a list of strings, found a string"),
    "a token that is a number": (record(token=[1] * 7), "token: expected a list of strings"),
    "an empty relation": (record(relation=" "), "relation: expected a name"),
    "not a record": ([1], "expected an object with fields, found a list"),
    "text that is none": ({"text": 3}, "text: expected a string"),
    "no subject": ({"text": "ab", "object": [0, 1]}, "the field subject is missing"),
    "one offset": ({"text": "ab", "subject": [0]}, "subject: expected [start, end]"),
    "past the text": ({"text": "ab", "subject": [0, 3]}, "subject: [0, 3] is no stretch"),
    "offsets reversed": ({"text": "ab", "subject": [1, 0]}, "subject: [1, 0] is no stretch"),
    "empty text": ({"text": "", "subject": [0, 0]}, "covers no visible character"),
    "only a blank": ({"text": "a b", "subject": [1, 2]}, "covers no visible character"),
}


@pytest.mark.parametrize(("bad", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_faulty_records(tmp_path, bad, reason):
    with pytest.raises(DataError) as caught:
        read(tmp_path, record(), bad)
    assert reason in str(caught.value)
    assert f"{tmp_path / 'data.json'}: [1]: " in str(caught.value)
    kept, found = read(tmp_path, record(), bad, policy="skip")
    assert [example.id for example in kept] == ["a"]
    assert len(found) == 1
    assert reason in found[0].reason


def test_a_second_record_with_the_same_id(tmp_path):
    kept, found = read(tmp_path, record(), record(id="b"), record(), policy="skip")
    assert [example.id for example in kept] == ["a", "b"]
    assert found[0].reason == "its id is also that of [0]"
    assert found[0].excerpt == "Ada Byron was born in London ."


def test_a_label_that_training_has_not_seen(tmp_path):
    known = {"labels": ["no_relation", "born_in"]}
    kept, found = read(
        tmp_path, record(), record(id="b", relation="died_in"), policy="skip", facts=known
    )
    assert [example.id for example in kept] == ["a"]
    assert found[0].reason == "relation: 'died_in' was not seen in training"
    kept, _ = read(tmp_path, record(relation="died_in"))  # nothing learned yet
    assert kept[0].relation == "died_in"


def test_types_are_needed_only_where_they_are_shown(tmp_path):
    [example], _ = read(tmp_path, record(subj_type=None, obj_type=None), input="marker")
    assert example.subject_type is example.object_type is None


def test_ids_fit_into_a_line(tmp_path):
    kept, _ = read(tmp_path, record(id=7), record(id="x\t1\n"), record(id=None))
    assert [example.id for example in kept] == ["7", "x 1", "2"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "expected a JSON list of records"),
        ("[1,", "it is not valid JSON"),
        ("", "it is not valid JSON"),
        ("[]", "there is no record in it"),
        ("[" * 100_000, "it is not valid JSON"),
        (b"\xff[]", "not UTF-8: byte 0xff at column 1"),
    ],
)
def test_files_of_another_kind(tmp_path, content, reason):
    path = tmp_path / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason):
        task().read(path, Rejects())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        task().read(tmp_path / "none.json", Rejects())


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record()]), "utf-8-sig")
    assert len(task().read(path, Rejects())) == 1


@given(st.data())
def test_offsets_into_any_text_come_back(data):
    text = data.draw(st.text(min_size=1))
    places = st.integers(0, len(text))
    raw = {"text": text}
    for role in ("subject", "object"):
        raw[role] = sorted((data.draw(places), data.draw(places)))
    if not all(text[slice(*raw[role])].strip() for role in ("subject", "object")):
        with pytest.raises(DataError, match="covers no visible character"):
            example_of(raw, "x", False, False)
        return
    example = example_of(raw, "x", False, False)
    for role, span in (("subject", example.subject), ("object", example.object)):
        assert span[0] < span[1]
        assert text[slice(*example.characters(span))] == text[slice(*raw[role])].strip()
    assert [text[slice(*place)] for place in example.offsets] == list(example.tokens)
    assert "".join(example.tokens) == "".join(text.split())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*record(), "text", "subject", "object"]), json_values))
def test_any_mutation_of_a_record_is_read_or_refused(changes):
    try:
        example = example_of({**record(), **changes}, "x", True, True)
    except DataError:
        return
    for start, stop in (example.subject, example.object):
        assert 0 <= start < stop <= len(example.tokens)


def test_options_out_of_range():
    assert RelationOptions().faults() == []
    assert RelationOptions(null_label=None).faults() == []
    assert RelationOptions(length=15, null_label=" ").faults() == [
        "relation.length: must be at least 16; got 15",
        "relation.null_label: must be a label's name, or null where there is none",
    ]
