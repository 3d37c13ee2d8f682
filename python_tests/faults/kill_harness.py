"""Kill a pre-training run at random moments until it is finished, again and again; count what was
lost.

    python python_tests/faults/kill_harness.py --kills 200

One run in five is killed at any time after its start, the others after training began; a
checkpoint follows every step, so that most kills fall into one. After every kill each checkpoint
that is visible must be whole, and the newest must be no older than the newest before the kill and
the newest that the run reported. A run that reaches its end is compared with an uninterrupted one:
model, moments and generators bit by bit, and the losses, learning rate and gradient norm of every
step, which depend on the rows and masks it saw.
"""

import argparse
import dataclasses
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

from runs import Command, prepare_corpus, pretrain_words

from spanbert_ext.training import checkpoint

# Seconds: about what a start takes, and about half of what a run trains for.
_STARTING, _TRAINING = 3.5, 0.6
_COMPARED = ("step", "mlm_loss", "sbo_loss", "lr", "grad_norm")


@dataclasses.dataclass
class Tally:
    """What was counted.

    Args:
        kills, inside_saves: processes killed, and those of them that left a half-done save.
        runs: that reached their end.
        lost, differing_bits: checkpoints; bits of the final files.
        rows, differing_rows: logged steps of finished runs.
    """

    kills: int = 0
    inside_saves: int = 0
    runs: int = 0
    lost: int = 0
    differing_bits: int = 0
    rows: int = 0
    differing_rows: int = 0

    def __str__(self):
        return (
            f"{self.kills} kills, {self.lost} lost checkpoints, {self.differing_bits} differing "
            f"bits ({self.inside_saves} kills inside a save; {self.runs} runs reached their end; "
            f"{self.differing_rows} of {self.rows} logged steps differ)"
        )


def final_files(run):
    """Name -> bytes of every file of tensors in the newest checkpoint."""
    _, path = checkpoint.list_steps(run)[-1]
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.safetensors"))}


def events(run, name):
    """The whole lines of metrics.jsonl that record an event."""
    path, found = run / "metrics.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line a kill cut short
        if record["event"] == name:
            found.append(record)
    return found


def training_rows(run):
    """What was logged of every step, but for times and memory."""
    return [{name: row[name] for name in _COMPARED} for row in events(run, "train")]


def differing_bits(found, expected):
    """Bits that differ between two dicts of name -> bytes; a missing byte counts eight."""
    total = 0
    for name in found.keys() | expected.keys():
        one, two = found.get(name, b""), expected.get(name, b"")
        short, long = sorted((one, two), key=len)
        padded = short + bytes(byte ^ 255 for byte in long[len(short) :])
        total += (int.from_bytes(padded, "big") ^ int.from_bytes(long, "big")).bit_count()
    return total


def kill_repeatedly(home, corpus, expected, kills, seed, say=lambda line: None):
    """Start, kill and continue until `kills` processes were killed and their run has ended.

    Args:
        home: empty directory for the runs.
        expected: `files` and `rows` of an uninterrupted run.
        seed: of the moments.

    Returns:
        Tally.
    """
    draw, tally = random.Random(seed), Tally()
    words = pretrain_words(corpus, checkpoint__every=1)
    while tally.kills < kills:
        directory = home / f"run-{tally.runs}"
        directory.mkdir()
        run, floor = directory / "run", 0
        while True:
            process = Command(directory).start(*words)
            if tally.kills < kills and floor < len(expected.rows):  # else nothing is at stake
                _kill_at_random(process, draw)
            code, output = process.finish()
            if code == 0:
                break
            assert code == -signal.SIGKILL, output
            tally.kills += 1
            floor = _count_lost(run, floor, output, tally)
            say(f"{tally.kills}/{kills}: killed after step {floor}")
        rows = training_rows(run)
        tally.runs += 1
        tally.rows += len(expected.rows)
        pairs = zip(rows, expected.rows, strict=False)
        tally.differing_rows += abs(len(rows) - len(expected.rows))
        tally.differing_rows += sum(row != other for row, other in pairs)
        tally.differing_bits += differing_bits(final_files(run), expected.files)
    return tally


def _kill_at_random(process, draw):
    if draw.random() < 0.2:
        process.sleep(draw.uniform(0, _STARTING))
    else:
        process.wait_for("the step: ")
        process.sleep(draw.uniform(0, _TRAINING))
    process.send(signal.SIGKILL)


def _count_lost(run, floor, output, tally):
    """Count what a kill has cost; the newest whole step.

    Args:
        floor: the newest whole step before the killed process, which it must have continued.
    """
    if "the step: " in output and floor:
        name = checkpoint.step_name(floor)
        assert f"continuing run/{name}: step {floor}, {8 * floor} rows" in output
    steps = checkpoint.list_steps(run)
    whole = [step for step, path in steps if not checkpoint.find_fault(path)]
    reported = [row["step"] for row in events(run, "checkpoint")]
    newest = max(whole, default=0)
    tally.lost += len(steps) - len(whole) + (newest < max([floor, *reported]))
    tally.inside_saves += run.is_dir() and any(run.glob(".t*-step-*"))
    return newest


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    corpus = prepare_corpus(home)
    clean = home / "clean"
    clean.mkdir()
    code, output = Command(clean).run(*pretrain_words(corpus))
    assert code == 0, output
    expected = argparse.Namespace(
        files=final_files(clean / "run"), rows=training_rows(clean / "run")
    )
    tally = kill_repeatedly(
        home,
        corpus,
        expected,
        arguments.kills,
        arguments.seed,
        lambda line: print(line, flush=True),
    )
    print(tally)
    return 0 if tally.lost == tally.differing_bits == tally.differing_rows == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
