"""Learning curves: what is read from metrics.jsonl, and what is drawn of it."""

import json
import math
import sys
from pathlib import Path

import pytest

from spanbert_ext.cli.command import main
from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.training import panels, plots
from spanbert_ext.training.plots import Curve, PlotConfig


def write_run(directory, *rows, tail=""):
    """A metrics.jsonl of (event, step, values)."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": e, "step": s, "time": 1.5} | values) for e, s, values in rows]
    (directory / plots.METRICS).write_text("\n".join(lines) + "\n" + tail, "utf-8")
    return directory


def course(steps, every=1, **further):
    """Rows of a run whose losses fall, validated every tenth line."""
    rows = []
    for step in range(every, steps + 1, every):
        values = {"mlm_loss": 9 / step, "sbo_loss": 9.5 / step, "grad_norm": 1.5, "lr": 1e-4}
        rows.append(("train", step, values | {"tokens_per_s": 100.0, "backend": "x"} | further))
    rows += [("validation", s, {"mlm_loss": 9 / (s + 1)}) for s in range(0, steps + 1, 10 * every)]
    return rows


def read(directory):
    return plots.read_run(directory / plots.METRICS, "label")


def test_reading_is_forgiving_where_a_kill_leaves_traces(tmp_path, caplog):
    run = write_run(
        tmp_path,
        ("train", 2, {"mlm_loss": 3.0, "grad_norm": None, "backend": "native"}),
        ("checkpoint", 2, {"path": "step-0000002"}),
        ("train", 3, {"mlm_loss": 9.0, "grad_norm": 2}),
        ("train", 3, {"mlm_loss": 2.5, "grad_norm": 1}),
        ("validation", 0, {"mlm_loss": 4.0}),
        tail='\n[1]\n{"event": "train", "ste',
    )
    found = read(run)
    assert found.train["mlm_loss"] == Curve([2, 3], [3.0, 2.5])
    assert math.isnan(found.train["grad_norm"].values[0])
    assert found.train["grad_norm"].values[1] == 1.0
    assert found.train.keys() == {"mlm_loss", "grad_norm"}
    assert found.held_out == {"mlm_loss": Curve([0], [4.0])}
    assert "passed over 2 line(s)" in caplog.text


@pytest.mark.parametrize("text", ["", "\n", "not json\n", '{"event": "checkpoint", "step": 3}\n'])
def test_a_run_without_a_loss(tmp_path, text):
    (tmp_path / plots.METRICS).write_text(text)
    with pytest.raises(DataError, match="holds no loss yet"):
        read(tmp_path)


def test_a_directory_that_is_no_run(tmp_path):
    write_run(tmp_path / "demo" / "run", *course(3))
    with pytest.raises(ConfigError, match=r"holds no metrics.jsonl; did you mean .*demo/run\?"):
        plots.find_metrics(str(tmp_path / "demo"))
    with pytest.raises(ConfigError, match=r"holds no metrics.jsonl$"):
        plots.find_metrics(str(tmp_path / "absent"))


def test_labels_are_as_short_as_they_may_be():
    paths = [Path("/x/a/run/m"), Path("/x/b/run/m"), Path("/x/b/other/m")]
    assert plots.labels(paths[:1]) == ["run"]
    assert plots.labels(paths[1:]) == ["run", "other"]
    assert plots.labels(paths) == ["a/run", "b/run", "b/other"]


def test_running_quantiles_literal():
    nan = math.nan
    (median,) = panels.running_quantiles([5, 1, 3, 9, 7], 3, [0.5])
    assert median[1:4] == [3, 3, 7]
    assert median[0] in (1, 5)
    low, high = panels.running_quantiles([1, 2, nan, 3, 100], 5, [0, 1])
    assert low == [1, 1, 1, 2, 3]
    assert high == [2, 3, 100, 100, 100]
    (gap,) = panels.running_quantiles([nan, nan, nan, 4], 3, [0.5])
    assert math.isnan(gap[0])
    assert math.isnan(gap[1])
    assert gap[2:] == [4, 4]
    assert panels.running_quantiles([2.0, 3.0], 1, [0.1, 0.9]) == [[2.0, 3.0], [2.0, 3.0]]


def test_a_spike_is_a_dot_and_does_not_set_the_scale(tmp_path):
    from matplotlib.figure import Figure

    rows = course(400)
    rows[299][2].update(mlm_loss=5000.0)
    figure = panels.draw(Figure, [read(write_run(tmp_path, *rows))])
    axis = figure.axes[0]
    assert axis.get_ylim()[1] < 12
    (dots,) = [line for line in axis.lines if line.get_marker() == "."]
    assert list(dots.get_xdata()) == [300]
    assert list(dots.get_ydata()) == [axis.get_ylim()[1]]


def test_every_loss_has_its_panel(tmp_path):
    from matplotlib.figure import Figure

    long = read(write_run(tmp_path / "long", *course(300)))
    pair = read(write_run(tmp_path / "pair", *course(50, nsp_loss=0.6)))
    titles = [a.get_title() for a in panels.draw(Figure, [long, pair]).axes if a.get_visible()]
    assert [title.split()[0] for title in titles] == [
        "MLM", "SBO", "NSP", "gradient", "tokens", "learning",
    ]  # fmt: skip


def fill(figure):
    """For each line of panels the columns of the grid that they cover."""
    lines = {}
    for axis in figure.axes:
        assert axis.get_visible()
        place = axis.get_subplotspec()
        lines.setdefault(place.rowspan.start, []).extend(place.colspan)
    return list(lines.values())


@pytest.mark.parametrize("further", [0, 1, 2, 3])
def test_no_panel_is_empty(tmp_path, further):
    from matplotlib.figure import Figure

    more = {f"x{n}_loss": 1.0 for n in range(further)}
    figure = panels.draw(Figure, [read(write_run(tmp_path, *course(30, **more)))])
    assert len(figure.axes) == 5 + further
    columns = figure.axes[0].get_gridspec().ncols
    assert fill(figure) == [list(range(columns))] * len(fill(figure))


def fine_tuning(folder, task, numbers, logged=3):
    """A run with its checkpoint, which names the task."""
    rows = [("train", s, {"loss": 1 / s, "lr": 1e-5}) for s in range(1, logged + 1)]
    rows += [("validation", s, numbers) for s in (0, 3)]
    run = write_run(folder, *rows)
    (run / "step-0000003").mkdir()
    state = json.dumps({"settings": {"task": task}})
    (run / "step-0000003" / "state.json").write_text(state)
    return read(run)


def test_tasks_share_no_axis_but_speed_norm_and_rate(tmp_path):
    from matplotlib.figure import Figure

    squad = {"exact": 30.0, "f1": 31.0, "total": 120.0, "HasAns_total": 9, "best_f1_thresh": -2.0}
    runs = [
        fine_tuning(tmp_path / "qa", "squad2", squad, logged=1),
        fine_tuning(tmp_path / "ner", "ner", {"f1": 1.0}),
        fine_tuning(tmp_path / "more", "ner", {"f1": 2.0}),
        read(write_run(tmp_path / "base", *course(3))),
    ]
    figure = panels.draw(Figure, runs)
    found = {axis.get_title(): len(axis.lines) for axis in figure.axes}
    assert found == {
        "squad2: training loss": 1,
        "squad2: exact, held out": 1,
        "squad2: f1, held out": 1,
        "ner: training loss": 2,
        "ner: f1, held out": 2,
        "pre-training: MLM loss (nats a masked piece)": 2,  # in training and held out
        "pre-training: SBO loss (nats a target)": 1,
        "gradient norm": 1,
        "tokens a second": 1,
        "learning rate": 4,
    }
    assert figure.get_suptitle() == "Learning curves of 4 runs"
    assert {axis.get_title() for axis in panels.draw(Figure, runs[1:3]).axes} == {
        "training loss", "f1, held out", "learning rate",
    }  # fmt: skip


def test_one_logged_point_is_seen(tmp_path):
    """A line has no length there, nor between two values that were not finite."""
    from matplotlib.figure import Figure

    norms = [1.0, None, 2.0, None, 3.0, 4.0]
    rows = [("train", s, {"loss": 1.0, "grad_norm": norm}) for s, norm in enumerate(norms, 1)]
    gaps = read(write_run(tmp_path / "gaps", *rows))
    one = read(write_run(tmp_path / "one", ("train", 3, {"loss": 1.0, "grad_norm": 2.0})))
    loss, norm = panels.draw(Figure, [gaps, one]).axes
    assert [line.get_markevery() for line in loss.lines] == [[], [0]]
    assert [line.get_markevery() for line in norm.lines] == [[0, 2], [0]]
    assert {line.get_marker() for line in (*loss.lines, *norm.lines)} == {"o"}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_what_is_drawn(tmp_path):
    from matplotlib.figure import Figure

    short = write_run(tmp_path / "short", *course(30))
    assert legend_of(panels.draw(Figure, [read(short)])) == ["training", "held out"]
    rows = course(400)
    long = legend_of(panels.draw(Figure, [read(write_run(tmp_path / "long", *rows))]))
    assert long == ["training, running median", "10th to 90th percentile", "held out"]
    rows[299][2].update(mlm_loss=5000.0)
    spiky = legend_of(panels.draw(Figure, [read(write_run(tmp_path / "spiky", *rows))]))
    assert spiky == [*long[:2], "more than 3 medians", "held out"]


def test_a_run_with_held_out_numbers_alone_is_drawn(tmp_path):
    from matplotlib.figure import Figure

    run = read(write_run(tmp_path, ("validation", 0, {"f1": 3.0})))
    (axis,) = panels.draw(Figure, [run]).axes
    assert (
        axis.get_title() == "f1, held out"
        and run.summary() == "label: 0 steps, held-out f1 3.00 -> 3.00"
    )


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_verb_draws_several_runs(tmp_path, capsys):
    first = write_run(tmp_path / "first", *course(200))
    second = write_run(tmp_path / "a $b_{c$ run", *course(40, every=2))
    target = tmp_path / "plots.png"
    words = ["plot", str(first), str(second / plots.METRICS), str(first), "--output", str(target)]
    assert main(words) == 0
    assert is_png(target)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first: 200 steps, held-out mlm 9.000 -> 0.045"
    assert lines[1].startswith("a $b_{c$ run: 40 steps")
    assert lines[2] == f"wrote {target}"
    assert len(lines) == 3


def test_one_line_and_nothing_finite_can_be_drawn(tmp_path):
    one = write_run(tmp_path / "one", ("train", 1, {"mlm_loss": 2.0, "grad_norm": 0.0}))
    none = write_run(tmp_path / "none", ("train", 1, {"mlm_loss": None, "grad_norm": None}))
    for run in (one, none):
        plots.plot(PlotConfig([str(run)], str(tmp_path / "c.png")))
        assert is_png(tmp_path / "c.png")


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", *course(3))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", str(run), "--output", str(tmp_path / "c.png")]) == 2
    assert 'pip install "spanbert-ext[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_bad_settings(tmp_path, capsys):
    assert main(["plot"]) == 2
    assert "runs: a value is required" in capsys.readouterr().err
    assert main(["plot", "run", "--output", "plots.bmp"]) == 2
    assert "output: must end in .png, .svg, .pdf; got 'plots.bmp'" in capsys.readouterr().err
    run = write_run(tmp_path / "run", *course(3))
    assert main(["plot", str(run), "--output", str(tmp_path / "absent" / "c.svg")]) == 74


def test_a_fine_tuning_shows_its_metrics(tmp_path, capsys):
    rows = [{"event": "train", "step": s, "loss": 1 / s, "lr": 1e-5} for s in (1, 2, 3)]
    numbers = {"exact": 40.0, "f1": 50.0, "PER.f1": 1.0, "recall": 2.0, "accuracy": 3.0}
    rows += [{"event": "validation", "step": s, **numbers} for s in (0, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = plots.read_run(tmp_path / "metrics.jsonl", "qa")
    names = [panel.name for panel in panels.panels([run])]
    assert names == ["loss", "exact", "f1", "recall", "lr"]
    assert run.summary().endswith("exact 40.00 -> 40.00, f1 50.00 -> 50.00, recall 2.00 -> 2.00")


@pytest.mark.parametrize("norms", [(3.0, 3.4), (1e-4, 1e3), (2.0, 2.0)])
def test_a_gradient_norm_has_its_scale(tmp_path, norms):
    from matplotlib.figure import Figure

    rows = [("train", s, {"loss": 1.0, "grad_norm": norm}) for s, norm in enumerate(norms, 1)]
    axis = panels.draw(Figure, [read(write_run(tmp_path, *rows))]).axes[1]
    low, high = axis.get_ylim()
    assert axis.get_title() == "gradient norm"
    assert any(low <= tick <= high for tick in axis.get_yticks())
