"""Kill the command anywhere; the next start continues from a whole checkpoint to the same
weights.
"""

import os
import random
import resource
import signal
import time

import pytest

from spanbert_ext.training import checkpoint


@pytest.fixture(scope="module")
def clean_digests(tmp_path_factory):
    """Filled once by `clean`: digests of an uninterrupted run."""
    return {}


@pytest.fixture
def clean(clean_digests, tmp_path_factory, settings, command):
    """Digests of the tensors of an uninterrupted run's last checkpoint."""
    if not clean_digests:
        home = tmp_path_factory.mktemp("clean")
        code, output = type(command)(home).run(*settings)
        assert code == 0, output
        clean_digests.update(last_digests(home / "run"))
    return clean_digests


def last_digests(run):
    path = run / "step-0000030"
    return {p.name: checkpoint.digest_file(p) for p in path.glob("*.safetensors")}


def continue_to_the_end(command, settings):
    code, output = command.run(*settings)
    assert code == 0, output
    names = sorted(os.listdir(command.directory / "run"))
    assert names == [".lock", "config.yaml", "metrics.jsonl", "step-0000025", "step-0000030"]
    return last_digests(command.directory / "run"), output


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended before it said {text!r}")


# Point of a save -> newest whole step afterwards. Each process continues what the one before it
# left.
KILLS = [
    ("after_model", None),
    ("after_optimizer", None),
    ("after_sync_model.safetensors", None),
    ("before_manifest", None),
    ("after_manifest", None),
    ("before_rename", None),
    ("after_rename", 5),
    ("after_trash", 10),
    ("before_trash", 15),
    ("before_rename", 15),
]


def test_killed_inside_saves(command, settings, clean):
    """Ten processes in a row die inside a save, one at each point; the previous or the new
    checkpoint is whole.
    """
    run = command.directory / "run"
    before = None
    for point, survivor in KILLS:
        code, output = command.run(*settings, fail_point=point)
        assert code == -signal.SIGKILL, (point, output)
        assert checkpoint.newest(run) == (survivor and run / checkpoint.step_name(survivor)), point
        if before:
            assert (
                f"continuing run/{checkpoint.step_name(before)}: step {before}, {8 * before} rows"
                in output
            )
        before = survivor
    digests, _ = continue_to_the_end(command, settings)
    assert digests == clean


def test_killed_between_checkpoints(command, settings, clean):
    process = command.start(*settings)
    wait_for_line(process, "step 13/30")
    process.kill()
    process.communicate()
    digests, output = continue_to_the_end(command, settings)
    assert "continuing run/step-0000010" in output
    assert digests == clean
    logged = (command.directory / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in logged if '"train"' in line]
    assert len(steps) == 30


def test_killed_at_random_moments(command, settings, clean):
    """Three kills of one run; the seed is in the failure message through the delays."""
    draw = random.Random(11)
    delays = []
    for _ in range(3):
        process = command.start(*settings)
        delays.append(draw.uniform(2.0, 6.0))
        time.sleep(delays[-1])
        process.kill()
        process.communicate()
    digests, _ = continue_to_the_end(command, settings)
    assert digests == clean, delays


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(command, settings, clean, number):
    process = command.start(*settings)
    wait_for_line(process, "step 7/30")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"spanbert: error: stopped by {number.name} after step" in output
    assert "Traceback" not in output
    digests, _ = continue_to_the_end(command, settings)
    assert digests == clean


def test_a_second_signal_stops_at_once(command, settings):
    """Both signals wait for the stopped process, so neither can be served alone before the
    other.
    """
    process = command.start(*settings, "--steps=100000", "--checkpoint.every=100000")
    wait_for_line(process, "step 3/")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGINT)
    assert not checkpoint.list_steps(command.directory / "run")


def test_two_runs_in_one_directory(command, settings):
    first = command.start(*settings, "--steps=100000")
    wait_for_line(first, "step 2/")
    code, output = command.run(*settings, "--steps=100000")
    first.kill()
    first.communicate()
    assert code == 2
    assert f"run is in use by pid {first.pid} on " in output


def test_a_damaged_newest_checkpoint(command, settings, clean):
    code, output = command.run(*settings)
    assert code == 0, output
    damaged = command.directory / "run" / "step-0000030" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    before = checkpoint.digest_file(damaged)
    damaged.write_bytes(content)
    digests, output = continue_to_the_end(command, settings)
    assert digests == clean
    assert "passing over checkpoint run/step-0000030: model.safetensors has digest" in output
    assert before in output


def test_a_full_disk(command, settings):
    """RLIMIT_FSIZE makes the write of the second file fail; the message names the place, nothing
    partial stays.
    """

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, output = command.run(*settings, preexec=limit)
    assert code == 74, output
    assert "spanbert: error: the checkpoint of step 5 could not be written in run: " in output
    assert "make room" in output
    assert "Traceback" not in output
    names = os.listdir(command.directory / "run")
    assert not [n for n in names if n.startswith((".tmp", ".trash", "step"))]


def test_an_output_that_cannot_be_made(command, settings):
    (command.directory / "run").write_text("a file")
    code, output = command.run(*settings)
    assert code == 74, output
    assert "spanbert: error: cannot make the output directory run" in output
