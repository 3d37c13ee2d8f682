"""Kill the command anywhere; the next start continues from a whole checkpoint to the same
weights.
"""

import os
import signal

from kill_harness import final_files, kill_repeatedly, training_rows
from runs import Command, pretrain_words

from spanbert_ext.training import checkpoint

# Points of a save, in their order: up to the rename the checkpoint before it is the newest.
WRITING = ["after_model", "after_optimizer"]
SEALING = ["before_manifest", "after_manifest", "before_rename"]
COMMITTED = ["after_rename", "after_commit", "after_trash"]


def names(run):
    return sorted(path.name for path in run.iterdir())


def die_at(warm, words, point, survivor):
    """Kill one process at a point of its next save; step `survivor` must then be the newest
    whole one and every visible one whole. The next process must continue it.
    """
    run = warm.directory / "run"
    before = checkpoint.newest(run)
    code, output = warm.run(*words, fail_point=point)
    assert code == -signal.SIGKILL, (point, output)
    if before:
        assert f"continuing run/{before.name}: step {int(before.name[5:])}, " in output
    steps = checkpoint.list_steps(run)
    assert not any(checkpoint.find_fault(path) for _, path in steps), point
    assert [step for step, _ in steps][-1:] == ([survivor] if survivor else []), point


def check_the_end(warm, corpus, clean, keep):
    """Continue to the end; nothing is left over, and every bit is an uninterrupted run's."""
    code, output = warm.run(*pretrain_words(corpus, checkpoint__keep=keep))
    assert code == 0, output
    run = warm.directory / "run"
    steps = ["step-0000025", "step-0000030"][-keep:]
    assert names(run) == [".lock", "config.yaml", "metrics.jsonl", *steps]
    assert final_files(run) == clean.files
    assert training_rows(run) == clean.rows


def test_killed_inside_the_first_save(warm, corpus, clean, tmp_path):
    words = pretrain_words(corpus, checkpoint__every=1)
    files = sorted(path.name for path in (clean.run / "step-0000030").iterdir())
    syncs = [f"after_sync_{name}" for name in files if name != checkpoint.MANIFEST]
    assert len(syncs) >= 8
    for point in [*WRITING, *syncs, *SEALING]:
        die_at(warm, words, point, None)
    for number, point in enumerate(COMMITTED):
        (tmp_path / str(number)).mkdir()
        die_at(Command(tmp_path / str(number), warm=True), words, point, 1)


def test_killed_inside_later_saves(warm, corpus, clean):
    """With two checkpoints kept and with one, while old ones are discarded too."""
    step = 0
    for keep in (2, 1):
        words = pretrain_words(corpus, checkpoint__every=1, checkpoint__keep=keep)
        die_at(warm, words, "after_commit", step + 1)
        die_at(warm, words, "after_commit", step + 2)
        step += 2
        for point in [*WRITING, "after_sync_model.safetensors", *SEALING]:
            die_at(warm, words, point, step)
        for point in ["before_trash", *COMMITTED]:
            step += 1
            die_at(warm, words, point, step)
    check_the_end(warm, corpus, clean, keep=1)


def test_killed_while_a_step_is_saved_again(warm, corpus, clean):
    """A run taken back to an earlier checkpoint replaces the later one by its own."""
    for step in (1, 2):
        die_at(warm, pretrain_words(corpus, checkpoint__every=1), "after_commit", step)
    words = pretrain_words(corpus, checkpoint__every=1, resume="run/step-0000001")
    run = warm.directory / "run"
    for point, survivor in (
        ("before_rename", 2),
        ("between_renames", 1),
        ("after_rename", 2),
        ("after_commit", 3),
    ):
        code, output = warm.run(*words, fail_point=point)
        assert code == -signal.SIGKILL, output
        assert checkpoint.newest(run) == run / checkpoint.step_name(survivor), point
    check_the_end(warm, corpus, clean, keep=2)


def test_killed_at_random_moments(corpus, clean, tmp_path):
    """SPANBERT_EXT_KILLS sets the number, SPANBERT_EXT_KILL_SEED the moments."""
    kills = int(os.environ.get("SPANBERT_EXT_KILLS", "10"))
    seed = int(os.environ.get("SPANBERT_EXT_KILL_SEED", "11"))
    tally = kill_repeatedly(tmp_path, corpus, clean, kills, seed)
    print(tally)
    assert str(tally).startswith(f"{kills} kills, 0 lost checkpoints, 0 differing bits"), tally
    assert tally.differing_rows == 0, tally
