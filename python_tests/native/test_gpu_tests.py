"""Tests that only a GPU can end are run here up to their first device call, so that what stands
before it does not rot where there is none."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
# How torch says that there is no GPU: a build without CUDA, or no driver.
NO_GPU = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests themselves run here")
@pytest.mark.parametrize("file", ["model/test_cuda.py", "training/test_cuda_step.py"])
def test_a_gpu_is_all_they_lack(file, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / file)]
        + [f"--junitxml={tmp_path / 'report.xml'}", "--tb=line"],
        env={**os.environ, "SPANBERT_TRY_CUDA": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        cwd=TESTS,
    )
    cases = ElementTree.parse(tmp_path / "report.xml").getroot().iter("testcase")
    stopped = {
        f"{case.get('name')}: {part.get('message')}"
        for case in cases
        for part in case
        if part.tag != "skipped" and not any(words in part.get("message") for words in NO_GPU)
    }
    assert not stopped, done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
