"""A preparation that was interrupted goes on where it was, to the same bytes."""

import gzip
import json
import os
import signal
import time
from pathlib import Path

import pytest
from corpora import PROSE, bytes_of, write

from spanbert_ext.data import PrepareConfig, prepare
from spanbert_ext.errors import StorageError

OPTIONS = {"vocab_size": 300, "unit_bytes": 4000, "shard_tokens": 3000}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("resume") / "in" / "a.txt", PROSE)


@pytest.fixture(scope="module")
def clean(source):
    config = PrepareConfig([str(source)], str(source.parent.parent / "clean"), **OPTIONS)
    return bytes_of(prepare(config).path)


def children():
    """Pids of the processes that this one started."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in lists for pid in path.read_text().split()}


class Interrupt:
    """Progress that calls a function once, when a pass has got to a share of its bytes."""

    def __init__(self, doing, share, action):
        self.doing, self.share, self.action = doing, share, action
        self.first = {}

    def __call__(self, doing, done, total):
        self.first.setdefault(doing, done)
        if self.action and doing == self.doing and done >= self.share * total:
            action, self.action = self.action, None
            action()


def stop():
    raise KeyboardInterrupt


def interrupted(source, output, doing, share, **options):
    config = PrepareConfig([str(source)], str(output), **OPTIONS | {"workers": 1} | options)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, Interrupt(doing, share, stop))
    return output.parent / f".{output.name}.staging"


@pytest.mark.parametrize("doing", ["counting words", "encoding"])
def test_finished_units_are_kept(source, clean, tmp_path, doing):
    interrupted(source, tmp_path / "out", doing, 0.5)
    assert os.listdir(tmp_path) == [".out.staging"]
    watch = Interrupt(doing, 1, None)
    corpus = prepare(PrepareConfig([str(source)], str(tmp_path / "out"), **OPTIONS), watch)
    assert watch.first[doing] >= 0.5 * source.stat().st_size
    assert ("counting words" in watch.first) == (doing == "counting words")
    assert bytes_of(corpus.path) == clean
    assert os.listdir(tmp_path) == ["out"]


def test_damaged_parts_are_made_again(source, clean, tmp_path):
    staging = interrupted(source, tmp_path / "out", "encoding", 0.9)
    parts = sorted(staging.glob("parts/*.encode"))
    assert len(parts) > 4
    (parts[0] / "tokens").write_bytes(b"x" * 9)
    (parts[1] / "done").write_bytes(b"{")
    (parts[2] / "ends").unlink()
    write(parts[3] / "tokens.elsewhere-1.part", "half")
    write(staging / "corpus" / "tokens" / "00009.ds", "of an attempt killed later")
    watch = Interrupt("encoding", 1, None)
    corpus = prepare(PrepareConfig([str(source)], str(tmp_path / "out"), **OPTIONS), watch)
    assert 0 < watch.first["encoding"] < 0.9 * source.stat().st_size
    assert bytes_of(corpus.path) == clean


@pytest.mark.parametrize("change", [{"vocab_size": 200}, {"unit_bytes": 5000}])
def test_other_settings_start_anew(source, tmp_path, change):
    interrupted(source, tmp_path / "out", "encoding", 0.5)
    watch = Interrupt("encoding", 1, None)
    config = PrepareConfig([str(source)], str(tmp_path / "out"), **OPTIONS | change)
    prepare(config, watch)
    assert watch.first == {"counting words": 0, "encoding": 0}


def test_other_text_starts_anew(source, tmp_path):
    copy = write(tmp_path / "a.txt", PROSE)
    interrupted(copy, tmp_path / "out", "encoding", 0.5)
    write(copy, PROSE.replace("a", "b"))
    watch = Interrupt("encoding", 1, None)
    prepare(PrepareConfig([str(copy)], str(tmp_path / "out"), **OPTIONS), watch)
    assert watch.first == {"counting words": 0, "encoding": 0}


def test_what_is_left_of_a_finished_one_is_removed(source, tmp_path):
    config = PrepareConfig([str(source)], str(tmp_path / "out"), **OPTIONS)
    prepare(config)
    write(tmp_path / ".out.staging" / "parts" / "00000.encode" / "tokens", "left over")
    prepare(config)
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_worker_is_named_and_nothing_is_lost(source, clean, tmp_path):
    before = children()

    def kill():
        killed.append(sorted(children() - before)[1])
        os.kill(killed[0], signal.SIGKILL)

    killed = []
    config = PrepareConfig([str(source)], str(tmp_path / "out"), workers=2, **OPTIONS)
    with pytest.raises(StorageError) as caught:
        prepare(config, Interrupt("encoding", 0.4, kill))
    message = str(caught.value)
    assert f"(pid {killed[0]}) was killed by SIGKILL in unit " in message
    assert f"({source}, bytes " in message
    assert "fewer workers need less" in message
    assert f"stays in {tmp_path}/.out.staging" in message
    assert children() == before
    watch = Interrupt("encoding", 1, None)
    assert bytes_of(prepare(config, watch).path) == clean
    assert watch.first["encoding"] > 0


def test_workers_die_with_their_parent(source, clean, tmp_path):
    """In the middle of a unit: whoever starts again finds nobody writing."""
    write(tmp_path / "in" / "a.txt", PROSE)
    # Seconds of work that read next to nothing, so this worker is not told that nobody listens.
    write(tmp_path / "in" / "b.txt.gz", gzip.compress(b"a small red house\n" * 600_000))
    tokenizer = str(source.parent.parent / "clean" / "tokenizer")
    how = {"workers": 2, "unit_bytes": 1, "documents": "file", "tokenizer": tokenizer}
    config = PrepareConfig([str(tmp_path / "in")], str(tmp_path / "out"), **how)
    told, tell = os.pipe()

    def report_and_die():
        os.write(tell, json.dumps(sorted(children())).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            prepare(config, Interrupt("encoding", 0.01, report_and_die))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    workers = json.loads(os.read(told, 999))
    assert len(workers) == 2
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)
    parts = tmp_path / ".out.staging" / "parts"
    assert [path.parent.name for path in parts.glob("*.encode/done")] == ["00000.encode"]
