"""What `python -m benchmarks.emulated` makes of the emulator's counters."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from benchmarks import emulated, records

# One launch of two blocks of 64 threads that copies 128 floats from 4 bytes behind a sector's begin
# by way of shared memory, where its reads have conflicts of two ways.
TEXT = (
    "copy\tkernel\t1\t2\t128\t4\t18\t16\t17\t16\n"
    "copy\tread\t4\t512\t20\t16\t0\t0\t0\t0\n"
    "copy\twritten\t4\t512\t16\t16\t0\t0\t0\t0\n"
    "copy\tshared_read\t4\t512\t0\t0\t4\t8\t2\t0\n"
    "copy\tshared_written\t4\t512\t0\t0\t4\t4\t1\t0\n"
)
COPY = SimpleNamespace(
    name="copying", dtype="fp32", shapes={"rows": 128}, least={"copy": 1024}, whole=960
)


@pytest.fixture
def row():
    return emulated.row_of(COPY, "copy", emulated.parse(TEXT)["copy"])


def test_row(row):
    assert asdict(row) == {
        "operation": "copying", "kernel": "copy", "dtype": "fp32", "shapes": "rows=128",
        "launches": 1, "blocks": 2, "gpu_threads": 128, "barriers": 4, "whole": 960,
        "least": 1024, "requested": 1024, "requests": 8,
        "by_request": 36 * 32, "ideal": 32 * 32, "by_block": 34 * 32, "by_launch": 33 * 32,
        "turns": 8, "degrees": 12, "worst": 2,
    }  # fmt: skip
    # Of 32 sectors at least, 36, 34 and 33 are asked for; 4.5 a request where 4 would do.
    assert row.cells() == (
        "copying", "copy", "fp32", "1.0 kB", "1.12", "1.06", "1.03", "4.5", "4.0", "2", "1.50", "2",
    )  # fmt: skip


class Places:
    """Counters of which only the places are asked."""

    def __init__(self, *places):
        self._places = places

    def places(self):
        for kernel, kind, *values in self._places:
            yield kernel, kind, dict(zip(emulated.TALLY, values, strict=True))

    def line(self, place):
        return f"a.cu:{place}"


def test_misses(row):
    counters = Places(
        ("copy", "read", 4, 512, 20, 16, 0, 0, 0, 1),  # a quarter more: 128 bytes
        ("copy", "written", 4, 512, 18, 16, 0, 0, 0, 2),  # an eighth: within the goal
        ("copy", "shared_read", 4, 512, 0, 0, 4, 8, 2, 3),  # two ways are within it, too
        ("copy", "shared_read", 2, 512, 0, 0, 2, 8, 4, 4),
        ("copy", "shared_read", 2, 512, 0, 0, 2, 2, 1, 4),  # the same line, unrolled
        ("other", "read", 4, 512, 99, 16, 0, 0, 0, 5),
    )
    found = {place.line: place.what for place in emulated.misses(row, counters)}
    assert found == {
        "a.cu:1": "read: 5.0 sectors a request for 4.0, 0.12 of the least more",
        "a.cu:4": "shared_read: 4 ways at worst, 2.50 on average",
    }


def test_table(row, tmp_path):
    path = tmp_path / "emulated.csv"
    about = {"date": "2026-01-02T03:04:05Z", "commit": "abc", "command": "count"}
    for _ in range(2):
        emulated.record(path, [row], about)
    lines = records.read(path)
    assert [line["by_launch"] for line in lines] == ["1056", "1056"]
    named = ("op", "variant", "dtype", "device", "commit", "median_us", "least")
    assert [lines[0][name] for name in named] == [
        "copying", "copy", "fp32", "emulated", "abc", "", "1024",
    ]  # fmt: skip
    place = emulated.Place("copy", "fp32", "a.cu:1", "too much")
    lines = emulated.markdown([row], [place], about).splitlines()
    assert "| copying | copy | fp32 | 1.0 kB |" in "\n".join(lines)
    assert lines[-1] == "| copy | fp32 | a.cu:1 | too much |"
    assert "| copying | fp32 | 1.0 kB | 1.10 |" in lines  # 33 sectors for 960 bytes
    assert {line.count("|") for line in lines if "| copy |" in line} == {
        5,
        len(emulated.HEADER) + 1,
    }
    assert "1 rows: 1 move at most 1.15 times the least" in emulated.summary([row])


def test_tables_beside_measurements_are_no_measurements(row, tmp_path):
    """`python -m benchmarks.targets` and `.plot` read every file of a folder."""
    emulated.record(tmp_path / "emulated.csv", [row], {"date": "2026-01-02"})
    (tmp_path / "resources.csv").write_text("kernel,registers\ncopy,8\n")
    (tmp_path / "empty.csv").write_text("")
    assert [line["variant"] for line in records.read_measured(tmp_path)] == ["copy"]
