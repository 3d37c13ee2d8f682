"""The command in real processes: started afresh, or forked from one that has imported everything.

A fresh start costs seconds of importing torch. Where the start is not what a test is about, a fork
of a process that has done it runs the same `main` for a tenth of that.
"""

import functools
import itertools
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver

WORDS = ["the", "small", "red", "house", "stood", "beside", "an", "old", "river", "evening"]
WORDS += ["where", "children", "played", "until", "came"]

# One run of 30 small steps with dropout, micro-batches and a checkpoint every 5 steps.
SETTINGS = {
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
    "checkpoint.retries": 0,
}

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}

_numbers = itertools.count(1)  # of output files


def pretrain_words(corpus, **changes):
    """The words of `spanbert pretrain` with SETTINGS; `changes` replaces some, dots as `__`."""
    flat = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return ["pretrain", f"--corpus={corpus}", *(f"--{name}={v}" for name, v in flat.items())]


def write_text(path, seed=0):
    """180 made-up sentences in paragraphs of six."""
    draw = random.Random(seed)
    sentences = (" ".join(draw.choices(WORDS, k=9)) + "." for _ in range(180))
    path.write_text("\n".join(s + ("\n" if i % 6 == 5 else "") for i, s in enumerate(sentences)))


def prepare_corpus(home):
    """A corpus of about 1600 pieces, prepared by the command; its directory."""
    write_text(home / "text.txt")
    words = ("prepare", "text.txt", "--output", "corpus", "--vocab_size", 120)
    code, output = Command(home).run(*words, "--validation_fraction", 0.1)
    assert code == 0, output
    return home / "corpus"


class Process:
    """A running command whose output goes to a file.

    Args:
        pid: its number.
        poll: gives the exit code, negative for a signal, or None while it runs.
        output: the file.
    """

    def __init__(self, pid, poll, output):
        self.pid, self._poll, self._output = pid, poll, output

    @property
    def output(self):
        """What it has said so far."""
        return self._output.read_text("utf-8")

    @property
    def running(self):
        """Whether it has not ended."""
        return self._poll() is None

    def wait_for(self, *texts):
        """Wait until it says one of `texts`."""
        while not any(text in self.output for text in texts):
            ended = self._poll() is not None
            if ended and not any(text in self.output for text in texts):
                raise AssertionError(f"it never said {texts}: {self.output}")
            time.sleep(0.01)

    def sleep(self, seconds):
        """Wait so long, or until it ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._poll() is None:
            time.sleep(0.001)

    def send(self, *numbers):
        """Signals, in this order, unless it has ended."""
        for number in numbers:
            if self._poll() is None:
                os.kill(self.pid, number)

    def finish(self, seconds=120):
        """(exit code, output) at its end; a process that takes longer than `seconds` is killed."""
        end = time.monotonic() + seconds
        while (code := self._poll()) is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        return code, self.output


class Command:
    """`spanbert` in a directory of its own.

    Args:
        directory: where it runs.
        warm: fork a process that has imported everything.
    """

    def __init__(self, directory, warm=False):
        self.directory, self.warm = directory, warm

    def start(self, *words, fail_point="", prefix=(), before=None):
        """The running `Process`.

        Args:
            fail_point: of the code, where the process kills itself.
            prefix: words of another program that starts the command; not for a warm one.
            before: called in the process before the command.
        """
        output = self.directory / f"output-{next(_numbers)}"
        output.touch()
        environment = _ENVIRONMENT | {"SPANBERT_EXT_FAIL_POINT": fail_point}
        words = list(map(str, words))
        if self.warm:
            return self._fork(words, output, environment, before)
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "spanbert_ext", *words],
                cwd=self.directory,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=before,
            )
        return Process(process.pid, process.poll, output)

    def _fork(self, words, output, environment, before):
        process = _warm_context().Process(
            target=_become, args=(words, self.directory, output, environment, before)
        )
        process.start()
        return Process(process.pid, lambda: process.exitcode, output)

    def run(self, *words, **how):
        """(exit code, output) of the finished process."""
        return self.start(*words, **how).finish()


@functools.cache
def _warm_context():
    """Forks of a process that has imported what a run needs, and what starts a test."""
    os.environ.update(_ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    names = ["training.pretrain", "cli", "arguments", "tasks.finetune", "tasks.predict"]
    names += ["tasks.classification.task", "tasks.classification.config", "tasks.heads"]
    context.set_forkserver_preload([*(f"spanbert_ext.{name}" for name in names), "pytest"])
    before = os.getcwd()
    os.chdir(tempfile.gettempdir())  # a source tree at hand would hide the installed package
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)
    return context


def _become(words, directory, output, environment, before):
    """Turn this process into the command."""
    with output.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)
    os.chdir(directory)
    os.environ.update(environment)
    if before is not None:
        before()
    from spanbert_ext.cli.command import main

    sys.exit(main(words))


def ranks(directory, world, *words):
    """(exit codes, outputs) of a command's processes, forked warm, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Command(directory, warm=True)
    processes = [
        command.start(*words, before=functools.partial(_join, rank, world, port))
        for rank in range(world)
    ]
    ended = [process.finish() for process in processes]
    return [code for code, _ in ended], [output for _, output in ended]


def _join(rank, world, port):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"


def limit_file_size(size):
    """Make writes beyond `size` bytes of a file fail with EFBIG, as a quota would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
