"""Kill `spanbert finetune` and `spanbert predict` anywhere; the same command finishes with the
bytes of a run that nobody killed.

SPANBERT_EXT_KILLS sets the number of kills, SPANBERT_EXT_KILL_SEED the moments.
"""

import json
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from kill_harness import differing_bits, final_files
from runs import Command
from toy_tasks import BAD, GOOD, PLAIN, sentiment_words, toy_model

from spanbert_ext.training import checkpoint

KILLS = int(os.environ.get("SPANBERT_EXT_KILLS", "3"))
SEED = int(os.environ.get("SPANBERT_EXT_KILL_SEED", "3"))
# Points of a commit of best/ in their order; up to the rename the old one is there.
POINTS = ["after_sync_model.safetensors", "after_manifest", "before_rename", "between_renames"]
POINTS += ["after_rename", "after_commit"]


def finetune_words(home, **changes):
    """40 steps, evaluated after every other one, with a checkpoint after every fourth."""
    settings = {"max_steps": 40, "evals_per_epoch": 10, "checkpoint.keep": 2} | changes
    return sentiment_words(home / "bert", home, **settings)


def outcome(run):
    """(name -> bytes of what a finished run is for, best numbers)"""
    files = {f"last/{name}": data for name, data in final_files(run).items()}
    files |= {f"best/{path.name}": path.read_bytes() for path in (run / "best").iterdir()}
    return files, json.loads((run / "metrics.json").read_text())["best"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An uninterrupted fine-tuning: home, with the model and the data; files, best, seconds."""
    home = tmp_path_factory.mktemp("clean")
    toy_model(home / "bert")
    Command(home, warm=True).run("--version")  # the process that is forked has to start once
    began = time.monotonic()
    code, output = Command(home, warm=True).run(*finetune_words(home))
    seconds = time.monotonic() - began
    assert code == 0, output
    files, best = outcome(home / "run")
    assert len(files) > 8 and best["step"] > 2
    return SimpleNamespace(home=home, files=files, best=best, seconds=seconds)


def best_of(run):
    """Bytes of the best model that is there, whatever it is called after a kill; None: nowhere."""
    assert not (run / "best").exists() or not checkpoint.find_fault(run / "best")
    for path in [run / "best", *run.glob(".trash-best-*"), *run.glob(".tmp-best")]:
        if path.exists() and not checkpoint.find_fault(path):
            return (path / "model.safetensors").read_bytes()
    return None


def test_finetune_killed_at_random_moments(clean, tmp_path):
    draw, words = random.Random(SEED), finetune_words(clean.home)
    kills = runs = 0
    while kills < KILLS or not runs:
        home = tmp_path / str(runs)
        home.mkdir()
        run, had_best, code = home / "run", False, -signal.SIGKILL
        while code:
            process = Command(home, warm=True).start(*words)
            if kills < KILLS:
                process.sleep(draw.uniform(0, clean.seconds))
                process.send(signal.SIGKILL)
            code, output = process.finish()
            assert code in (0, -signal.SIGKILL), output
            kills += code != 0
            assert not had_best or best_of(run) is not None
            had_best = run.exists() and best_of(run) is not None
        files, best = outcome(run)
        assert differing_bits(files, clean.files) == 0
        assert best == clean.best
        assert sorted(p.name for p in run.iterdir() if p.name[0] == ".") == [".lock"]
        runs += 1
    print(f"{kills} kills, {runs} runs reached their end, 0 differing bits")


@pytest.mark.parametrize("replacing", [False, True])
def test_finetune_killed_inside_a_commit_of_the_best_model(clean, tmp_path, replacing):
    """At every point: before the rename the old one is there or comes back, behind it the new."""
    warm, run = Command(tmp_path, warm=True), tmp_path / "run"
    words = finetune_words(clean.home, checkpoint__every=1000)  # no save comes before
    if replacing:
        code, output = warm.run(*words, fail_point="after_commit")
        assert code == -signal.SIGKILL, output
    there = replacing
    for point in POINTS:
        if point == "between_renames" and not replacing:
            continue
        code, output = warm.run(*words, fail_point=point)
        assert code == -signal.SIGKILL, (point, output)
        there = there or point == "after_rename"
        assert (run / "best").is_dir() == (there and point != "between_renames"), point
        assert (best_of(run) is not None) == (there or point in POINTS[1:3]), point
        if point == "between_renames":  # the next start brings it back, before it trains
            code, output = warm.run(*words, fail_point=POINTS[0])
            assert code == -signal.SIGKILL, output
            assert not checkpoint.find_fault(run / "best")
    code, output = warm.run(*words)
    assert code == 0, output
    files, best = outcome(run)
    assert differing_bits(files, clean.files) == 0 and best == clean.best


def test_finetune_killed_before_its_numbers_are_written(clean, tmp_path):
    """The last checkpoint is there, metrics.json is not: the next start writes it."""
    warm, words = Command(tmp_path, warm=True), finetune_words(clean.home, checkpoint__every=1000)
    code, output = warm.run(*words, fail_point="after_trash")
    assert code == -signal.SIGKILL, output
    assert checkpoint.newest(tmp_path / "run").name == "step-0000040"
    code, output = warm.run(*words)
    assert code == 0 and "step 40/40" not in output, output
    assert outcome(tmp_path / "run")[1] == clean.best
    code, output = warm.run(*words)
    assert code == 0 and "nothing to do" in output, output


@pytest.fixture(scope="module")
def predicted(clean):
    """A whole prediction of some 3000 records: words without the output, lines, page, seconds."""
    draw = random.Random(SEED)
    with (clean.home / "in.jsonl").open("w") as file:
        for number in range(3000):
            text = " ".join(draw.choices([*GOOD, *BAD, *PLAIN, "<b>", "\u00e9"], k=9))
            file.write(json.dumps({"id": f"r{number}", "sentence": text}) + "\n")
    words = ["predict", "sst-2", clean.home / "in.jsonl", "out.jsonl"]
    words += [f"--model={clean.home}/run", "--precision=fp32", "--device=cpu"]
    home = clean.home / "predicted"
    home.mkdir()
    began = time.monotonic()
    code, output = Command(home, warm=True).run(*words, "--html=out.html")
    assert code == 0, output
    found = SimpleNamespace(words=words, seconds=time.monotonic() - began)
    found.lines, found.page = (home / "out.jsonl").read_bytes(), (home / "out.html").read_bytes()
    rows = [json.loads(line) for line in found.lines.splitlines()]
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(3000)]
    assert found.lines.endswith(b"\n") and found.page.endswith(b"</html>\n")
    return found


def check_prediction(home, predicted, page):
    """The files of a finished prediction, and nothing else."""
    assert (home / "out.jsonl").read_bytes() == predicted.lines
    names = {".out.jsonl.state", "out.jsonl"}
    if page:
        assert (home / "out.html").read_bytes() == predicted.page
        names.add("out.html")
    assert {p.name for p in home.iterdir() if not p.name.startswith("output-")} == names


def wait_for_a_chunk(process, part):
    """Until the process has written one more than there was, or ended."""
    size = part.stat().st_size if part.exists() else 0
    while process.running and not (part.exists() and part.stat().st_size > size):
        time.sleep(0.001)


@pytest.mark.parametrize("page", [False, True])
def test_predict_killed_at_random_moments(predicted, tmp_path, page):
    draw = random.Random(SEED + page)
    words = [*predicted.words, *["--html=out.html"] * page]
    kills = runs = resumed = 0
    while kills < KILLS or not runs:
        home, code = tmp_path / str(runs), -signal.SIGKILL
        home.mkdir()
        while code:
            process = Command(home, warm=True).start(*words)
            if kills < KILLS:
                moment = draw.uniform(0, predicted.seconds)
                if draw.random() > 0.2:
                    wait_for_a_chunk(process, home / "out.jsonl.part")
                    moment /= 4  # most of the time was the start
                process.sleep(moment)
                process.send(signal.SIGKILL)
            code, output = process.finish()
            assert code in (0, -signal.SIGKILL), output
            kills += code != 0
            resumed += "of them by an earlier command" in output
            if (home / "out.jsonl").exists():  # it appears whole
                assert (home / "out.jsonl").read_bytes() == predicted.lines
        if "nothing to do" in output:  # killed on its last steps: they are done now
            resumed += 1
        check_prediction(home, predicted, page)
        runs += 1
    print(f"{kills} kills, {runs} files finished ({resumed} resumed), 0 differing bytes")


@pytest.mark.parametrize("page", [False, True])
def test_predict_killed_at_its_points(predicted, tmp_path, page):
    """After every chunk it goes on behind it; at the points of the end too."""
    warm, words = Command(tmp_path, warm=True), [*predicted.words, *["--html=out.html"] * page]
    part = tmp_path / "out.jsonl.part"
    for chunk in (1, 2, 3):
        code, output = warm.run(*words, fail_point="after_chunk")
        assert code == -signal.SIGKILL, output
        assert part.read_bytes() == b"".join(predicted.lines.splitlines(True)[: 256 * chunk])
    for point in ["between_files", "after_page"] * page + ["after_output"]:
        code, output = warm.run(*words, fail_point=point)
        assert code == -signal.SIGKILL, (point, output)
        assert (tmp_path / "out.jsonl").exists() == (point == "after_output")
    code, output = warm.run(*words)
    assert code == 0 and "is finished (3000 lines); nothing to do" in output, output
    check_prediction(tmp_path, predicted, page)


def test_predict_keeps_every_long_record(predicted, clean, tmp_path):
    """Few long texts are chunks of their own: each is kept as soon as it is there."""
    draw, warm = random.Random(SEED), Command(tmp_path, warm=True)
    texts = [" ".join(draw.choices([*GOOD, *BAD, *PLAIN], k=k)) for k in (900, 3, 900, 4, 5, 900)]
    source = "".join(json.dumps({"sentence": text}) + "\n" for text in texts)
    (tmp_path / "long.jsonl").write_text(source)
    words = ["predict", "sst-2", "long.jsonl", "out.jsonl", f"--model={clean.home}/run"]
    words += ["--precision=fp32", "--device=cpu", "--batch_tokens=512"]
    whole = [*words[:3], "whole.jsonl", *words[4:]]
    assert warm.run(*whole)[0] == 0
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(True)
    assert len(lines) == 6
    for kept in (1, 2, 3, 5):  # records; the fourth and the fifth are short: one chunk
        code, output = warm.run(*words, fail_point="after_chunk")
        assert code == -signal.SIGKILL, output
        assert (tmp_path / "out.jsonl.part").read_bytes() == b"".join(lines[:kept])
    code, output = warm.run(*words)
    assert code == 0 and "6 lines, 5 of them by an earlier command" in output, output
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines)


def test_one_output_has_one_writer(predicted, tmp_path):
    warm = Command(tmp_path, warm=True)
    process = warm.start(*predicted.words)
    while not (tmp_path / ".out.jsonl.state").exists():
        process.sleep(0.01)
        assert process.running, process.output
    process.send(signal.SIGSTOP)
    code, output = warm.run(*predicted.words)
    assert code == 2 and "out.jsonl: another process is writing it" in output, output
    process.send(signal.SIGCONT)
    assert process.finish()[0] == 0
    check_prediction(tmp_path, predicted, page=False)
