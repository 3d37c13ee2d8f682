"""Several processes: the same training, agreed stops, lost and stopped ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spoiled_run import spoil

from spanbert_ext.training import checkpoint

ENDLESS = ("--steps=100000", "--checkpoint.every=10", "--parallel.timeout=60")


def children_of(process):
    """Process ids of the ranks, in order."""
    path = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(path) as file:
        return [int(word) for word in file.read().split()]


def wait_for_step(process, step):
    """Wait for a log line of at least this step."""
    while not any(
        int(n) >= step for n in re.findall(r"^step (\d+)/\d+  mlm", process.output, re.M)
    ):
        assert process.running, process.output
        time.sleep(0.05)


def lines_of(run, event, name="metrics.jsonl"):
    rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [row for row in rows if event is None or row["event"] == event]


def trained(command, settings, output, *words):
    code, said = command.run(*settings, f"--output={output}", *words)
    assert code == 0, said
    return command.directory / output, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory, request):
    """Filled once: a run of one process, without dropout."""
    return {}


@pytest.mark.parametrize(
    "words",
    [
        ("--nproc=2", "--batch.micro_rows=1", "--parallel.strategy=fsdp"),
        ("--nproc=4", "--batch.micro_rows=2"),
    ],
)
def test_any_number_of_processes_trains_alike(command, warm, settings, alone, words):
    """Rows, masks, losses and gradient norms of 30 steps, within 1e-5 of one process's."""
    plain = [*settings, "--model.dropout=0"]
    if not alone:
        run, _ = trained(warm, plain, "alone")
        alone["rows"], alone["held_out"] = lines_of(run, "train"), lines_of(run, "validation")
    run, said = trained(command, plain, "several", *words)
    assert f"{words[0][-1]} processes" in said
    assert said.count("finished: ") == 1
    for own, wanted in zip(lines_of(run, "train"), alone["rows"], strict=True):
        for name in ("mlm_loss", "sbo_loss", "grad_norm"):
            assert own[name] == pytest.approx(wanted[name], rel=1e-5), (own["step"], name)
        assert own["lr"] == wanted["lr"]
    for own, wanted in zip(lines_of(run, "validation"), alone["held_out"], strict=True):
        assert own["mlm_loss"] == pytest.approx(wanted["mlm_loss"], rel=1e-5)
    newest = checkpoint.newest(run)
    state = json.loads((newest / "state.json").read_text())
    assert state["world_size"] == int(words[0][-1])
    assert len(list(newest.glob("rng-*.safetensors"))) == state["world_size"]


def test_a_signal_to_one_rank_stops_all_and_the_run_continues_exactly(command, warm, settings):
    """Dropout on: every rank's own draws come back. Then one process goes on where two stopped."""
    words = ("--nproc=2", "--checkpoint.every=100")
    whole, _ = trained(command, settings, "whole", *words)
    process = command.start(*settings, "--output=run", *words)
    wait_for_step(process, 7)
    os.kill(children_of(process)[1], signal.SIGUSR1)
    code, said = process.finish(60)
    assert code == 75, said
    assert said.count("spanbert: stopped by SIGUSR1 after step") == 1
    stopped = checkpoint.newest(command.directory / "run")
    _, said = trained(warm, settings, "other", f"--resume={stopped}")
    assert "the checkpoint was written by 2 process(es), now there are 1" in said
    run, said = trained(command, settings, "run", *words)
    assert f"continuing run/{stopped.name}" in said
    digests = [
        {p.name: checkpoint.digest_file(p) for p in (r / "step-0000030").glob("*.safetensors")}
        for r in (run, whole)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_a_killed_rank_ends_the_run_with_its_name(command, settings):
    process = command.start(*settings, *ENDLESS, "--nproc=2")
    wait_for_step(process, 15)
    victim = children_of(process)[1]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    code, said = process.finish(60)
    assert time.monotonic() - began < 30
    assert code == 75, said
    assert f"rank 1 (pid {victim} on " in said
    assert f"rank 1 (pid {victim}) was killed by SIGKILL" in said
    assert "Traceback" not in said
    survivor = checkpoint.newest(command.directory / "run")
    assert survivor is not None
    process = command.start(*settings, *ENDLESS, "--nproc=2")
    process.wait_for(f"continuing run/{survivor.name}")
    wait_for_step(process, 20)
    # The launcher dies: its ranks must not go on alone.
    ranks = children_of(process)
    process.send(signal.SIGKILL)
    process.finish()
    ends = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{rank}") for rank in ranks)


def test_a_stopped_rank_may_go_on_and_is_given_up_after_the_timeout(command, settings):
    process = command.start(*settings, *ENDLESS, "--nproc=2", "--parallel.timeout=8")
    wait_for_step(process, 5)
    rank = children_of(process)[1]
    os.kill(rank, signal.SIGSTOP)
    time.sleep(3)
    os.kill(rank, signal.SIGCONT)
    wait_for_step(process, 40)
    os.kill(rank, signal.SIGSTOP)
    code, said = process.finish(90)
    assert code == 75, said
    assert f"rank 1 (pid {rank} on " in said
    assert "parallel.timeout is 8 s" in said
    assert not os.path.exists(f"/proc/{rank}")


def test_a_non_finite_gradient_of_one_rank_is_skipped_by_all(command, settings):
    """Under torchrun; recorded with the ids of the batch, and the run goes on."""
    script = Path(__file__).parent.parent / "spoiled_run.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, script, *settings, "--numerics.max_skipped=3"],
        cwd=command.directory,
        env=os.environ | {"SPOIL": "6:2:1:nan", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    run = command.directory / "run"
    bad = lines_of(run, None, "bad_batches.jsonl")
    assert [(row["step"], row["kind"], row["action"]) for row in bad] == [
        (7, "not_finite", "skipped"),
        (8, "not_finite", "skipped"),
    ]
    assert len(set(bad[0]["rows"])) == 8 and bad[0]["rows"] != bad[1]["rows"]
    assert len(bad[0]["sample_ids"]) >= 8
    rows = lines_of(run, "train")
    assert [row["step"] for row in rows if row["mlm_loss"] is None] == [7, 8]
    assert json.loads((run / "step-0000030" / "state.json").read_text())["skipped"] == 2


def test_many_in_a_row_end_the_run_with_76(warm, settings):
    words = ("--numerics.max_skipped=4",)
    code, said = warm.run(*settings, *words, before=spoil_from_batch_12)
    assert code == 76, said
    assert "spanbert: error: 4 updates in a row had non-finite gradients (up to step 16)" in said
    newest = checkpoint.newest(warm.directory / "run")
    assert newest.name == "step-0000015"  # committed in the middle: skipped updates change nothing
    assert "Traceback" not in said


def spoil_from_batch_12():
    spoil(setattr, range(12, 100), float("inf"))
