"""Storage: the order of flushes, a full disk, a directory that goes, file modes."""

import functools
import os
import re
import shutil
import signal
import subprocess

import pytest
from kill_harness import final_files, training_rows
from runs import Command, limit_file_size, pretrain_words

from spanbert_ext.training import checkpoint


def calls_of(trace):
    """("sync", path) and ("rename", from, to) of a trace by strace -y, in their order."""
    calls = []
    for line in trace.read_text().splitlines():
        if match := re.search(r"fsync\(\d+<(.*)>\) += 0", line):
            calls.append(("sync", os.path.basename(match[1])))
        elif match := re.search(r'rename\w*\(.*?"(.*?)".*?"(.*?)".*\) += 0', line):
            calls.append(("rename", *map(os.path.basename, match.groups())))
    return calls


def test_order_of_system_calls(command, corpus):
    """Against a power loss: every file is flushed before the directory, that before the rename,
    that before the parent's flush; only then is an old checkpoint moved away.
    """
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-esignal=none", "-etrace=fsync,/^rename"]
    if shutil.which("strace") is None or subprocess.run([*strace, "true"], check=False).returncode:
        pytest.skip("strace is not installed or may not trace")
    words = pretrain_words(corpus, steps=10, checkpoint__keep=1)
    code, output = command.run(*words, prefix=[*strace, "-o", "trace"])
    assert code == 0, output
    calls = calls_of(command.directory / "trace")
    first = calls.index(("rename", ".tmp-step-0000005", "step-0000005"))
    files = {path.name for path in (command.directory / "run" / "step-0000010").iterdir()}
    flushed = calls[first - len(files) - 1 : first]
    assert {name for _, name in flushed[:-2]} == files - {checkpoint.MANIFEST}
    assert flushed[-2:] == [("sync", checkpoint.MANIFEST), ("sync", ".tmp-step-0000005")]
    assert calls[first + 1] == ("sync", "run")
    second = calls.index(("rename", ".tmp-step-0000010", "step-0000010"))
    assert calls[second + 1] == ("sync", "run")
    assert calls[second + 2][:2] == ("rename", "step-0000005")
    settings = calls.index(("rename", ".tmp-config.yaml", "config.yaml"))
    assert calls[settings - 1 : settings + 2 : 2] == [("sync", ".tmp-config.yaml"), ("sync", "run")]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB; the test is skipped where it may not be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk, leave):
    """Write a file that leaves `leave` bytes free."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - leave))


def check_kept(run, *steps):
    """Exactly these checkpoints are there, whole, and nothing half-done."""
    assert [step for step, _ in checkpoint.list_steps(run)] == list(steps)
    assert not any(checkpoint.find_fault(path) for _, path in checkpoint.list_steps(run))
    assert not list(run.glob(".t*"))


def test_a_full_disk(small_disk, corpus, clean):
    """A disk with room for one checkpoint of 0.65 MB, then for two, then for more while the run
    waits for it; the bits are an uninterrupted run's.
    """
    warm, run = Command(small_disk, warm=True), small_disk / "run"
    fill(small_disk, leave=1_000_000)
    code, output = warm.run(*pretrain_words(corpus))
    assert code == 74, output
    assert re.search(r"run has [01]\.\d MB free, two checkpoints need 1\.\d MB; make room", output)
    (small_disk / "filler").unlink()

    fill(small_disk, leave=1_500_000)
    impatient = {"checkpoint__retries": 2, "checkpoint__retry_seconds": 0.05}
    code, output = warm.run(*pretrain_words(corpus, **impatient))
    assert code == 74, output
    fault = "the checkpoint of step 15 could not be written in run: "
    reason = r".*No space left.*; it needs 0\.6 MB, 0\.\d MB are free there"
    assert re.findall(fault + reason + "; trying again in (.*) s", output) == ["0.05", "0.1"]
    assert re.search(f"error: {fault}{reason}. Earlier checkpoints are untouched; make", output)
    assert "Traceback" not in output
    check_kept(run, 5, 10)

    patient = {"checkpoint__retries": 8, "checkpoint__retry_seconds": 0.1}
    process = warm.start(*pretrain_words(corpus, **patient, checkpoint__space_check="false"))
    process.wait_for("trying again in 0.2 s")
    check_kept(run, 5, 10)
    (small_disk / "filler").unlink()
    code, output = process.finish()
    assert code == 0, output
    check_kept(run, 25, 30)
    assert final_files(run) == clean.files
    assert training_rows(run) == clean.rows


def test_a_read_only_disk(small_disk, corpus):
    """A finished run is read, one to be continued or begun is refused."""
    assert Command(small_disk, warm=True).run(*pretrain_words(corpus, steps=5))[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    elsewhere = Command(small_disk.parent, warm=True)
    for output, steps, code, message in (
        ("disk/run", 5, 0, "nothing to do"),
        ("disk/run", 30, 74, "error: cannot write in disk/run: Read-only file system"),
        ("disk/new", 5, 74, "error: cannot make the output directory disk/new: Read-only file"),
    ):
        found, said = elsewhere.run(*pretrain_words(corpus, output=output, steps=steps))
        assert found == code, said
        assert message in said


def test_a_quota(warm, corpus):
    """Where nothing can be mounted: a limit on the size of files stops the first save."""
    code, output = warm.run(
        *pretrain_words(corpus), before=functools.partial(limit_file_size, 100_000)
    )
    assert code == 74, output
    assert "spanbert: error: the checkpoint of step 5 could not be written in run: " in output
    assert "; it needs 0.6 MB, " in output
    assert "Traceback" not in output
    names = os.listdir(warm.directory / "run")
    assert not [n for n in names if n.startswith((".tmp", ".trash", "step"))]


def test_a_directory_that_goes(warm, corpus):
    process = warm.start(*pretrain_words(corpus, steps=100_000, log_every=100_000))
    while not checkpoint.list_steps(warm.directory / "run"):
        process.sleep(0.01)
    process.send(signal.SIGSTOP)
    shutil.rmtree(warm.directory / "run")
    process.send(signal.SIGCONT)
    code, output = process.finish()
    assert code == 74, output
    assert re.search(
        r"error: (the checkpoint of step \d+ could not be written in run: |cannot write run/).*"
        "No such file or directory",
        output,
    )
    assert "Traceback" not in output


def test_an_output_that_cannot_be_made(warm, corpus):
    (warm.directory / "run").write_text("a file")
    code, output = warm.run(*pretrain_words(corpus))
    assert code == 74, output
    assert "spanbert: error: cannot make the output directory run" in output


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_file_modes_follow_the_umask(warm, corpus, mask):
    """Of a run and of its export; safetensors alone would make its files private."""
    umask = functools.partial(os.umask, mask)
    words = pretrain_words(corpus, steps=5)
    code, output = warm.run(*words, before=umask)
    assert code == 0, output
    code, output = warm.run("export", "run", "bert", before=umask)
    assert code == 0, output
    for folder in ("run", "bert"):
        paths = [warm.directory / folder, *(warm.directory / folder).rglob("*")]
        assert len(paths) > 3
        for path in paths:
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == wanted, path
