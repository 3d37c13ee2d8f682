"""What is said of records that cannot be used."""

import pytest

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.rejects import Reject, Rejects


@pytest.mark.parametrize(
    ("id", "where", "reason", "said"),
    [
        ("a", "x/in.jsonl:3", "it is empty", "x/in.jsonl:3: record a: it is empty"),
        ("in.jsonl:3", "x/in.jsonl:3", "it is empty", "x/in.jsonl:3: it is empty"),
        ("a", "in.jsonl:3", "in.jsonl:3: it is empty", "in.jsonl:3: record a: it is empty"),
        ("0", "x.json: [0]", "it is empty", "x.json: [0]: it is empty"),
        ("2", "x.tsv:2", "unknown label", "x.tsv:2: unknown label"),
        ("2", "x.tsv:12", "unknown label", "x.tsv:12: record 2: unknown label"),
        ("data[0].qas[1]", "x.json: data[0].qas[1]", "no text", "x.json: data[0].qas[1]: no text"),
    ],
)
def test_the_place_is_said_once(id, where, reason, said):
    assert Reject(id, where, reason).said == said
    with pytest.raises(DataError) as error:
        Rejects("error").add(id, where, reason)
    assert str(error.value).startswith(f"{said}. Mend it")
    rejects = Rejects("skip")
    rejects.add(id, where, reason)
    with pytest.raises(DataError) as error:
        rejects.check("x", 0)
    assert str(error.value).endswith(f"The first: {said}")
