"""Signals, and two runs in one directory."""

import os
import signal

from kill_harness import final_files, training_rows
from runs import pretrain_words

from spanbert_ext.training import checkpoint


def mtimes(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_signals_then_the_end_then_nothing_to_do(command, warm, corpus, clean):
    """Four processes in a row are stopped, each by another signal; a fifth reaches the end with
    an uninterrupted run's bits; a sixth finds nothing to do and touches nothing.
    """
    words = pretrain_words(corpus)
    run = command.directory / "run"
    stopped = 0
    for number in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        process = (command if number == "SIGTERM" else warm).start(*words)
        process.wait_for("tok/s")  # a step is done
        process.send(signal.Signals[number])
        code, output = process.finish()
        assert code == 75, output
        before, stopped = stopped, int(checkpoint.newest(run).name.removeprefix("step-"))
        assert before < stopped < 30
        message = f"spanbert: stopped by {number} after step {stopped} of 30; saved in run/"
        assert message in output
        assert "checkpoint(s) took " in output
        assert "Traceback" not in output
    code, output = warm.run(*words)
    assert code == 0, output
    assert f"continuing run/step-{stopped:07d}: step {stopped}, {8 * stopped} rows" in output
    assert final_files(run) == clean.files
    assert training_rows(run) == clean.rows
    before = mtimes(run)
    code, output = warm.run(*words)
    assert code == 0, output
    assert "run is finished: run/step-0000030 is its last checkpoint; nothing to do" in output
    assert mtimes(run) == before


def test_a_second_signal_stops_at_once(warm, corpus):
    """Both signals wait for the stopped process, so neither can be served alone before the other;
    the last commit stays whole.
    """
    process = warm.start(*pretrain_words(corpus, steps=100_000))
    process.wait_for("step 7/")
    process.send(signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)
    code, output = process.finish()
    assert code in (-signal.SIGTERM, -signal.SIGINT), output
    steps = checkpoint.list_steps(warm.directory / "run")
    assert steps
    assert all(step % 5 == 0 and not checkpoint.find_fault(path) for step, path in steps)


def test_two_runs_in_one_directory(warm, corpus):
    """The second is refused; when the first is killed, its lock is taken over."""
    words = pretrain_words(corpus, steps=100_000)
    first = warm.start(*words)
    first.wait_for("step 2/")
    code, output = warm.run(*words)
    assert code == 2
    assert f"run is in use by pid {first.pid} on {os.uname().nodename} since 2" in output
    first.send(signal.SIGKILL)
    assert first.finish()[0] == -signal.SIGKILL
    lock = warm.directory / "run" / ".lock"
    assert str(first.pid) in lock.read_text()
    third = warm.start(*words)
    third.wait_for("tok/s")
    assert f"pid {third.pid} " in lock.read_text()
    third.send(signal.SIGKILL)
    third.finish()


def test_the_same_seed_gives_the_same_bits(command, corpus, clean, monkeypatch):
    """Also where Python orders its sets in another way."""
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    code, output = command.run(*pretrain_words(corpus))
    assert code == 0, output
    assert final_files(command.directory / "run") == clean.files
    assert training_rows(command.directory / "run") == clean.rows
