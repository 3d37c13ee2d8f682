"""The pictures of an evaluation: what is drawn, and that anything can be."""

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spanbert_ext.errors import ConfigError, StorageError
from spanbert_ext.tasks import plots


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they were saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **settings):
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def rendered(figure):
    """What knows the sizes of a figure's texts."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def test_a_confusion_matrix(tmp_path, drawn):
    path = tmp_path / "c.png"
    matrix = np.array([[30, 10, 0], [0, 0, 0], [1, 2, 12345]])
    plots.confusion_plot(["no", "yes", "l$_a$"], matrix, path)
    assert is_png(path)
    assert list(tmp_path.iterdir()) == [path]
    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["no", "yes", "l$_a$"]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == ["no  (40)", "yes  (0)", "l$_a$  (12,348)"]
    shares = axis.images[0].get_array()
    assert shares[:2].tolist() == [[0.75, 0.25, 0], [0, 0, 0]]
    counts = {text.get_position(): text.get_text() for text in axis.texts}
    assert counts == {(0, 0): "30", (1, 0): "10", (0, 2): "1", (1, 2): "2", (2, 2): "12345"}
    colours = {text.get_text(): text.get_color() for text in axis.texts}
    assert (colours["30"], colours["10"]) == ("white", "#222222")


def test_forty_two_labels(tmp_path, drawn):
    labels = [f"org:number_of_employees/members_{n}" for n in range(42)]
    matrix = np.eye(42, dtype=np.int64) * 7
    matrix[0, 0], matrix[1, 0] = 12_000, 1_234_567
    plots.confusion_plot(labels, matrix, tmp_path / "c.png")
    (figure,) = drawn
    axis, renderer = figure.axes[0], rendered(figure)
    assert "1234567" not in [text.get_text() for text in axis.texts]
    cell = axis.get_window_extent().width / 42
    for text in axis.texts:
        assert text.get_window_extent(renderer).width < cell
    names = [label.get_window_extent(renderer) for label in axis.get_yticklabels()]
    assert all(low.y0 > high.y1 for high, low in zip(names[1:], names, strict=False))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in names)
    names = [label.get_window_extent(renderer) for label in axis.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in zip(names, names[1:], strict=False))
    assert all(figure.bbox.y0 <= box.y0 for box in names)


@pytest.mark.parametrize("labels", [["contradiction", "entailment", "neutral"], ["0", "1"], ["x"]])
def test_few_labels_stand_level(tmp_path, drawn, labels):
    plots.confusion_plot(labels, np.ones((len(labels),) * 2, np.int64), tmp_path / "c.svg")
    axis, renderer = drawn[0].axes[0], rendered(drawn[0])
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {0}
    names = [label.get_window_extent(renderer) for label in axis.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in zip(names, names[1:], strict=False))


@pytest.mark.parametrize(("labels", "shape"), [(["a"], (2, 2)), (["a", "b"], (2, 1)), ([], (0, 0))])
def test_a_matrix_of_another_shape(tmp_path, labels, shape):
    with pytest.raises(ValueError, match="matrix: "):
        plots.confusion_plot(labels, np.zeros(shape), tmp_path / "c.png")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def heights(figure, number):
    """Of the outline of right (0) or wrong (1)."""
    return figure.axes[0].patches[2 * number + 1].get_data()


def test_the_distribution_of_scores(tmp_path, drawn):
    path = tmp_path / "s.png"
    plots.score_plot([0.91, 0.93, 0.1, np.nan], np.array([0.11, np.inf]), path, threshold=0.5)
    assert is_png(path)
    (figure,) = drawn
    assert legend(figure) == ["right (3)", "wrong (1)", "threshold 0.5"]
    right, wrong = heights(figure, 0), heights(figure, 1)
    assert (right.edges[0], right.edges[-1]) == (0, 1)
    assert (right.values.sum(), wrong.values.sum()) == (3, 1)
    assert (right.values[36:38].sum(), wrong.values[4]) == (2, 1)
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 0.5]


def test_scores_that_are_no_probabilities(tmp_path, drawn):
    plots.score_plot([3.0, -2.0], [12.0], tmp_path / "s.pdf")
    edges = heights(drawn[0], 0).edges
    assert (edges[0], edges[-1]) == (-2, 12)


@pytest.mark.parametrize(
    ("right", "wrong"), [([], []), ([np.nan], []), ([5.0] * 3, [5.0]), ([], [0.0]), ([1e300], [0])]
)
def test_anything_can_be_drawn(tmp_path, right, wrong):
    plots.score_plot(right, wrong, tmp_path / "s.png", threshold=float("nan"))
    assert is_png(tmp_path / "s.png")


def test_where_it_cannot_be_drawn(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"c.bmp: a picture must end in .png, .svg, .pdf"):
        plots.score_plot([1], [0], tmp_path / "c.bmp")
    with pytest.raises(StorageError, match=r"cannot write .*absent/c.png: No such file"):
        plots.score_plot([1], [0], tmp_path / "absent" / "c.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (plots.score_plot, plots.confusion_plot):
        with pytest.raises(ConfigError, match=r'pip install "spanbert-ext\[plot\]"'):
            draw(["a"], [[1]], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_what_is_counted_and_measured_is_named(tmp_path, drawn):
    plots.confusion_plot(["O"], np.ones((1, 1)), tmp_path / "c.png", "ner: 1 $word", "words")
    plots.score_plot([1.0], [2.0], tmp_path / "s.png", quantity="mention score", title="coref")
    confusion, scores = drawn
    assert confusion.get_suptitle() == "ner: 1 $word"
    assert confusion.axes[0].get_ylabel() == "gold (words)"
    assert (scores.axes[0].get_xlabel(), scores.axes[0].get_title()) == ("mention score", "coref")
    rendered(confusion)
