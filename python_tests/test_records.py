"""What a line of a text file is."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_ext.errors import DataError
from spanbert_ext.records import UnreadableLine, read_lines, used_columns, without_empty_end


def lines(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_lines(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("\n", [""]),
        ("\r", [""]),
        ("\r\n", [""]),
        ("a\nb", ["a", "b"]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\r", ["a", "b"]),
        ("a\rb", ["a", "b"]),
        ("a\r\rb", ["a", "", "b"]),
        ("a\r\r\nb", ["a", "", "b"]),
        ("a\n\rb", ["a", "", "b"]),
        ("a\rb\r\nc\nd\r", ["a", "b", "c", "d"]),
        ("\ufeffa\n\ufeffb", ["a", "\ufeffb"]),
        # Unicode has more line breaks; in a file they are characters.
        ("a\vb\fc\x1cd\x85e\u2028f\u2029g\n", ["a\vb\fc\x1cd\x85e\u2028f\u2029g"]),
    ],
)
def test_ends_of_lines(tmp_path, text, expected):
    assert lines(tmp_path, text) == expected
    assert lines(tmp_path, gzip.compress(text.encode())) == expected


@given(st.text("ab\r\n\x85\u2028é", max_size=12))
def test_lines_are_those_of_universal_newlines(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "universal"
    path.write_bytes(text.encode())
    with path.open(encoding="utf-8") as file:
        assert list(read_lines(path)) == [line.removesuffix("\n") for line in file]


def test_what_is_not_utf_8_is_one_line(tmp_path):
    first, bad, last = lines(tmp_path, b"a\nb\xe9\r\nc")
    assert (first, last) == ("a", "c")
    assert bad == UnreadableLine("not UTF-8: byte 0xe9 at column 2", "b\ufffd")
    assert "UTF-16" in lines(tmp_path, "a".encode("utf-16"))[0].reason


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        list(read_lines(tmp_path / "absent"))
    with pytest.raises(DataError, match="truncated or damaged gzip data"):
        lines(tmp_path, gzip.compress(b"a line of some length\n" * 9)[:-12])


def test_empty_columns_at_the_end():
    rows = [["a", "b", ""], ["a", "", " "], ["a"]]
    assert used_columns(rows) == 2
    assert [without_empty_end(row, 2) for row in rows] == [["a", "b"], ["a", ""], ["a"]]
    assert used_columns([]) == 0
    assert without_empty_end(["a", "", "c", ""], 1) == ["a", "", "c"]
