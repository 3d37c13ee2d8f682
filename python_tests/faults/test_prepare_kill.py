"""Kill `spanbert prepare` anywhere; the same command finishes with the bytes of a clean run.

SPANBERT_EXT_KILLS sets the number of kills.
"""

import json
import os
import random
import signal
import time

import pytest

KILLS = int(os.environ.get("SPANBERT_EXT_KILLS", "3"))
WORDS = ("prepare", "in", "--output", "out", "--vocab_size", 500, "--workers", 2)
SIZES = ("--unit_bytes", 30_000, "--shard_tokens", 50_000)


@pytest.fixture
def text(command):
    """Half a megabyte in text files of one line a document and one JSON file."""
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(2000)]
    folder = command.directory / "in"
    folder.mkdir()
    for number in range(12):
        lines = [" ".join(draw.choices(words, k=9)) + "." for _ in range(900)]
        (folder / f"{number}.txt").write_text("\n\n".join(lines))
    records = [json.dumps({"text": line}) for line in lines]
    (folder / "12.jsonl").write_text("\n".join(records))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def left(directory):
    """What a command left beside its own output on the console."""
    return sorted(name for name in os.listdir(directory) if not name.startswith("output-"))


def test_killed_at_random_moments(command, text):
    """Every attempt is killed at a random moment of a clean run's time, until the kills are used
    up; the corpus of one that was faster is compared and put aside."""
    home = command.directory
    began = time.monotonic()
    code, output = command.run(*WORDS, *SIZES)
    duration = time.monotonic() - began
    assert code == 0, output
    clean = contents(home / "out")
    assert len([name for name in clean if name.suffix == ".ds"]) > 2
    assert left(home) == ["in", "out"]
    draw = random.Random(7)
    again = (*WORDS[:3], "again", *WORDS[4:], *SIZES)
    resumed = killed = finished = 0
    while killed < KILLS:
        process = command.start(*again)
        process.sleep(draw.uniform(0.1, 1.0) * duration)
        process.send(signal.SIGKILL)
        code, output = process.finish()
        assert code in (0, -signal.SIGKILL), output
        killed += code != 0
        resumed += "are there already" in output
        if (home / "again").exists():
            assert contents(home / "again") == clean
            finished += 1
            os.rename(home / "again", home / f"done{finished}")
    code, output = command.run(*again)
    assert code == 0, output
    assert contents(home / "again") == clean
    kept = [f"done{number + 1}" for number in range(finished)]
    assert left(home) == sorted(["again", "in", "out", *kept])
    print(f"{killed} kills, {resumed} attempts went on from an earlier one, 0 differing bytes")


def test_verify_names_the_damaged_file(command, text):
    code, output = command.run(*WORDS, "--verify", "true")
    assert code == 0, output
    assert "every file has the digest that was written" in output
    file = command.directory / "out" / "tokens" / "00000.ds"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    code, output = command.run("prepare", "--verify", "true", "--output", "out")
    assert code == 65, output
    assert "spanbert: error: out/tokens/00000.ds: digest " in output
    file.write_bytes(content[:-2])
    code, output = command.run("prepare", "--verify", "true", "--output", "out")
    assert code == 65, output
    assert "out/tokens/00000.ds: " in output
    assert "it was truncated or replaced" in output
