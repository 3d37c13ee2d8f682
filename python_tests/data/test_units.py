"""Units: where files are divided, and that dividing them changes nothing."""

import json

import pytest
from corpora import PROSE, bytes_of, gzipped, write
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_ext.data import PrepareConfig, prepare
from spanbert_ext.data.sources import find_sources
from spanbert_ext.data.units import describe, plan_units
from spanbert_ext.errors import DataError


def plan(folder, unit_bytes, **settings):
    """[(file name, start, stop), ...] of each unit."""
    config = PrepareConfig([str(folder)], "out", unit_bytes=unit_bytes, **settings)
    sources = find_sources(config.inputs, folder / "out")
    units = plan_units(sources, config)
    return [[(sources[e.source].name, e.start, e.stop) for e in unit] for unit in units]


@pytest.mark.parametrize(
    ("name", "content", "unit_bytes", "borders"),
    [
        ("a.txt", b"a\n\nbb\n\nccc\n", 2, [0, 3, 7, 11]),
        ("a.txt", b"a\n\nbb\n\nccc\n", 4, [0, 7, 11]),
        ("a.txt", b"a\n\n\n\nbb\n", 3, [0, 4, 8]),  # behind the first blank line from there on
        ("a.txt", b"a\n \t\r\nbb\nc", 2, [0, 6, 10]),
        ("a.txt", b"aaaa\nbbbb\ncccc\n", 2, [0, 15]),
        ("a.txt", "a\n\u2003\nb\n\nc\n".encode(), 2, [0, 9, 11]),  # blank to Unicode alone
        ("a.jsonl", b'"a"\n"b"\n"c"', 3, [0, 4, 8, 11]),
        ("a.jsonl", b'"a"\n"b"\n"c"', 5, [0, 8, 11]),
        ("a.txt.gz", gzipped(b"a\n\n" * 9), 3, None),
        ("a.txt", b"", 3, [0, 0]),
    ],
)
def test_where_a_file_is_divided(tmp_path, name, content, unit_bytes, borders):
    write(tmp_path / name, content)
    borders = borders or [0, len(content)]
    extents = [extent for unit in plan(tmp_path, unit_bytes) for extent in unit]
    assert extents == [(name, *pair) for pair in zip(borders[:-1], borders[1:], strict=True)]


def test_whole_files_are_not_divided_and_small_ones_share_a_unit(tmp_path):
    for name, size in {"a": 9, "b": 2, "c": 2, "d": 2, "e": 1}.items():
        write(tmp_path / f"{name}.txt", b"\n" * size)
    units = plan(tmp_path, 4, documents="file")
    assert [[name for name, _, _ in unit] for unit in units] == [["a.txt"], ["b.txt", "c.txt"]] + [
        ["d.txt", "e.txt"]
    ]


def test_units_have_names(tmp_path):
    write(tmp_path / "a.txt", b"a\n\nb\n")
    write(tmp_path / "b.txt", b"c\n")
    config = PrepareConfig([str(tmp_path)], "out", unit_bytes=2)
    sources = find_sources(config.inputs, tmp_path / "out")
    names = [describe(unit, sources) for unit in plan_units(sources, config)]
    assert names == [
        f"{tmp_path}/a.txt, bytes 0 to 3",
        f"{tmp_path}/a.txt, bytes 3 to 5",
        f"{tmp_path}/b.txt",
    ]
    whole = plan_units(sources, PrepareConfig([str(tmp_path)], "out"))
    assert describe(whole[0], sources) == f"2 files, {tmp_path}/a.txt to {tmp_path}/b.txt"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files of every kind that is divided, some empty, and a few faulty lines."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = PROSE.split("\n")
    lines[700:700] = ["\ufeffa mark inside the file", "nul \0", "x" * 999]
    write(folder / "a.txt", "\ufeff" + "\n".join(lines))
    write(folder / "b.txt", "")
    write(folder / "c.txt", " \n" * 900)
    write(folder / "d.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in PROSE.split("\n\n")))
    write(folder / "e.txt.gz", gzipped(PROSE.encode()))
    return folder


@pytest.mark.parametrize(
    ("unit_bytes", "workers"), [(1, 1), (997, 1), (20_000, 2), (20_000, 3), (1 << 24, 2)]
)
def test_units_and_workers_change_nothing(inputs, tmp_path, unit_bytes, workers):
    options = {"vocab_size": 300, "shard_tokens": 9000, "on_error": "skip", "max_line_bytes": 990}
    if unit_bytes == 1:  # as many units as there can be, with a shorter text
        source = write(tmp_path / "in" / "a.txt", "\n\n".join(PROSE.split("\n\n")[:40]))
        write(tmp_path / "in" / "b.txt", "\n")
        inputs = source.parent
    corpora = [
        prepare(PrepareConfig([str(inputs)], str(tmp_path / name), **options, **how))
        for name, how in {
            "one": {"workers": 1},
            "other": {"unit_bytes": unit_bytes, "workers": workers},
        }.items()
    ]
    assert bytes_of(corpora[0].path) == bytes_of(corpora[1].path)
    if unit_bytes > 1:
        assert len(corpora[0].shards) > 2
        assert corpora[0].sidecar["counts"]["rejected"] == {"long_line": 1, "nul": 1}
        assert corpora[0].sidecar["counts"]["empty_files"] == 2
        rejects = (corpora[1].path / "rejects.jsonl").read_text().splitlines()
        assert [json.loads(line)["line"] for line in rejects] == [702, 703]


@settings(max_examples=30)
@given(
    text=st.text(alphabet="ab \n\r\t\u2003\ufeff", max_size=60),
    unit_bytes=st.integers(min_value=1, max_value=20),
)
def test_any_text_may_be_divided_anywhere(tmp_path_factory, text, unit_bytes):
    folder = tmp_path_factory.mktemp("any")
    source = write(folder / "a.txt", text + "\n\nb")
    corpora = [
        prepare(PrepareConfig([str(source)], str(folder / name), vocab_size=64, **how))
        for name, how in {"one": {}, "other": {"unit_bytes": unit_bytes, "workers": 1}}.items()
    ]
    assert bytes_of(corpora[0].path) == bytes_of(corpora[1].path)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_fault_of_the_input_is_told_with_its_line(tmp_path, workers):
    """Also where a later unit fails sooner, and a unit does not know the lines before it."""
    lines = ["fine", ""] * 3000
    lines[2500] = lines[3500] = "nul \0"
    source = write(tmp_path / "in" / "a.txt", "\n".join(lines))
    config = PrepareConfig([str(source)], str(tmp_path / "out"), unit_bytes=99, workers=workers)
    with pytest.raises(DataError, match=r"a\.txt:2501: a NUL byte"):
        prepare(config)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_first_fault_is_told_even_if_it_is_found_last(tmp_path):
    write(tmp_path / "in" / "a.txt.gz", gzipped(b"fine\n" * 400_000 + b"nul \0"))
    write(tmp_path / "in" / "b.txt", b"nul \0")
    inputs, output = str(tmp_path / "in"), str(tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.txt\.gz:400001: a NUL byte"):
        prepare(PrepareConfig([inputs], output, unit_bytes=1, workers=2))


def test_a_file_that_changes_is_noticed(tmp_path):
    source = write(tmp_path / "in" / "a.txt", "some text\n")

    def change(*how_far):
        write(source, "other text\n")

    with pytest.raises(DataError, match="a.txt: changed while it was read"):
        prepare(PrepareConfig([str(source)], str(tmp_path / "out"), vocab_size=64), change)
