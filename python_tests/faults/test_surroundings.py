"""The installed command where things are odd: no HOME, no locale, no network, strange paths, a
reader that leaves, too little memory.
"""

import functools
import json
import os
import resource
import subprocess
import sys

import pytest

# Notes every attempt to reach another machine, and refuses it.
NO_NETWORK = """
import os, socket

def refuse(self, address, *rest):
    if self.family == getattr(socket, "AF_UNIX", None):
        return connect(self, address, *rest)
    with open(os.environ["CONTACTS"], "a") as file:
        file.write(f"{address}\\n")
    raise OSError("no network here")

def refuse_name(host, *rest, **options):
    with open(os.environ["CONTACTS"], "a") as file:
        file.write(f"{host}\\n")
    raise socket.gaierror("no network here")

connect = socket.socket.connect
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = refuse_name
"""


@pytest.fixture
def odd_place(tmp_path):
    """(directory, environment): a path with spaces and Unicode, an ASCII locale, no HOME, a token
    of the hub and no network.
    """
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(NO_NETWORK)
    place = tmp_path / "a directory with spaces, größer 模型"
    place.mkdir()
    path = os.pathsep.join([str(blocked), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "CONTACTS": str(tmp_path / "contacts"),
        "HF_TOKEN": "hf_no_such_token",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
    }
    return place, environment


def call(place, environment, *words):
    process = subprocess.run(
        [sys.executable, "-m", "spanbert_ext", *map(str, words)],
        cwd=place,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.decode("ascii")


def test_the_block_blocks(odd_place, tmp_path):
    place, environment = odd_place
    code = "import urllib.request; urllib.request.urlopen('http://localhost:9')"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, check=False
    )
    assert process.returncode != 0
    assert (tmp_path / "contacts").read_text() == "localhost\n"


def test_a_whole_run_in_an_odd_place_contacts_nobody(odd_place, settings, tmp_path):
    place, environment = odd_place
    words = [w for w in settings if not w.startswith(("--corpus", "--output", "--steps"))]
    text = "Ein größeres Haus stand am Fluss. 模型 spielten dort.\n" * 5 + "\n"
    (place / "der Text.txt").write_text(text * 40, "utf-8")
    call(place, environment, "prepare", "der Text.txt", "--output", "das Korpus",
         "--vocab_size", 120)  # fmt: skip
    output = call(place, environment, *words, "--corpus", "das Korpus", "--output", "ein Lauf 模型",
                  "--steps", 4, "--report_to", "tensorboard")  # fmt: skip
    assert "finished: ein Lauf \\u6a21\\u578b/step-0000004" in output
    run = place / "ein Lauf 模型"
    assert any((run / "tensorboard").iterdir())
    call(place, environment, "export", run, "exportiert größer")
    assert (place / "exportiert größer" / "model.safetensors").is_file()
    assert not (tmp_path / "contacts").exists()


def test_a_run_outlives_the_reader_of_its_output(tmp_path, settings):
    process = subprocess.Popen(
        [sys.executable, "-m", "spanbert_ext", *settings, "--steps=60"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = ""
    while "step 2/60" not in seen:
        seen += process.stdout.readline()
    assert "step/s" not in seen  # no bar where there is no terminal
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [row for row in map(json.loads, rows) if row["event"] == "train"]
    assert [row["step"] for row in trained] == list(range(1, 61))


def test_too_little_memory_ends_in_one_line(warm, settings):
    limit = 1 << 36  # far below what is asked for, so that nothing of it is ever touched
    before = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))
    code, output = warm.run(*settings, "--model.feed_forward=4000000000", before=before)
    assert code == 71, output
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert line.startswith("spanbert: error: memory ran out (512.00 GB more were asked for)")
    assert "`--batch.micro_rows 2` takes less" in line
    assert "Traceback" not in output
