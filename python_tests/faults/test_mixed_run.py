"""A run on two corpora with weights, killed and continued by the installed command."""

import json
import signal

from spanbert_ext.training import checkpoint


def digests(run):
    return {p.name: checkpoint.digest_file(p) for p in run.glob("step-0000008/*.safetensors")}


def test_a_mixture_continues_bit_for_bit_and_refuses_other_weights(warm, settings, corpus):
    home = warm.directory
    (home / "more.txt").write_text("Old houses played beside the river.\n\n" * 25)
    words = ("prepare", "more.txt", "--output", "more", "--tokenizer", corpus / "tokenizer")
    code, output = warm.run(*words, "--validation_fraction", 0.1)
    assert code == 0, output
    settings = [*settings, "--steps=8", "--checkpoint.every=3", f"--corpus={corpus}=3,more=1"]
    code, output = warm.run(*settings, "--output=whole")
    assert code == 0, output
    assert "held-out  mlm" in output
    code, _ = warm.run(*settings, fail_point="after_rename")
    assert code == -signal.SIGKILL
    code, output = warm.run(*settings)
    assert code == 0, output
    assert "step-0000003: step 3" in output
    assert digests(home / "run") == digests(home / "whole") != {}

    code, output = warm.run(*settings, "--steps=9", f"--corpus={corpus}=2,more=1")
    assert code == 2, output
    state = json.loads((home / "run" / "step-0000008" / "state.json").read_text())
    assert f"the corpus had fingerprint {state['corpus']}, has 2 * " in output
    assert state["corpus"].startswith("3 * ") and " + 1 * " in state["corpus"]
