"""The commands that measure: `python -m benchmarks.gpu` and its parts, and `spanbert bench`."""

import sys

import pytest
import torch
from benchmark_cases import ROOT, child

from benchmarks import floors, gpu, gpu_parts, records, targets
from benchmarks.harness import Case, Variant
from spanbert_ext.cli import bench
from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import options


@pytest.fixture(autouse=True)
def small_ceilings():
    floors.use_small_ceilings()


def test_the_installed_package_wins(tmp_path):
    """From the repository root, a package found elsewhere on the path is the one that is used."""
    (tmp_path / "spanbert_ext").mkdir()
    (tmp_path / "spanbert_ext" / "__init__.py").write_text("")
    code = "import benchmarks, spanbert_ext; print(spanbert_ext.__file__)"
    done = child("-c", code, PYTHONPATH=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path / "spanbert_ext" / "__init__.py"), done.stderr
    done = child("-c", code, PYTHONPATH=f"{ROOT}")
    assert done.stdout.strip() == str(ROOT / "spanbert_ext" / "__init__.py"), done.stderr


def test_gpu_lists_its_parts(capsys):
    assert gpu.main(["--dry-run"]) == 0
    text = capsys.readouterr().out
    for name in ("build", "tests", "memcheck", "racecheck", "initcheck", "step_large"):
        assert f" {name} " in text
    with pytest.raises(SystemExit, match="no such part: nonsense"):
        gpu.main(["--dry-run", "--only", "nonsense"])


def test_gpu_parts_fail_alone(tmp_path, capsys):
    import time

    def part(name, code, limit=30):
        return gpu.Part(name, 0, limit, (sys.executable, "-c", code), tmp_path, "")

    parts = [
        part("good", "print('3 passed in 1s')"),
        part("bad", "raise SystemExit(3)"),
        part("slow", "import time; time.sleep(60)", limit=1),
    ]
    outcomes = gpu.run_stage(parts, time.monotonic() + 30, tmp_path / "log", tmp_path, {})
    assert [o.state for o in outcomes] == ["ok", "failed (3)", "stopped at its limit"]
    assert outcomes[0].summary == "3 passed in 1s"
    assert "== bad: failed (3)" in (tmp_path / "log").read_text()


def test_gpu_says_what_it_left_out(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing is left out")
    assert gpu.main(["--out", str(tmp_path), "--build", "never", "--only", "masking,sbo"]) == 0
    assert "not run: torch sees no CUDA device" in (tmp_path / "report.txt").read_text()


def test_gpu_command_from_end_to_end(tmp_path, capsys):
    """Child processes, their rows, and the table, at tiny sizes on the CPU."""
    words = [
        "--out",
        str(tmp_path),
        "--build",
        "never",
        "--smoke",
        "--only",
        "step_small,attention",
    ]
    assert gpu.main(words) == 0
    text = (tmp_path / "report.txt").read_text()
    for name in ("ours_eager", "ours_compiled_graph", "transformers", "a step takes", "step_small"):
        assert name in text, name
    assert len({row["date"] for row in records.read(tmp_path / "step.csv")}) == 1


@pytest.mark.parametrize("part", sorted(gpu_parts.PARTS))
def test_gpu_parts_run_on_a_cpu(part, tmp_path):
    """A mistake in a part must not wait for a GPU to be found."""
    words = [part, "--out", str(tmp_path), "--device", "cpu", "--quick"]
    assert gpu_parts.main(words) == 0
    written = {row["op"] for path in tmp_path.glob("*.csv") for row in records.read(path)}
    assert bool(written) != (part in ("sync", "warm"))


def test_every_part_is_run_once():
    """What the command starts is what the module has."""
    named = [name for _, _, names in gpu.MEASURED for name in names]
    assert sorted([*named, "warm"]) == sorted(gpu_parts.PARTS)


def test_every_gpu_target_is_measured(monkeypatch, tmp_path):
    """The parts of a full run ask for every size and variant that a target of the step names."""
    asked = []

    def step_case(preset, rows, precision, device, attention_dropout=0.0, **options):
        names = [*options.get("named_ours", ("ours",)), *options.get("named_peers", ())]
        shapes = {"preset": preset, "rows": rows, "length": 512}
        shapes["attention_dropout"] = attention_dropout
        asked.extend((name, precision, shapes) for name in names)
        return Case("step", shapes, 1, "rows", precision, [Variant(name, None) for name in names])

    monkeypatch.setattr(gpu_parts, "step_case", step_case)
    monkeypatch.setattr(gpu_parts, "part_rows", lambda case, samples: [])
    monkeypatch.setattr(gpu_parts.Session, "measure", lambda *_: None)
    session = gpu_parts.Session(tmp_path, "cpu", quick=False)
    for name, measure in gpu_parts.PARTS.items():
        if name.startswith("step_"):
            measure(session)
    for preset, rows in (("base", 256), ("large", 128)):
        for dropout in (0.0, 0.1):
            shapes = {"preset": preset, "rows": rows, "attention_dropout": dropout}
            assert any(n == "ours" and shapes.items() <= s.items() for n, _, s in asked)
    wanted = [t for t in targets.TARGETS if t.op == "step" and t.device == "cuda"]
    assert len(wanted) > 10
    for target in wanted:
        pairs = [(target.variant, target.shapes)]
        if target.peer:
            pairs.append((target.peer, target.peer_shapes or target.shapes))
        for variant, shapes in pairs:
            fits = [n == variant and shapes.items() <= s.items() for n, _, s in asked]
            assert any(fits), (target.what, variant)


def test_cuda_tests_are_collected_and_every_selection_finds_one():
    words = ("-m", "pytest", "-o", "addopts=", "--collect-only", "-q", "-m", "cuda")
    done = child(*words, *gpu.cuda_tests(), cwd=gpu.TESTS)
    assert done.returncode == 0, done.stdout  # no file of them fails to be collected
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(names) > 100
    for selection in gpu.SANITIZED:
        parts = selection.split(" and ")
        assert any(all(part in name for part in parts) for name in names), selection


# spanbert bench ----------------------------------------------------------------------------------


def test_bench_measures_and_reports():
    config = bench.BenchConfig(
        preset="tiny", rows=2, max_length=32, steps=2, precision="fp32", device="cpu",
        vocab_size=200,
    )  # fmt: skip
    config.validate()
    result = bench.run(config)
    assert result.seconds > 0 and all(seconds > 0 for seconds in result.parts.values())
    text = bench.report(result)
    for part in ("rows/s", "tokens/s", "masking", "encoder backward", "back end", "attention"):
        assert part in text
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines() if "%" in line]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"rows": 0}, "rows: must be at least 1"),
        ({"max_length": 513}, "max_length: must be at least 8 and at most 512"),
        ({"attention_dropout": 1.0}, "attention_dropout: must lie in"),
        ({"device": "tpu"}, "device: must be auto"),
    ],
)
def test_bench_refuses_impossible_settings(changes, said):
    with pytest.raises(ConfigError, match=said):
        bench.BenchConfig(**changes).validate()


def test_bench_settings_need_no_torch():
    code = "import sys, spanbert_ext.cli.bench; print('torch' in sys.modules)"
    assert child("-c", code).stdout.strip() == "False"
    assert all(option.help for option in options(bench.BenchConfig))
