"""The benchmarks: that they compare equal things, refuse wrong ones and judge rows rightly."""

import csv
import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
from benchmark_cases import child

from benchmarks import (
    attention_cases,
    bench_attention_dropout,
    bench_cross_entropy,
    bench_masking,
    bench_residual,
    bench_sbo,
    bench_step,
    floors,
    peers,
    plot,
    records,
    targets,
    workloads,
)
from benchmarks.harness import Case, Race, Timing, Variant


@pytest.fixture(autouse=True)
def small_ceilings():
    floors.use_small_ceilings()


# Harness -----------------------------------------------------------------------------------------


def toy_case(*variants, **options):
    return Case("toy", {"n": 3}, 3, "rows", "fp32", list(variants), **options)


def test_variants_take_turns():
    calls = []
    named = [Variant(n, lambda n=n: calls.append(n) or torch.ones(1)) for n in ("ours", "a", "b")]
    race = Race(toy_case(*named, budget_s=0.0, min_samples=3))
    calls.clear()
    race.run()
    assert calls == ["a", "b", "ours", "b", "a", "ours", "a", "b", "ours"]
    assert [len(t.seconds) for t in race.timings] == [3, 3, 3]


def test_a_slow_peer_is_sampled_less_and_evenly():
    calls = []
    ours = Variant("ours", lambda: calls.append("."))
    slow = Variant("slow", lambda: calls.append("s"), samples=2)
    race = Race(toy_case(ours, slow, budget_s=0.0, min_samples=6))
    calls.clear()
    race.run()
    assert "".join(calls) == "..s...s."


@pytest.mark.parametrize("value", [1.01, math.nan])
def test_a_wrong_result_of_ours_is_not_timed(value):
    wrong = Variant("ours", lambda: torch.tensor([value]))
    with pytest.raises(AssertionError, match="relative error"):
        Race(toy_case(wrong, reference=[torch.tensor([1.0])]))


def test_a_wrong_peer_is_timed_and_its_error_recorded():
    right, wrong = torch.tensor([2.0]), torch.tensor([2.2])
    case = toy_case(
        Variant("ours", lambda: right), Variant("peer", lambda: wrong), reference=[right]
    )
    ours, peer = Race(case).timings
    assert ours.rel_error == 0
    assert peer.rel_error == pytest.approx(0.1)


def test_quantiles_by_hand():
    timing = Timing([3e-6, 1e-6, 2e-6, 5e-6, 4e-6, 6e-6])
    assert [timing.quantile_us(share) for share in (0.2, 0.5, 0.8)] == pytest.approx([2, 3.5, 5])
    assert Timing().quantile_us(0.5) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_extra_memory_is_what_a_call_holds():
    from benchmarks.clocks import extra_bytes

    def run():
        return torch.ones(32 << 20, dtype=torch.uint8).clone()

    assert 60 << 20 < extra_bytes(run, "cpu") < 80 << 20


def test_rows_are_appended_and_other_columns_refused(tmp_path):
    path = tmp_path / "deep" / "toy.csv"
    case = toy_case(Variant("ours", lambda: None), floor_us=1.5, threads=1)
    for _ in range(2):
        records.append(path, records.rows_of(case, [Timing([2e-6], rel_error=1e-5)]))
    rows = records.read(path)
    assert len(rows) == 2 and tuple(rows[0]) == records.COLUMNS
    first = rows[0]
    assert (first["op"], first["shapes"], first["median_us"]) == ("toy", "n=3", "2")
    assert (first["floor_us"], first["threads"], first["extra_mb"]) == ("1.5", "1", "")
    for name in ("hardware", "torch", "backend", "package", "commit", "date", "command"):
        assert first[name], name
    path.write_text("op,variant\n")
    with pytest.raises(ValueError, match="other columns"):
        records.append(path, rows)


# Peers compute what we compute -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: bench_sbo.sbo_case(2, 32, dtype, "cpu"),
        lambda dtype: bench_residual.residual_case(17, 32, 0.0, dtype, "cpu"),
        lambda dtype: bench_attention_dropout.attention_case(40, 16, 0.0, dtype, tokens=100),
        lambda dtype: bench_cross_entropy.loss_case(33, 32, dtype, "cpu", 301, slow_peers=True),
    ],
    ids=["sbo", "residual", "attention_dropout", "cross_entropy"],
)
def test_every_variant_gives_the_reference(make, dtype):
    case = make(dtype)
    case.budget_s, case.min_samples = 0.0, 1
    race = Race(case)
    limit = {"fp32": 1e-5, "bf16": 0.05}[dtype]
    names = [variant.name for variant in case.variants]
    assert names[0] == "ours" and len(names) >= 2
    for name, timing in zip(names, race.timings, strict=True):
        assert timing.rel_error < limit, name


def test_padded_formula_has_every_target_once():
    batch = workloads.masked_rows(3, "cpu", length=128)
    padded = peers.padded_targets(batch, 128, workloads.SLOTS)
    assert int((padded.ids != -100).sum()) == workloads.num_sbo_targets(batch) > 20
    width = torch.bincount(padded.row, weights=(padded.slot == 0).double()).max()
    assert padded.pairs.shape == (3, int(width), 2)


def test_python_masking_hits_the_budget():
    ids = workloads.text_rows(4, length=66)
    corrupted, labels = peers.python_span_masking(ids.numpy())
    assert ((labels != -100).sum(1) == 10).all()  # ceil(0.15 * 64)
    kept = labels == -100
    assert (corrupted[kept] == ids.numpy()[kept]).all()
    assert (labels[~kept] == ids.numpy()[~kept]).all()


def test_masks_are_checked_against_the_reference(monkeypatch):
    ids = workloads.text_rows(2, length=64)
    bench_masking.check_against_reference(ids)
    own = type(workloads.masker()).__call__

    def broken(self, ids, **rest):
        batch = own(self, ids, **rest)
        if os.environ.get("SPANBERT_EXT_BACKEND") != "reference":
            batch.labels[1, 5] += 1
        return batch

    monkeypatch.setattr(type(workloads.masker()), "__call__", broken)
    with pytest.raises(AssertionError, match="labels differ"):
        bench_masking.check_against_reference(ids)


TINY = {
    "length": 32, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 1,
    "intermediate_size": 32,
}  # fmt: skip


def test_all_steps_train():
    named = ("transformers", "assembly", "original")
    case = bench_step.step_case("base", 2, "fp32", "cpu", named_peers=("transformers",), **TINY)
    config = workloads.model_config("base", 0.0, **{k: v for k, v in TINY.items() if k != "length"})
    batch = workloads.masked_rows(2, "cpu", 32)
    for name in named:
        build, _ = bench_step.BUILDERS[name]
        step = build(config, batch, "cpu", "fp32", None)
        step.model.eval()  # without dropout the loss must fall
        losses = [float(step()) for _ in range(4)]
        assert losses[-1] < losses[0], name
    ours = case.variants[0].run
    ours()
    assert all(map(math.isfinite, ours.losses()))
    assert list(ours.parts()) == list(bench_step.PARTS)


def test_a_step_with_another_loss_is_refused():
    config = workloads.model_config("base", 0.0, **{k: v for k, v in TINY.items() if k != "length"})
    step = bench_step.PretrainStep(config, 1, 32, torch.device("cpu"), "fp32")
    bench_step.check_same_loss(step.model, config, "cpu", 32, "fp32")
    step.model.cls.predictions.transform.LayerNorm.eps = 0.5
    with pytest.raises(AssertionError, match="masked language model"):
        bench_step.check_same_loss(step.model, config, "cpu", 32, "fp32")


def test_packed_lengths_fill_the_rows():
    lengths = bench_step.packed_lengths(5, 64)
    assert sum(lengths) == 5 * 64 and min(lengths) > 0 and len(lengths) > 5


# Floors and targets ------------------------------------------------------------------------------


def test_floors_by_hand():
    base = floors.step_flops(12, 768, 512, 29056)
    large = floors.step_flops(24, 1024, 512, 29056)
    assert base == pytest.approx(311.1e9, rel=1e-3)
    assert large == pytest.approx(1033.6e9, rel=1e-3)
    assert floors.sbo_flops(2, 3, 10) == 6 * (4 + 3) * 100


def row(variant, median_us, date="d1", **changes):
    fields = dict.fromkeys(records.COLUMNS, "")
    fields |= {
        "op": "cross_entropy", "variant": variant,
        "shapes": "rows=1024 hidden=768 vocabulary=28996",
        "dtype": "bf16", "cache": "cold", "median_us": str(median_us), "p20_us": "1",
        "p80_us": "2", "threads": "2", "device": "cpu", "date": date,
    }  # fmt: skip
    return fields | changes


def verdict_of(rows, peer="eager"):
    found = [v for v in targets.judge(rows) if v.target.peer == peer]
    return found[0] if found else None


def test_targets_are_judged_by_the_ratio():
    met = verdict_of([row("ours", 100), row("eager", 200)])
    assert met.met and met.ratio == 2
    missed = verdict_of([row("ours", 100), row("eager", 199)])
    assert not missed.met
    text = targets.target_table([row("ours", 100), row("eager", 199)])
    assert "1.99" in text and ">= 2" in text and "NO" in text and "0 of 1 targets met" in text


@pytest.mark.parametrize(
    "peer",
    [
        {"date": "d0"},
        {"cache": "warm"},
        {"dtype": "fp32"},
        {"device": "cuda"},
        {"shapes": "rows=64 hidden=768 vocabulary=28996"},
        {"median_us": ""},
    ],
)
def test_targets_compare_nothing_unlike(peer):
    assert verdict_of([row("ours", 100), row("eager", 500) | peer]) is None


def test_masker_targets_by_hand():
    mask = {"op": "span_mask", "dtype": "int64", "shapes": "rows=1024 length=512"}
    rows = [row("ours", 1000, threads="1", **mask), row("ours", 600, threads="2", **mask)]
    (verdict,) = targets.judge(rows)
    assert verdict.ratio == pytest.approx(1000 / 600) and verdict.met
    small = {**mask, "shapes": "rows=64 length=512", "threads": "1"}
    (verdict,) = targets.judge([row("ours", 129, **small)])
    assert verdict.value == pytest.approx(129 / 64) and not verdict.met


def test_every_target_can_be_met_by_some_row():
    """No target asks for a variant, dtype or device that no benchmark writes."""
    written = {*bench_step.OURS, "ragged_eager", "ragged_compiled", "padded_original", "eager"}
    written |= {"compiled", "compiled_chunked", "liger", "torch_chunked", *bench_step.BUILDERS}
    written |= {"transformers_whole_word"}
    for target in targets.TARGETS:
        assert {target.variant, target.peer or "ours"} <= written, target.what


# Commands ----------------------------------------------------------------------------------------


def test_fastest_attention_by_hand():
    def measured(variant, median_us, packed):
        shapes = f"rows=8 length=512 heads=12 width=64 dropout=0.0 packed={packed}"
        note = "a step takes varlen"
        return row(variant, median_us, op="attention", shapes=shapes, note=note)

    rows = [measured("varlen", 90, 0), measured("dense_cudnn", 70, 0), measured("varlen", 80, 1)]
    table = attention_cases.fastest_table([*rows, measured("blocks_efficient", 200, 1)])
    assert [line[1:] for line in table[1:]] == [
        ("varlen", "90", "dense_cudnn", "70"),
        ("varlen", "80", "varlen", "80"),
    ]


def test_smoke_run_and_pictures(tmp_path):
    """`pytest benchmarks --quick` in a process of its own, then every picture of its rows."""
    pytest.importorskip("pytest_benchmark")
    words = ("-m", "pytest", "benchmarks", "--quick", "--results", str(tmp_path / "results"))
    done = child(*words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "peers and targets" in done.stdout
    names = {path.stem for path in (tmp_path / "results").iterdir()}
    expected = {"ceilings", "masking", "sbo", "residual", "cross_entropy"}
    expected |= {"attention_dropout", "step"}
    assert names == expected
    with (tmp_path / "results" / "step.csv").open(newline="") as file:
        assert {"step", "step_part"} == {r["op"] for r in csv.DictReader(file)}
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("the run is right; matplotlib is not installed, so nothing was drawn")
    out = tmp_path / "plots"
    assert plot.main(["--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    drawn = {path.stem for path in out.iterdir() if path.stat().st_size > 10_000}
    assert drawn == {f"{n}_cpu" for n in expected - {"ceilings"} | {"step_parts", "memory"}}


def test_nothing_to_draw_is_said(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert plot.main(["--results", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "holds no row measured on cpu" in capsys.readouterr().err
