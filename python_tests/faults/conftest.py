"""The installed command in real processes, in fresh directories."""

import os
import random
import subprocess
import sys

import pytest

WORDS = [
    "the",
    "small",
    "red",
    "house",
    "stood",
    "beside",
    "an",
    "old",
    "river",
    "where",
    "children",
    "played",
    "until",
    "evening",
    "came",
]


class Command:
    """`python -m spanbert_ext` in a directory of its own.

    Args:
        directory: where it runs.

    `program` may be replaced, and `environment` added to.
    """

    def __init__(self, directory):
        self.directory = directory
        self.program = [sys.executable, "-m", "spanbert_ext"]
        self.environment = {}

    def start(self, *words, fail_point=None, preexec=None):
        """The running process, output in one pipe."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment |= self.environment
        environment.pop("SPANBERT_EXT_FAIL_POINT", None)
        if fail_point:
            environment["SPANBERT_EXT_FAIL_POINT"] = fail_point
        return subprocess.Popen(
            [*self.program, *map(str, words)],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=preexec,
        )

    def run(self, *words, **how):
        """(exit code, output) of the finished process."""
        process = self.start(*words, **how)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


@pytest.fixture
def command(tmp_path):
    """A command in a fresh directory."""
    return Command(tmp_path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus of about 1600 pieces, prepared by the command itself."""
    home = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=9)) + "." for _ in range(180))
    lines = [s + ("\n" if i % 6 == 5 else "") for i, s in enumerate(sentences)]
    (home / "text.txt").write_text("\n".join(lines))
    words = ("prepare", "text.txt", "--output", "corpus", "--vocab_size", 120)
    code, output = Command(home).run(*words, "--validation_fraction", 0.1)
    assert code == 0, output
    return home / "corpus"


@pytest.fixture
def settings(corpus):
    """Words of a run of 30 small steps with dropout, micro-batches and a checkpoint every 5
    steps.
    """
    flat = {
        "corpus": corpus,
        "output": "run",
        "preset": "tiny",
        "steps": 30,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "model.layers": 2,
        "model.hidden": 32,
        "model.heads": 2,
        "model.feed_forward": 64,
        "optimizer.warmup_steps": 3,
        "optimizer.peak_lr": 1e-3,
        "batch.rows": 8,
        "batch.max_length": 32,
        "batch.micro_rows": 4,
        "checkpoint.every": 5,
        "checkpoint.keep": 2,
    }
    return ["pretrain", *(f"--{name}={value}" for name, value in flat.items())]
